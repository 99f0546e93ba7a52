"""A process in which contenders run, one round whenever the parent says so.

It reads lines of JSON, each the name of a contender, and answers each with what
that contender's round returned.  Between rounds it is blocked in a read, so that
nothing runs but whose turn it is.
"""

import json
import os
import sys
import traceback
from contextlib import ExitStack
from types import SimpleNamespace


def patch(process):
    """Patch as users of *process* do, "gevent" or "eventlet"; return what starts greenlets."""
    if process == "eventlet":
        import warnings

        warnings.simplefilter("ignore")  # it says at each import that it is deprecated
        import eventlet

        def join(greenlets):
            for greenlet in greenlets:
                greenlet.wait()

        def kill(greenlets):
            for greenlet in greenlets:
                greenlet.kill()

        return {"spawn": eventlet.spawn, "sleep": eventlet.sleep, "join": join, "kill": kill}

    from gevent import monkey

    monkey.patch_all()
    import gevent

    gevent.get_hub()  # any program of gevent's has one, and some fast paths ask for it

    def join(greenlets):
        gevent.joinall(greenlets, raise_error=True)

    return {
        "spawn": gevent.spawn,
        "sleep": gevent.sleep,
        "join": join,
        "kill": gevent.killall,
    }


def main():
    process, theme, settings = sys.argv[1:]
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    option = SimpleNamespace(**patch(process), **json.loads(settings))

    from importlib import import_module

    contenders = import_module(f"benchmarks.{theme}").contenders()
    rounds = {}
    with ExitStack() as stack:
        for line in sys.stdin:
            name = json.loads(line)
            try:
                if name not in rounds:
                    rounds[name] = stack.enter_context(contenders[name].start(option))
                answer = {"result": rounds[name]()}
            except Exception:
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
