"""The lambda style: six greenlets share two clients, each made when it is first wanted."""

import gevent

from gpools import Pool


class Client:
    def __init__(self, host, timeout):
        print(f"connecting to {host}, timeout {timeout} s")

    def query(self, n):
        gevent.sleep(0.01)
        return n * n


pool = Pool(max_size=2, create=lambda: Client("db1", timeout=5))


def worker(n):
    with pool.item() as client:
        return client.query(n)


workers = [gevent.spawn(worker, n) for n in range(6)]
gevent.sleep(0)
print(pool)
gevent.joinall(workers, raise_error=True)
print([worker.value for worker in workers])
print(pool)
