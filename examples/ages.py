"""Ages: idle items go, those above min_size; recycle() retires what was made before."""

from itertools import count

import gevent

from gpools import ConnectionPool


class Conn:
    numbers = count(1)

    def __init__(self):
        self.number = next(self.numbers)


def look(when):
    stats = pool.stats()
    print(f"{when}: {stats.idle} idle, {stats.created} made, {dict(stats.destroyed)}")


pool = ConnectionPool(min_size=1, max_size=5, max_idle=0.1, create=Conn)
look("at the start")

spike = [pool.get() for _ in range(5)]
for conn in spike:
    pool.put(conn)
look("after a spike")

gevent.sleep(0.3)
look("a while later")

pool.recycle()  # after a failover, say
gevent.sleep(0.05)
look("after recycle()")
with pool.item() as conn:
    print("connection", conn.number)
pool.close()
