"""TokenPool as a limiter: ten uploads, never more than three at a time."""

import gevent

from gpools import TokenPool

uploads = TokenPool(max_size=3)
now, most = set(), 0


def upload(n):
    global most
    with uploads.item():
        now.add(n)
        most = max(most, len(now))
        try:
            gevent.sleep(0.01)
        finally:
            now.remove(n)


workers = [gevent.spawn(upload, n) for n in range(10)]
gevent.sleep(0)
print(f"{len(now)} upload, {uploads.waiting()} wait")

workers[0].kill()  # its token goes to the first in line
workers[9].kill()  # it only leaves the line
gevent.joinall(workers)
print(f"at most {most} at a time, {uploads.free()} tokens free at the end")
