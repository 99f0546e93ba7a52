"""RESP3, as far as a link needs it: commands out, replies and pushes in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["Push", "Replies", "ServerError", "packed", "written"]


class ServerError(Exception):
    """An error reply."""


class Push(list[Any]):
    """What the server says unasked: kind, channel, payload."""


class _Incomplete(Exception):
    pass


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


class Replies:
    """Cuts a stream of bytes into replies."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def feed(self, data: bytes) -> list[Any]:
        """Take the next bytes and return all replies that are complete now."""
        self._bytes = self._bytes[self._at :] + data if self._at < len(self._bytes) else data
        self._at = 0
        replies = []
        try:
            while self._at < len(self._bytes):
                begun = self._at
                replies.append(self._one())
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
            return Push(self._some(int(rest)))
        if kind == b"+":
            return rest
        if kind == b"-":
            return ServerError(rest.decode(errors="replace"))
        if kind in b"*~":
            return self._some(int(rest)) if rest != b"-1" else None
        if kind == b"%":
            return {self._one(): self._one() for _ in range(int(rest))}
        if kind == b"_":
            return None
        if kind == b",":
            return float(rest)
        if kind == b"#":
            return rest == b"t"
        if kind == b"=":
            return self._blob(int(rest))[4:]
        raise ServerError(f"a reply that begins with {data[begin : begin + 20]!r}")

    def _some(self, count: int) -> list[Any]:
        return [self._one() for _ in range(count)]

    def _blob(self, length: int) -> Any:
        if length < 0:
            return None
        end = self._at + length
        if len(self._bytes) < end + 2:
            raise _Incomplete
        blob = self._bytes[self._at : end]
        self._at = end + 2
        return blob
