"""RESP3, as far as a link needs it: commands out, replies and pushes in."""

from __future__ import annotations

from typing import Any

__all__ = ["Push", "Replies", "ServerError", "packed"]


class ServerError(Exception):
    """An error reply."""


class Push(list[Any]):
    """What the server says unasked: kind, channel, payload."""


class _Incomplete(Exception):
    pass


def packed(*words: bytes | str | int) -> bytes:
    """Write one command."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        if not isinstance(word, bytes):
            word = str(word).encode()
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

    def _line(self) -> bytes:
        end = self._bytes.find(b"\r\n", self._at)
        if end < 0:
            raise _Incomplete
        line = self._bytes[self._at : end]
        self._at = end + 2
        return line

    def _one(self) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return self._blob(int(rest))
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            return ServerError(rest.decode(errors="replace"))
        if kind == b">":
            return Push(self._some(int(rest)))
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
        raise ServerError(f"a reply that begins with {line[:20]!r}")

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
