"""Clients that keep what they have in slots, for the tests of the pools."""

__all__ = ["assert_slots_are_taken_back", "slotted"]


def slotted(client_class):
    """Make a subclass with a slot that is filled as a client is made, and another."""

    class Slotted(client_class):
        __slots__ = ("tags", "tenant")

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.tags = {"new"}

    return Slotted


def assert_slots_are_taken_back(pool):
    """Assert that a user's slots do not reach the next, whom *pool* gives the same client."""
    with pool.item() as first:
        pass
    for change in (set_all, delete_all, set_all):
        with pool.item() as client:
            assert client is first
            assert client.tags == {"new"}
            assert not hasattr(client, "tenant")
            change(client)


def set_all(client):
    client.tags.add("ann's")
    client.tenant = "ann"


def delete_all(client):
    del client.tags
