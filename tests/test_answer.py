"""Answers that are read in less time are what http.client would have made of them."""

import gc
import io
import random
from http import client
from http.client import HTTPException, HTTPResponse

import gevent
import pytest
from gevent import Timeout, socket

from gpools.adapters._answer import Answer, parse_headers, read_quickly
from tests.waiting import settle, spawn

USUAL = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX: a, b\r\nContent-Length: 9\r\n\r\n"
    b"one\ntwo\nx"
)

HEADERS = [
    b"Content-Length: 9",
    b"content-length:9",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: 9 ",
    b"Content-Length: nine",
    b"Content-Length: \xb2",
    b"Content-Length: -9",
    b"Content-Length : 9",
    b"Content-Length:",
    b"Connection: keep-alive",
    b"Connection: Close",
    b"CONNECTION: upgrade, close",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding: identity",
    b"Content-Type: text/html; charset=utf-8",
    b"Content-Type: multipart/mixed; boundary=x",
    b"content-type:\t multipart/mixed",
    b"Content-Type: \xa0multipart/mixed",
    b"Content-Type: message/rfc822",
    b"Set-Cookie: a=b",
    b"Set-Cookie: c=d; Path=/ ",
    b"X-Empty:",
    b"X-Latin: \xe9\x85\xad",
    b"X-Control: a\x0bb\x0cc\x1cd\x00e",
    b"X-Return: a\rb",
    b"X-Spaces: \t  a  b\t ",
    b"X-Folded: a\r\n b\r\n\tc",
    b" X-Begins-With-A-Space: a",
    b"From nobody",
    b"From : nobody",
    b"no colon",
    b": no name",
    b"X(Y): not a token",
    b"Keep-Alive: timeout=5",
    b"X-Long: " + b"x" * 9000,
    b"X-Blank: " + b" " * 5000,
]
STATUS = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 404 Not Found",
    b"HTTP/1.1 503  Service   Unavailable ",
    b"HTTP/1.1 200 ",
    b"HTTP/1.1 200",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
    b"HTTP/1.1 103 Early Hints",
    b"HTTP/1.1 999 What",
    b"HTTP/2 200 OK",
    b"ICY 200 OK",
    b"HTTP/1.1 20 OK",
    b"HTTP/1.1 200 \xa0 OK",
    b"",
]
BODIES = [
    b"nine byte",
    b"nine byte",
    b"",
    b"short",
    b"more than nine bytes",
    b"4\r\nfour\r\n0\r\n\r\n",
]


def some_answer(chance):
    """Make up an answer; each part of it is the usual one more often than not."""
    headers = chance.sample(HEADERS, chance.choice([0, 1, 1, 1, 2, 3, 5]))
    if chance.random() < 0.8:
        headers.insert(chance.randrange(len(headers) + 1), b"Content-Length: 9")
    if chance.random() < 0.1:
        headers += [b"X-%d: x" % n for n in range(chance.choice([97, 98, 99, 100]))]
    end = chance.choice([b"\r\n"] * 20 + [b"\n"])
    status = chance.choice(STATUS) if chance.random() < 0.4 else STATUS[0]
    body = chance.choice(BODIES) if chance.random() < 0.3 else BODIES[0]
    return end.join([status, *headers, b"", b""]) + body


def parts(message):
    """Tell all that there is of a message."""
    payload = message.get_payload()
    if message.is_multipart():
        payload = [parts(part) for part in payload]
    defects = [(type(defect), str(defect)) for defect in message.defects]
    return {**vars(message), "defects": defects, "_payload": payload}


def looked_at(answer):
    names = "status code reason version debuglevel will_close length chunked chunk_left closed"
    told = {name: getattr(answer, name) for name in names.split()}
    return told, answer.isclosed(), parts(answer.headers), answer.msg is answer.headers


def came_of(kind, data, method, read, look):
    """Have an answer of *kind* read *data* from a socket; return all that can be told of it.

    With *look*, look at it before its body is read, too.
    """
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    answer = kind(ours, method=method)
    try:
        answer.begin()
        told = [answer.status, answer.getheaders()]
        told += [looked_at(answer)] if look else []
        told += [read(answer), looked_at(answer), answer.getheaders()]
    except (HTTPException, ValueError) as error:
        told = [type(error), str(error)]
    finally:
        answer.close()
        ours.close()
        theirs.close()
    return told


def into(answer):
    room = bytearray(4)
    return answer.readinto(room), bytes(room), answer.read()


READS = {
    "all": lambda answer: (answer.read(), answer.read()),
    "by three": lambda answer: (answer.read(3), answer.read(3), answer.length, answer.read()),
    "just so many": lambda answer: (answer.read(9), answer.isclosed(), answer.read(9)),
    "more": lambda answer: (answer.read(1000), answer.read(1000)),
    "none": lambda answer: (answer.read(0), answer.isclosed(), answer.read()),
    "lines": lambda answer: (answer.readline(), answer.readlines()),
    "iterated": list,
    "read1": lambda answer: (answer.read1(2), answer.peek()[:5], answer.read1(-1)),
    "readinto": into,
    "buffered": lambda answer: io.BufferedReader(answer).read(),
    "text": lambda answer: io.TextIOWrapper(answer, "latin-1").read(),
    "in a with block": lambda answer: answer.__enter__().read(),
    "not at all": lambda answer: None,
}


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize("read", READS)
def test_the_usual_answer_is_as_ever(read, look):
    expected = came_of(HTTPResponse, USUAL, "GET", READS[read], look)
    assert came_of(Answer, USUAL, "GET", READS[read], look) == expected


@pytest.mark.parametrize("seed", range(8))
def test_any_answer_is_as_ever(seed):
    chance = random.Random(seed)
    at_once = []

    class Counted(Answer):
        def _read_at_once(self):
            at_once.append(super()._read_at_once())
            return at_once[-1]

    for _ in range(300):
        data, method = some_answer(chance), chance.choice(["GET", "GET", "GET", "POST", "HEAD"])
        read = READS[chance.choice(["all", "by three", "lines"])]
        look = chance.random() < 0.5
        expected = came_of(HTTPResponse, data, method, read, look)
        assert came_of(Counted, data, method, read, look) == expected, data
    assert 5 < at_once.count(True) < 200


@pytest.mark.parametrize("seed", range(4))
def test_any_headers_are_parsed_as_ever(seed):
    chance = random.Random(seed)
    for _ in range(300):
        data = some_answer(chance).partition(b"\n")[2]
        try:
            expected = client.parse_headers(io.BytesIO(data))
        except HTTPException as error:
            with pytest.raises(type(error), match=str(error)):
                parse_headers(io.BytesIO(data))
        else:
            assert parts(parse_headers(io.BytesIO(data))) == parts(expected), data


@pytest.fixture
def ends():
    one, two = socket.socketpair()
    yield one, two
    one.close()
    two.close()


def begun(sock):
    answer = Answer(sock, method="GET")
    answer.begin()
    return answer


@pytest.mark.parametrize("cut", [1, 20, 60, len(USUAL) - 1])
def test_an_answer_that_comes_in_pieces(ends, cut):
    reader = spawn(lambda: begun(ends[0]).read())
    ends[1].sendall(USUAL[:cut])
    settle()
    ends[1].sendall(USUAL[cut:])
    assert reader.get(timeout=5) == b"one\ntwo\nx"


def test_nothing_is_taken_of_an_answer_that_is_not_the_usual(ends):
    ends[1].sendall(USUAL.replace(b"200", b"204"))
    assert begun(ends[0]).status == 204
    ends[1].sendall(USUAL)
    assert begun(ends[0]).read() == b"one\ntwo\nx"


def test_an_answer_read_at_once_leaves_the_next_alone(ends):
    """It is read from a file of its own otherwise, and what that has taken too is gone."""
    ends[1].sendall(USUAL)
    first = begun(ends[0])
    ends[1].sendall(USUAL.replace(b"one", b"two"))
    assert begun(ends[0]).read() == b"two\ntwo\nx"
    assert first.read() == b"one\ntwo\nx"


def test_the_usual_answer_is_made_without_a_file_and_headers(ends):
    """To make these takes longer than all else of it."""
    ends[1].sendall(USUAL)
    answer = begun(ends[0])
    assert dict(answer.getheaders())["X"] == "a, b"
    assert answer.read() == b"one\ntwo\nx"
    assert "headers" not in vars(answer)
    assert vars(answer)["fp"] is None


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK"])
def test_to_begin_twice_reads_once(ends, head):
    ends[1].sendall(USUAL.replace(b"HTTP/1.1 200 OK", head))
    answer = begun(ends[0])
    with Timeout(5):
        answer.begin()
    assert answer.read() == b"one\ntwo\nx"


def test_an_answer_that_was_read_keeps_no_socket(ends):
    """Who keeps many answers would keep as many sockets."""
    for head in (b"HTTP/1.1 200 OK", b"HTTP/1.1  200 OK"):
        for amount in (None, 3, 1000):
            ends[1].sendall(USUAL.replace(b"HTTP/1.1 200 OK", head))
            answer = begun(ends[0])
            while answer.read(amount):
                pass
            assert ends[0] not in gc.get_referents(vars(answer), *vars(answer).values())


def test_what_is_asked_next_is_sent_by_one_call(ends, monkeypatch):
    """gevent's sendall() asks for the size of the system's buffer first."""
    ends[1].sendall(USUAL)
    begun(ends[0])
    monkeypatch.setattr(socket.socket, "getsockopt", None, raising=False)
    ends[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert ends[1].recv(100) == b"GET / HTTP/1.1\r\n\r\n"


def test_headers_can_be_changed(ends):
    ends[1].sendall(USUAL)
    answer = begun(ends[0])
    answer.headers["Y"] = "c"
    assert answer.getheaders()[-1] == ("Y", "c")


def test_an_unread_answer_has_the_number_of_its_socket(ends):
    ends[1].sendall(USUAL)
    assert begun(ends[0]).fileno() == ends[0].fileno()


def test_an_answer_can_be_looked_at_before_it_comes(ends):
    answer = Answer(ends[0], method="GET")
    beginning = spawn(answer.begin)
    settle()
    assert answer.headers is answer.msg is answer.fp is None
    ends[1].sendall(USUAL)
    beginning.get(timeout=5)
    assert not answer.isclosed()
    assert answer.getheader("X") == answer.msg["X"] == "a, b"
    assert answer.read() == b"one\ntwo\nx"


@pytest.mark.parametrize("end", [gevent.GreenletExit(), Timeout(0)])
def test_an_interrupted_wait_for_an_answer_ends_as_ever(ends, end):
    connection = client.HTTPConnection("127.0.0.1")
    connection.sock = ends[0]
    read_quickly(connection)
    connection.request("GET", "/")
    waiting = spawn(connection.getresponse)
    settle()
    waiting.kill(end)
    assert end in (waiting.value, waiting.exception)
    connection.close()
    assert ends[0].fileno() == -1


def test_an_answer_of_another_kind_stays_so():
    class Mine(HTTPResponse):
        pass

    connection = client.HTTPConnection("127.0.0.1")
    connection.response_class = Mine
    read_quickly(connection)
    assert connection.response_class is Mine


def test_to_debug_prints_as_ever(ends, capsys):
    ends[1].sendall(USUAL)
    Answer(ends[0], 1, method="GET").begin()
    assert "header: X: a, b" in capsys.readouterr().out
