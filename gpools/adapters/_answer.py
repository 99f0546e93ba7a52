"""Read the answers of http.client in less time.

Where a connection goes from greenlet to greenlet, what a request runs through is
in no cache of the processor any more, and counts by how much it is.
"""

from __future__ import annotations

import re
from email.parser import Parser
from functools import cached_property
from http import client
from http.client import HTTPMessage, HTTPResponse
from io import BytesIO
from socket import MSG_PEEK
from types import FunctionType
from typing import IO, Any

from gpools.adapters._short_send import ShortSender, short_send

# A header on one line, and nothing but such.  What says that there are further
# messages inside is left to the parser, which looks for them.
_HEADER = r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?![ \t])([^\r\n]*)\r\n"
_NO_PART = r"(?!(?i:content-type:\s*(?:multipart|message)/))"
_PLAIN = re.compile(rf"(?:{_NO_PART}{_HEADER})*\r\n")
_header = re.compile(_HEADER)

# The head of an answer that is followed by its body, of a length that it tells, and
# then by the next answer.
_GOES_ON = r"(?!(?i:transfer-encoding:|connection:[^\r\n]*close))"
_HEAD = re.compile(
    r"HTTP/1\.1 (?!204|304)([2-5]\d\d) ([^\r\n]*)\r\n"
    rf"((?:{_GOES_ON}{_NO_PART}{_HEADER}){{1,99}})\r\n"
)
_length = re.compile(r"\n(?i:content-length):[ \t]*(\d{1,4}(?=\r\n))?")
_MOST = 8192  # bytes of an answer that is read at once


def parse_headers(file: IO[bytes], *args: Any, **kwargs: Any) -> HTTPMessage:
    """Return what `http.client.parse_headers` has the parser of emails make.  May switch."""
    lines = client._read_headers(file, *args, **kwargs)  # type: ignore[attr-defined]
    text = b"".join(lines).decode("iso-8859-1")
    if _PLAIN.fullmatch(text) is None:
        return Parser(_class=HTTPMessage).parsestr(text)
    return _message(text)


def _message(text: str) -> HTTPMessage:
    message = HTTPMessage()
    for name, value in _header.findall(text):
        message.set_raw(name, value)
    message.set_payload("")
    return message


def _with_our_parser(function: FunctionType) -> Any:
    """Return *function* as it is, but for the `parse_headers` that it calls."""
    names = {**function.__globals__, "parse_headers": parse_headers}
    what = function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    made = FunctionType(*what)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


class Answer(HTTPResponse):
    """An `HTTPResponse` that is read in less time.

    What its connection is asked from then on is sent by one call of the system, and an
    answer that is there as a whole is read in one go.  It is looked at without
    being taken from the socket, so that http.client can read it as ever if
    anything about it is out of the usual.
    """

    # What http.client sets when it reads one, here of one that was read in one go.
    debuglevel = 0
    version = 11
    chunked = will_close = False
    chunk_left: Any = "UNKNOWN"

    _head: str | None = None  # the headers of one that was read in one go
    _body = b""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        self._made_of = short_send(sock), args, kwargs  # until it is clear which way it is read

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """Read all but the body.  Switches."""
        begun = self._head is not None or "_made_of" not in vars(self)
        if begun or args or kwargs or not self._read_at_once():
            self._begin(*args, **kwargs)

    _begin = _with_our_parser(HTTPResponse.begin)  # type: ignore[arg-type]

    def _read_status(self) -> Any:
        if "_made_of" in vars(self):
            sock, args, kwargs = vars(self).pop("_made_of")
            super().__init__(sock, *args, **kwargs)
        return super()._read_status()  # type: ignore[misc]

    def _read_at_once(self) -> bool:
        sock, debug, named = self._made_of
        method = named.get("method")
        if debug or method == "HEAD" or type(sock) is not ShortSender:  # but TLS, say
            return False
        data = sock.recv(_MOST, MSG_PEEK)
        text = data.decode("iso-8859-1")
        found = _HEAD.match(text)
        looked_at = len(vars(self)) > 1  # meanwhile, and what was found is kept: nothing
        if found is None or looked_at:
            return False
        end = found.end()
        lengths = _length.findall(text, 0, end)
        if len(lengths) != 1 or not lengths[0] or len(data) != end + int(lengths[0]):
            return False
        sock.recv(len(data))
        self._method = method
        self.code = self.status = int(found[1])
        self.reason = found[2].strip()
        self.length = int(lengths[0])
        self._head = found[3]
        self._body = data[end:]
        return True

    # These take time to make, and are seldom asked for.

    @cached_property
    def headers(self) -> Any:  # type: ignore[override]
        return None if self._head is None else _message(self._head)

    @cached_property
    def msg(self) -> Any:  # type: ignore[override]
        return self.headers

    @cached_property
    def fp(self) -> Any:  # type: ignore[override]
        return None if self._head is None else _Body(self._body, vars(self).pop("_made_of")[0])

    def getheaders(self) -> list[tuple[str, str]]:
        """Return all headers, as pairs; never switches."""
        if self._head is None or "headers" in vars(self):
            return super().getheaders()
        return _header.findall(self._head)

    def read(self, amt: int | None = None) -> bytes:
        """Read the body, or *amt* bytes of it.  May switch."""
        everything = amt is None or (self.length is not None and amt >= self.length)
        if not everything or self._head is None or "fp" in vars(self):
            return super().read(amt)
        body, self._body = self._body, b""
        self.length = 0
        self.fp = None
        del self._made_of
        return body

    def __del__(self) -> None:
        # What was read to its end is closed, all but for a flag that nobody sees any more.
        if vars(self).get("fp") is not None:
            super().__del__()


class _Body(BytesIO):
    """A body in memory, which for the rest is like the file of a socket."""

    def __init__(self, body: bytes, sock: ShortSender) -> None:
        super().__init__(body)
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def peek(self, size: int = 0) -> bytes:
        return self.getvalue()[self.tell() :]


def read_quickly(connection: Any) -> None:
    """Have *connection* make an `Answer` of each, unless it has a kind of its own."""
    if connection.response_class is HTTPResponse:
        connection.response_class = Answer
