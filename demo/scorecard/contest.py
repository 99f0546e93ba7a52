"""python -m demo.scorecard.contest CONTENDER SEED SECONDS: all trials of one contender.

What comes out of each is printed as a line of JSON, as soon as it is known.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402

from demo.scorecard.contenders import CONTENDERS  # noqa: E402
from demo.scorecard.trials import TRIALS  # noqa: E402

BOUND = 15.0  # seconds for a trial, beside the seconds of chaos


def main():
    name, seed, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    make = CONTENDERS[name]
    server = make.server_class(**make.settings).start()
    make.prepare(server)
    for trial in TRIALS:
        try:
            with gevent.Timeout(BOUND + seconds):
                outcome = trial(make, server, f"{seed}/{name}", seconds)
        except (Exception, gevent.Timeout) as error:
            outcome = {"broken": f"{type(error).__name__}: {error}"}
        print(json.dumps([trial.__name__, outcome]), flush=True)
    server.kill9()
    # Not by the end of the interpreter: some pools wait for their threads there.
    os._exit(0)


main()
