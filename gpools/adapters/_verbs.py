"""The verbs that a program gives to an adapter by keyword."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

from gpools.connection import ConnectionPool

Verb = Callable[[Any], Any]


def join_verbs(
    pool: ConnectionPool[Any], adapter: type[ConnectionPool[Any]], settings: dict[str, Any]
) -> bool:
    """Have the verbs in *settings* called beside those of *pool*; tell whether it has no own check.

    In the place of the adapter's they would let through what one user has left
    to the next.  Its check does not wait, so it has no timer unless one is given.
    """
    quick = settings.get("check") is None and type(pool).check is adapter.check
    if quick:
        settings.setdefault("check_timeout", None)
    for verb, join in (("check", _check), ("reset", _reset), ("destroy", _destroy)):
        given = settings.get(verb)
        if callable(given):  # else the core complains
            settings[verb] = partial(join, given, _own(pool, verb))
    return quick


def _own(pool: ConnectionPool[Any], verb: str) -> Verb:
    own: Any = getattr(pool, verb)
    if getattr(own, "__self__", None) is not pool:
        return own  # type: ignore[no-any-return]  # a static one
    # Weakly, for the pool will have this, and is to go when nobody uses it.
    return partial(_call, own.__func__, ref(pool))


def _call(own: Callable[..., Any], pool: ref[ConnectionPool[Any]], item: Any) -> Any:
    return own(pool(), item)


def _check(given: Verb, own: Verb, item: Any) -> Any:
    return own(item) and given(item)


def _reset(given: Verb, own: Verb, item: Any) -> None:
    own(item)
    given(item)
    own(item)  # what that has left, too


def _destroy(given: Verb, own: Verb, item: Any) -> None:
    try:
        given(item)
    finally:
        own(item)
