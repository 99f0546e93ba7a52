"""FairPool: an engine whose callers are served in order, and whose interrupted connections go."""

from gevent import monkey

monkey.patch_all()

import gevent
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError

from _servers import postgres_url
from gpools import FairPool

served = []


def visit(engine, name):
    with engine.connect() as connection:
        served.append(connection.execute(text("SELECT :name"), {"name": name}).scalar())


with postgres_url() as url:
    url = url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url, poolclass=FairPool, pool_size=1, max_overflow=0, pool_timeout=1.0)
    gevent.joinall([gevent.spawn(visit, engine, name) for name in "abcdef"], raise_error=True)
    print("served:", " ".join(served))

    with gevent.Timeout(0.1, False), engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(5), 'theirs'"))
    visit(engine, "mine")
    print("after a Timeout:", served[-1], engine.pool)

    with engine.connect():
        try:
            engine.connect()
        except TimeoutError as error:
            print(str(error).split(";")[0])
    engine.dispose()
