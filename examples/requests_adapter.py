"""FairHTTPAdapter: a requests session on which a crowd shares five connections, in order."""

from gevent import monkey

monkey.patch_all()

import gevent
import requests
from gevent.pywsgi import WSGIServer
from requests.adapters import HTTPAdapter

from gpools.adapters import FairHTTPAdapter


def app(environ, start_response):
    connections.add(environ["REMOTE_PORT"])
    gevent.sleep(1 if environ["PATH_INFO"] == "/slow" else 0.01)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


server = WSGIServer(("127.0.0.1", 0), app, log=None)
server.start()
url = f"http://127.0.0.1:{server.server_port}"

for adapter in (HTTPAdapter(pool_maxsize=5), FairHTTPAdapter(pool_maxsize=5)):
    connections = set()
    session = requests.Session()
    session.mount("http://", adapter)
    gevent.joinall([gevent.spawn(session.get, url) for _ in range(100)], raise_error=True)
    print(f"{type(adapter).__name__}: {'5' if len(connections) == 5 else 'more'} connections")

session = requests.Session()
session.mount("http://", FairHTTPAdapter(pool_maxsize=1, pool_timeout=0.1))
slow = gevent.spawn(session.get, f"{url}/slow")
gevent.sleep(0.05)
try:
    session.get(url)
except requests.ConnectTimeout as late:
    print(type(late.args[0].__cause__).__name__)
