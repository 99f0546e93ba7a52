"""What a client keeps in slots of its class, where vars() does not show it."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from types import MemberDescriptorType
from typing import Any

_UNSET = object()

Kept = tuple[tuple[MemberDescriptorType, Any], ...]


def kept_in_slots(item: object) -> Kept:
    """Return the slots of *item* with what is in them; none for most."""
    return tuple(
        (slot, copied(_value(slot, item)))
        for ancestor in type(item).__mro__
        for slot in vars(ancestor).values()
        if isinstance(slot, MemberDescriptorType)
    )


def give_back(item: object, kept: Kept) -> None:
    """Fill the slots of *item* as they were."""
    for slot, value in kept:
        if value is not _UNSET:
            slot.__set__(item, copied(value))
        elif _value(slot, item) is not _UNSET:
            slot.__delete__(item)


def _value(slot: MemberDescriptorType, item: object) -> Any:
    with suppress(AttributeError):
        return slot.__get__(item)
    return _UNSET


def copied(value: Any) -> Any:
    """Return *value*, or a copy where a user could change it in place."""
    return copy(value) if isinstance(value, (list, dict, set)) else value
