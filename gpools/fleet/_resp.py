"""RESP3, as far as a link needs it: commands out, replies and pushes in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Push", "Replies", "ServerError", "packed", "written"]


class ServerError(Exception):
    """An error reply."""


class Push(list[Any]):
    """What the server says unasked: kind, channel, payload."""


class _Incomplete(Exception):
    pass


class _Open:
    """A reply of several, of which some have not come yet."""

    def __init__(self, count: int, close: Callable[[list[Any]], Any]) -> None:
        self.count, self.close = count, close
        self.parts: list[Any] = []


def packed(*words: bytes | str | int) -> bytes:
    """Write one command."""
    return b"*%d\r\n%b" % (len(words), written(words))


def written(words: Iterable[bytes | str | int]) -> bytes:
    """Write some words of a command."""
    parts = []
    for word in words:
        if not isinstance(word, bytes):
            word = b"%d" % word if isinstance(word, int) else word.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


def _as_dict(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Replies:
    """Cuts a stream of bytes into replies."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0
        self._open: list[_Open] = []  # the innermost one last; nothing is read twice

    def feed(self, data: bytes) -> list[Any]:
        """Take the next bytes and return all replies that are complete now."""
        self._bytes = self._bytes[self._at :] + data if self._at < len(self._bytes) else data
        self._at = 0
        replies = []
        try:
            while self._at < len(self._bytes):
                begun = self._at
                reply = self._one()
                if type(reply) is _Open:
                    if reply.count:
                        self._open.append(reply)
                        continue
                    reply = reply.close([])
                while self._open:
                    outer = self._open[-1]
                    outer.parts.append(reply)
                    if len(outer.parts) < outer.count:
                        break
                    reply = self._open.pop().close(outer.parts)
                else:
                    replies.append(reply)
        except _Incomplete:
            self._at = begun
        return replies

    def _one(self) -> Any:
        data, begin = self._bytes, self._at
        end = data.find(b"\r\n", begin)
        if end < 0:
            raise _Incomplete
        kind, rest = data[begin : begin + 1], data[begin + 1 : end]
        self._at = end + 2
        if kind == b"$":
            return self._blob(int(rest))
        if kind == b":":
            return int(rest)
        if kind == b">":
            return _Open(int(rest), Push)
        if kind == b"+":
            return rest
        if kind == b"-":
            return ServerError(rest.decode(errors="replace"))
        if kind in b"*~":
            return _Open(int(rest), list) if rest != b"-1" else None
        if kind == b"%":
            return _Open(2 * int(rest), _as_dict)
        if kind == b"_":
            return None
        if kind == b",":
            return float(rest)
        if kind == b"#":
            return rest == b"t"
        if kind == b"=":
            return self._blob(int(rest))[4:]
        raise ServerError(f"a reply that begins with {data[begin : begin + 20]!r}")

    def _blob(self, length: int) -> Any:
        if length < 0:
            return None
        end = self._at + length
        if len(self._bytes) < end + 2:
            raise _Incomplete
        blob = self._bytes[self._at : end]
        self._at = end + 2
        return blob
