"""Subclassing HttpPool for a client of one's own takes one method: create()."""

from gevent import monkey

monkey.patch_all()

import json

import httplib2
from gevent.pywsgi import WSGIServer

from gpools import HttpPool


class Api(httplib2.Http):
    def look_up(self, path):
        response, body = self.request(url + path)
        return response.status, json.loads(body)


class ApiPool(HttpPool):
    def create(self):
        return Api(timeout=self.timeout)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"you asked for": environ["PATH_INFO"]}).encode()]


server = WSGIServer(("127.0.0.1", 0), app, log=None)
server.start()
url = f"http://127.0.0.1:{server.server_port}"

with ApiPool(max_size=2, timeout=5, name="api") as pool:
    with pool.item() as api:
        print(*api.look_up("/users/7"))
    print(pool)
