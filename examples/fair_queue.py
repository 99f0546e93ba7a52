"""A pool of a library that keeps its items in a LIFO queue, made fair by another queue."""

from gevent import monkey

monkey.patch_all()

import queue

import gevent

from gpools import FairLifoQueue


def turns(lifo):
    """Let one greedy greenlet and five patient ones take turns with a single item."""
    served = []

    def worker(name, times):
        for _ in range(times):
            item = lifo.get()
            gevent.sleep(0)  # work with it
            served.append(name)
            lifo.put(item)

    lifo.put("the one connection")
    greedy = gevent.spawn(worker, "greedy", 20)
    gevent.joinall([greedy, *[gevent.spawn(worker, f"patient {n}", 1) for n in range(5)]])
    return served[:7]


print("queue.LifoQueue:", *turns(queue.LifoQueue()), sep="\n  ")
print("FairLifoQueue:", *turns(FairLifoQueue()), sep="\n  ")
