"""KeyedHttpPool: one pool for many hosts; those that nobody asks make way for others."""

from gevent import monkey

monkey.patch_all()

import gevent
from gevent.pywsgi import WSGIServer

from gpools import KeyedHttpPool


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"this is {environ['HTTP_HOST'].partition(':')[0]}".encode()]


server = WSGIServer(("0.0.0.0", 0), app, log=None)  # each loopback address is a host
server.start()


def ask(n):
    url = f"http://127.0.{n // 250}.{n % 250 + 1}:{server.server_port}/"
    return pool.request(url)[1].decode()


with KeyedHttpPool(max_size=3, max_per_host=2, timeout=5, max_idle=0.2) as pool:
    print(ask(0), "and", ask(1))
    print(pool)

    crowd = [gevent.spawn(ask, n) for n in range(300)]
    gevent.joinall(crowd, raise_error=True)
    print(len({greenlet.value for greenlet in crowd}), "hosts asked")
    print(pool)

    gevent.sleep(1)
    print(pool)
