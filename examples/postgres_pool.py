"""PostgresPool: transactions that are whole or not at all, and no query left running."""

from gevent import monkey

monkey.patch_all()

import gevent
import psycopg

from _servers import postgres_url
from gpools.adapters import PostgresPool


def sell(pool):
    with pool.connection() as conn:  # committed at the end of the block
        conn.execute("UPDATE stock SET left_over = left_over - 1")


with postgres_url() as url, PostgresPool(url, max_size=2, timeout=5) as pool:
    with pool.connection() as conn:
        conn.execute("CREATE TABLE stock AS SELECT 100 AS left_over")
    gevent.joinall([gevent.spawn(sell, pool) for _ in range(20)], raise_error=True)
    with pool.connection() as conn:
        print("left over:", conn.execute("SELECT left_over FROM stock").fetchone()[0])
    print("after 20 greenlets:", pool)

    with gevent.Timeout(0.1, False), pool.connection() as conn:
        conn.execute("UPDATE stock SET left_over = 0")
        conn.execute("SELECT pg_sleep(600)")  # interrupted: destroyed, cancelled, rolled back
    try:
        with pool.connection() as conn:
            conn.execute("SELECT right_over FROM stock")
    except psycopg.errors.UndefinedColumn as error:
        print("the statement was wrong, the connection is kept:", error.diag.message_primary)
    with pool.connection() as conn:
        print("left over:", conn.execute("SELECT left_over FROM stock").fetchone()[0])
        conn.execute("DROP TABLE stock")
    print("connections made:", pool.stats().created)
