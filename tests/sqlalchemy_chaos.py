"""FairPool in chaos on real servers; run by tests/test_sqlalchemy_pool.py in a patched process."""

import gc
from contextlib import closing, contextmanager, suppress

import gevent
import gevent.os
import pytest
from gevent import Timeout
from sqlalchemy import event, exc, text
from sqlalchemy.pool import QueuePool

from gpools import NotInUse, _fork
from tests.proxy import REPLY, REQUEST, black_hole, close, hang, passing, reset
from tests.sqlalchemy_cases import Mariadb, ask, db, full_check, interruption  # noqa: F401
from tests.test_byte_boundaries import ENDINGS, Ordeal, both_ways
from tests.test_fork import Child
from tests.waiting import settle, spawn, until

pytestmark = pytest.mark.filterwarnings("ignore:Previous unbuffered result")  # PyMySQL's


@pytest.fixture(autouse=True)
def collect():
    """Have the drivers complain of what was interrupted here, and not amid something else."""
    yield
    gc.collect()


# At every byte


class Users:
    """An engine as the ordeal sees it: a pool whose items are what users of SQLAlchemy have."""

    max_size = 1

    def __init__(self, engine, raw=False):
        self.engine = engine
        self.raw = raw

    @contextmanager
    def item(self):
        with closing(self.engine.raw_connection() if self.raw else self.engine.connect()) as one:
            yield one


class SqlOrdeal(Ordeal):
    """As the others, but SQLAlchemy's errors may stand in the place of the interruption."""

    def check(self, where, client):
        if not self.pool.raw:
            client.rollback()  # as SQLAlchemy wants it after an error
        super().check(where, client)

    def victim(self, where, ending, tag):
        try:
            with self.pool.item() as client:
                try:
                    self.exchange(client, tag)
                except (Timeout, exc.DBAPIError) as error:
                    if ending == "timed out" or interruption(error) is None:
                        raise
                    settle()
                if ending == "goes on":
                    self.check(where, client)
                    self.check(where, client)
        except (Timeout, exc.DBAPIError) as error:
            if interruption(error) is None:
                raise


def commit(connection, tag):
    ask(connection, tag)
    connection.commit()


def streamed(connection, tag):
    connection = connection.execution_options(stream_results=True)
    result = connection.execute(text("SELECT :tag UNION ALL SELECT :tag"), {"tag": tag})
    assert result.fetchall() == [(tag,), (tag,)]
    result.close()


def ask_raw(connection, tag):
    cursor = connection.cursor()
    cursor.execute("SELECT %s", (tag,))
    (answer,) = cursor.fetchone()
    cursor.close()
    return answer


@pytest.mark.parametrize(
    ("exchange", "endings", "step"),
    [(commit, ENDINGS, 1), (streamed, ENDINGS, 3), (ask_raw, ENDINGS[:2], 1)],
)
@both_ways
def test_no_answer_reaches_another(db, proxy_to, stream, exchange, endings, step):  # noqa: F811
    """The endings take turns, from byte to byte."""
    proxy = proxy_to(db.running)
    engine = db.engine(address=proxy.address)
    raw = exchange is ask_raw
    ordeal = SqlOrdeal(Users(engine, raw), proxy, exchange, ask_raw if raw else ask)
    length = ordeal.length(stream)
    assert length > 30
    for turn, k in enumerate(range(0, length + 1, step)):
        ordeal.strike(endings[turn % len(endings)], stream, k)
    assert ordeal.foreign == []
    full_check(engine)


def killed_while_writing(engine, proxy):
    """Kill one who has sent half a statement: what does the next one get?"""

    def write(raw, tag):
        ask_raw(raw, "x" * 8_000_000)  # more than the buffers take

    ordeal = SqlOrdeal(Users(engine, raw=True), proxy, write, ask_raw)
    ordeal.next_user("first")
    link = ordeal.link()
    link.fault = hang(len(link.request) + 100_000, REQUEST)
    victim = spawn(ordeal.victim, "", "killed", "theirs")
    assert proxy.stopped.wait(10)
    victim.kill(block=False)
    settle()
    proxy.resume()
    try:
        with Timeout(0.3):
            ordeal.next_user("next")
    except Timeout:
        return "nothing"
    finally:
        victim.kill()
    return "his own"


def test_killed_while_writing_is_closed(db, proxy_to):  # noqa: F811
    proxy = proxy_to(db.running)
    assert killed_while_writing(db.engine(address=proxy.address), proxy) == "his own"


@pytest.mark.parametrize("db", [Mariadb], indirect=True)
def test_queue_pool_hangs_after_a_kill_while_writing(db, proxy_to):  # noqa: F811
    """PyMySQL's connection stays open, and the rollback goes into the middle of a statement."""
    proxy = proxy_to(db.running)
    assert killed_while_writing(db.engine(QueuePool, proxy.address), proxy) == "nothing"


@both_ways
def test_a_handshake_interrupted_costs_no_slot(db, proxy_to, stream):  # noqa: F811
    proxy = proxy_to(db.running)
    engine = db.engine(address=proxy.address)
    ordeal = SqlOrdeal(Users(engine, raw=True), proxy, lambda raw, tag: None, ask_raw)

    def let_go():
        with closing(engine.raw_connection()) as raw:
            raw.invalidate()

    let_go()  # SQLAlchemy asks more on the first
    engine.connect().close()
    length = len(getattr(proxy.links[1], stream))
    assert length > 30
    for turn, k in enumerate(range(0, length + 1, 5 if length > 200 else 1)):
        let_go()
        proxy.script = [hang(k, stream)]
        ending = ENDINGS[turn % 2]
        ordeal.interrupt(f"{ending} at byte {k} of the {stream} of the handshake", ending)
    assert ordeal.foreign == []
    full_check(engine)


# Half replies


@pytest.mark.parametrize("cut", [close, reset])
def test_a_reply_that_ends_half_way_is_an_error_and_nobodys_answer(db, proxy_to, cut):  # noqa: F811
    proxy = proxy_to(db.running)
    engine = db.engine(address=proxy.address)
    ordeal = SqlOrdeal(Users(engine), proxy, ask, ask)
    length = ordeal.length(REPLY)
    for k in range(0, length, 2):
        ordeal.next_user("before")
        link = ordeal.link()
        link.fault = cut(len(link.reply) + k)
        with suppress(exc.DBAPIError), engine.connect() as connection:
            # The rest may be the answer to the rollback.
            ordeal.check("cut", connection)
        assert proxy.stopped.is_set()
        proxy.resume()
        ordeal.next_user("after")
        assert engine.pool.checkedout() == 0
    assert ordeal.foreign == []
    full_check(engine)


@pytest.mark.parametrize("cut", [close, reset])
def test_a_connection_cut_in_the_handshake_costs_no_slot(db, proxy_to, cut):  # noqa: F811
    proxy = proxy_to(db.running)
    engine = db.engine(address=proxy.address)
    cuts = [cut(0), cut(1), cut(20), cut(60), cut(0, REQUEST), cut(5, REQUEST)]
    proxy.script = list(cuts)
    while proxy.script:
        with pytest.raises(exc.OperationalError):
            engine.connect()
        assert engine.pool.checkedout() == 0
    full_check(engine)


# Servers that do not answer


def outcomes(engine, users, seconds=10):
    """Have so many use the engine, each for so long at most, and tell how it went."""

    def use(tag):
        try:
            with Timeout(seconds), engine.connect() as connection:
                return "served" if ask(connection, tag) == tag else "foreign"
        except Timeout:
            return "late"
        except exc.TimeoutError:
            return "in line"
        except exc.DBAPIError as error:
            return "late" if isinstance(interruption(error), Timeout) else "refused"

    crowd = [spawn(use, f"t{n}") for n in range(users)]
    gevent.joinall(crowd, timeout=20)
    return [one.value for one in crowd]


def all_come_back(engine):
    until(lambda: engine.pool.checkedout() == 0)
    assert engine.pool.waiting() == 0


def test_a_frozen_server_costs_each_user_his_timeout_and_no_slot(db):  # noqa: F811
    engine = db.engine(pool_size=2, pool_timeout=0.05)
    full_check(engine)
    db.running.freeze()
    try:
        for what in ("idle connections", "connecting"):
            got = outcomes(engine, 6, 0.1)
            assert set(got) == {"late", "in line"}, what
            all_come_back(engine)
    finally:
        db.running.thaw()
    full_check(engine)


def test_a_ping_on_a_frozen_server_costs_no_slot(db):  # noqa: F811
    engine = db.engine(pool_size=2, pool_pre_ping=True)
    full_check(engine)
    db.running.freeze()
    try:
        assert outcomes(engine, 6, 0.1) == ["late"] * 6
        all_come_back(engine)
    finally:
        db.running.thaw()
    full_check(engine)


@pytest.mark.parametrize("where", ["connecting", "in a query"])
def test_a_black_hole_costs_each_user_his_timeout_and_no_slot(db, proxy_to, where):  # noqa: F811
    proxy = proxy_to(db.running)
    engine = db.engine(address=proxy.address, pool_size=2)
    if where == "in a query":
        full_check(engine)
        for link in proxy.links:
            link.fault = hang(len(link.request), REQUEST)
    proxy.fault = black_hole
    assert outcomes(engine, 6, 0.1) == ["late"] * 6
    all_come_back(engine)
    proxy.fault = passing
    proxy.settled()
    full_check(engine)


def test_a_refusing_server_is_told_to_all_in_line(db, proxy_to):  # noqa: F811
    proxy = proxy_to(db.running)
    engine = db.engine(address=proxy.address)
    proxy.refuse()
    assert outcomes(engine, 6) == ["refused"] * 6
    all_come_back(engine)
    proxy.listen()
    full_check(engine)


@pytest.mark.parametrize("pre_ping", [True, False])
def test_connections_that_the_server_has_closed_for_idleness(db, proxy_to, pre_ping):  # noqa: F811
    """With pre_ping nobody notices; without it one user does, and has the others replaced."""
    proxy = proxy_to(db.running)
    engine = db.engine(address=proxy.address, pool_size=3, pool_pre_ping=pre_ping)
    impatient = dict([db.impatient])

    @event.listens_for(engine, "do_connect")
    def connect(dialect, record, arguments, options):
        options.update(impatient)

    for connection in [engine.connect() for _ in range(3)]:
        connection.close()
    impatient.clear()
    proxy.settled()
    assert engine.pool.checkedin() == 3
    got = [*outcomes(engine, 1), *outcomes(engine, 1), *outcomes(engine, 5)]
    assert got == ["served" if pre_ping else "refused", *["served"] * 6]
    full_check(engine)


# Forks


@pytest.mark.parametrize("place", ["new", "old"])
def test_three_children_born_while_the_parent_connects_and_waits(db, place):  # noqa: F811
    """They have a copy of the greenlet that connects, which read the parent's handshake."""
    engine = db.engine(pool_size=3, pool_timeout=20)
    held = [engine.connect() for _ in range(2)]
    if place == "old":
        with closing(engine.raw_connection()) as raw:
            raw.invalidate()

    def use(tag):
        with engine.connect() as connection:
            return ask(connection, tag) == tag

    def child(name):
        until(connecting.ready)  # the copy
        own = [spawn(use, f"{name}-{n}") for n in range(10)]
        gevent.joinall(own, timeout=20)
        return [isinstance(connecting.exception, NotInUse), [one.value for one in own]]

    db.running.freeze()
    try:
        connecting = spawn(use, "connecting")
        until(lambda: list(_fork._sockets_of(connecting)))
        settle()
        waiting = [spawn(use, f"waiting-{n}") for n in range(5)]
        settle()
        assert engine.pool.waiting() == 5
        children = [Child(lambda n=n: child(f"child{n}"), gevent.os.fork) for n in range(3)]
    finally:
        db.running.thaw()
    assert connecting.get(timeout=10)
    assert [ask(connection, "mine") for connection in held] == ["mine"] * 2
    for connection in held:
        connection.close()
    gevent.joinall(waiting, timeout=10)
    assert [one.value for one in waiting] == [True] * 5
    assert [one.result() for one in children] == [[True, [True] * 10]] * 3
    full_check(engine)
