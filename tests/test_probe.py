"""The look at an idle socket: what it sees, and that it neither waits nor switches."""

import select
import socket
import ssl
import threading
from timeit import repeat

import gevent.socket
import gevent.ssl
import pytest

from gpools.adapters._probe import quiet
from tests.switching import high_fds, switches  # noqa: F401
from tests.tls import TlsServer, make_certificate
from tests.waiting import until


def readable(sock):
    """Tell whether the kernel has anything for *sock*, the end included."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


@pytest.fixture(params=[socket, gevent.socket], ids=["plain", "gevent"])
def ends(request):
    one, two = request.param.socketpair()
    yield one, two
    one.close()
    two.close()


def test_an_idle_socket_is_quiet(ends):
    assert quiet(ends[0])
    assert quiet(ends[0])


def test_a_byte_that_nobody_asked_for_is_not(ends):
    ends[1].sendall(b"x")
    assert not quiet(ends[0])
    assert ends[0].recv(10) == b"x"  # and it was not read
    assert quiet(ends[0])


def test_a_closed_peer_is_not(ends):
    ends[1].close()
    assert not quiet(ends[0])


def test_a_peer_that_will_send_no_more_is_not(ends):
    ends[1].shutdown(socket.SHUT_WR)
    assert not quiet(ends[0])


def test_a_reset_connection_is_not():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
        two.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        two.close()
        assert not quiet(one)
        one.close()


def test_a_closed_socket_is_not(ends):
    ends[0].close()
    assert not quiet(ends[0])


def test_urgent_data_is_not():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
        two.send(b"x", socket.MSG_OOB)
        assert not quiet(one)
        one.close()
        two.close()


def test_no_look_switches(ends):
    with switches() as count:
        quiet(ends[0])
        ends[1].sendall(b"x")
        quiet(ends[0])
        ends[1].close()
        quiet(ends[0])
    assert count() == 0


def test_a_look_takes_less_than_a_byte_there_and_back():
    """About half of it, where nothing is between the two ends: a microsecond."""
    one, two = socket.socketpair()

    def there_and_back():
        one.send(b"x"), two.recv(1), two.send(b"x"), one.recv(1)

    def least(act):
        return min(repeat(act, number=100, repeat=50))

    assert least(lambda: quiet(one)) < least(there_and_back)
    one.close()
    two.close()


@pytest.mark.usefixtures("high_fds")
def test_file_descriptors_that_select_does_not_know():
    one, two = socket.socketpair()
    assert one.fileno() > 1023
    assert quiet(one)
    two.sendall(b"x")
    assert not quiet(one)
    one.close()
    two.close()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def tls(request, certificate):
    with TlsServer(*certificate, version=ssl.TLSVersion[request.param]) as server:
        server.version = request.param
        yield server


@pytest.fixture
def client(tls, certificate):
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate[0])
    sock = context.wrap_socket(
        gevent.socket.create_connection(("127.0.0.1", tls.port)), server_hostname="localhost"
    )
    until(lambda: tls.connections)
    yield sock
    sock.close()


@pytest.mark.parametrize("timeout", [None, 30])
def test_session_tickets_are_no_answer(tls, client, timeout):
    """A healthy TLS 1.3 connection is readable once the server has sent its tickets."""
    client.settimeout(timeout)
    if tls.version == "TLSv1_3":
        until(lambda: readable(client))
    with switches() as count:
        assert quiet(client)
        assert quiet(client)
    assert count() == 0
    client.sendall(b"GET /mine HTTP/1.1\r\n\r\n")
    assert client.recv(1000).endswith(b"/mine")


def test_a_byte_behind_the_tickets_is_seen(tls, client):
    tls.connections[0].sendall(b"foreign")
    until(lambda: not quiet(client))


def test_the_rest_of_a_record_that_was_read_in_part_is_seen(tls, client):
    """The kernel has nothing more, but OpenSSL has."""
    client.sendall(b"GET /mine HTTP/1.1\r\n\r\n")
    assert client.recv(5) == b"HTTP/"
    assert not readable(client)
    with switches() as count:
        assert not quiet(client)
    assert count() == 0
    client.recv(1000)
    assert quiet(client)


def test_a_close_behind_the_tickets_is_seen(tls, client):
    tls.connections[0].shutdown(socket.SHUT_RDWR)
    until(lambda: not quiet(client))


@pytest.mark.parametrize("timeout", [None, 3600])
def test_a_tls_socket_that_blocks_is_not_waited_for(certificate, timeout):
    """The stdlib's read waited, for its whole timeout, for what comes after the tickets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    accepted = []

    def serve():
        accepted.append(context.wrap_socket(listener.accept()[0], server_side=True))

    server = threading.Thread(target=serve)
    server.start()
    trusting = ssl.create_default_context(cafile=certificate[0])
    sock = trusting.wrap_socket(
        socket.create_connection(listener.getsockname()), server_hostname="localhost"
    )
    server.join()
    sock.settimeout(timeout)
    until(lambda: readable(sock))
    assert quiet(sock)
    assert sock.gettimeout() == timeout
    accepted[0].sendall(b"foreign")
    until(lambda: not quiet(sock))
    for end in (sock, accepted[0], listener):
        end.close()
