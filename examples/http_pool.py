"""HttpPool: a Timeout in the middle of a request gives nobody the answer of another."""

from gevent import monkey

monkey.patch_all()

import gevent
from gevent.pywsgi import WSGIServer

from gpools import HttpPool


def app(environ, start_response):
    gevent.sleep(2 if environ["PATH_INFO"] == "/slow" else 0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"this is {environ['PATH_INFO']}".encode()]


server = WSGIServer(("127.0.0.1", 0), app, log=None)
server.start()
url = f"http://127.0.0.1:{server.server_port}"

pool = HttpPool(max_size=1, timeout=5)
with pool.item(timeout=2) as http:
    response, body = http.request(f"{url}/one")
    print(response.status, body.decode())

try:
    with gevent.Timeout(0.1):
        pool.request(f"{url}/slow")
except gevent.Timeout:
    print("the answer to /slow is still on its way")

print(pool.request(f"{url}/two")[1].decode())
print(pool)
pool.close()
