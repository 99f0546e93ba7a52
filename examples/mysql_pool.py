"""MySQLPool: an interrupted transaction is rolled back, and no session is passed on."""

from gevent import monkey

monkey.patch_all()

import gevent
import pymysql

from _servers import mysql_url
from gpools import MySQLPool


def visit(pool, page):
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute("INSERT INTO gpools.visits (page) VALUES (%s)", [page])


with mysql_url() as url, MySQLPool(url, max_size=3, timeout=5) as pool:
    with pool.item() as conn:
        conn.query("CREATE DATABASE IF NOT EXISTS gpools")
        conn.query("CREATE OR REPLACE TABLE gpools.visits (page INT PRIMARY KEY)")
    gevent.joinall([gevent.spawn(visit, pool, n) for n in range(20)], raise_error=True)

    with gevent.Timeout(0.1, False), pool.connection() as conn:
        conn.query("DELETE FROM gpools.visits")
        conn.query("SELECT SLEEP(1)")  # interrupted: this connection is closed
    print("after a Timeout:", pool)

    try:
        visit(pool, 7)
    except pymysql.IntegrityError as error:
        print("the row is there already, the connection is kept:", error.args[1])
    print("after an error of the application:", pool)

    with pool.item() as conn, conn.cursor() as cursor:
        cursor.execute("SET @tenant = 'ann'")
    with MySQLPool(url, max_size=1) as one, one.connection() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT COUNT(*), @tenant FROM gpools.visits")
        print("visits, tenant:", *cursor.fetchone())
