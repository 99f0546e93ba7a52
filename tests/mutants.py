"""Broken pools, each wrong in one way, for tests that must find them.

A mutant is gpools, imported once more, with a few words of one module replaced.
The words must stand there exactly once; else the mutant is stale, and says so.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import PathFinder, SourceFileLoader

__all__ = ["MUTANTS", "Mutant", "StaleMutant", "load"]


class StaleMutant(AssertionError):
    """The code has changed, and the mutant must be told how."""


@dataclass(frozen=True)
class Mutant:
    """*changes* are pairs of old and new words in `gpools.<module>`.

    *scenario* names the one of `tests.test_every_interleaving` that finds it.
    """

    name: str
    scenario: str
    module: str
    changes: tuple

    def apply(self, source):
        for old, new in self.changes:
            times = source.count(old)
            if times != 1:
                raise StaleMutant(
                    f"mutant {self.name!r} is stale: {old!r} stands {times} times in "
                    f"gpools/{self.module}.py; repair it in tests/mutants.py"
                )
            source = source.replace(old, new)
        return source


class MutatingLoader(SourceFileLoader):
    mutant = None

    def get_code(self, name):
        # Under a file name of its own, so that coverage does not count it.
        source = self.mutant.apply(self.get_source(name))
        return compile(source, f"<mutant: {self.mutant.name}>", "exec", dont_inherit=True)


class MutatingFinder:
    def __init__(self, mutant):
        self.mutant = mutant

    def find_spec(self, name, path=None, target=None):
        if name != f"gpools.{self.mutant.module}":
            return None
        spec = PathFinder.find_spec(name, path)
        spec.loader = MutatingLoader(name, spec.origin)
        spec.loader.mutant = self.mutant
        return spec


def forget_gpools():
    ours = {n: m for n, m in sys.modules.items() if n == "gpools" or n.startswith("gpools.")}
    for name in ours:
        del sys.modules[name]
    return ours


def load(mutant):
    """Return a package of its own that is gpools with the mutant's changes."""
    finder = MutatingFinder(mutant)
    original = forget_gpools()
    sys.meta_path.insert(0, finder)
    try:
        return import_module("gpools")
    finally:
        sys.meta_path.remove(finder)
        forget_gpools()
        sys.modules.update(original)


def mutant(module, name, scenario, *changes):
    return Mutant(name, scenario, module, changes)


def line(*what):
    return mutant("_line", *what)


def pool(*what):
    return mutant("pool", *what)


def connection(*what):
    return mutant("connection", *what)


MUTANTS = [
    line(
        "a slot given up wakes nobody",
        "plain, create fails",
        ("self.size -= 1\n        self.wake()", "self.size -= 1"),
    ),
    line(
        "who dies in line stays in line",
        "plain, three share one",
        ("self.waiters.pop(me, None)", "pass"),
    ),
    line(
        "a stray switch is taken for a grant",
        "plain, a stray switch",
        ("if me not in self.waiters:", "if True:"),
    ),
    line(
        "the served does not see to the next",
        "plain, grows",
        ("self.wake()  # for the next in line", "pass  # for the next in line"),
    ),
    line(
        "only the first in line hears of the close",
        "closes on a line",
        ("self.wake()\n            first.throw", "first.throw"),
    ),
    line(
        "newcomers overtake the line",
        "plain, a greedy loop",
        ("if first or not self.waiters:", "if True:"),
    ),
    line(
        "the last in line is served first",
        "plain, three share one",
        (
            "popitem(last=False)\n            self.wake()  #",
            "popitem()\n            self.wake()  #",
        ),
    ),
    line(
        "one item more than max_size",
        "plain, three share two",
        ("if self.size < self.limit:", "if self.size <= self.limit:"),
    ),
    line(
        "a slot is not counted when it is taken",
        "plain, create is slow",
        ("self.size += 1\n                return SLOT", "return SLOT"),
    ),
    line(
        "the hub serves once and never again",
        "plain, three share one",
        ("self._scheduled = False\n        if", "if"),
    ),
    line(
        "whose item was dead goes to the end of the line",
        "dead items, two slots",
        ("self.waiters.move_to_end(me, last=False)", "pass"),
    ),
    line(
        "served and still in line",
        "plain, three share one",
        (
            "first, _ = self.waiters.popitem(last=False)\n            self.wake()  #",
            "first = next(iter(self.waiters))\n            self.wake()  #",
        ),
    ),
    line(
        "choosing and waking are two acts",
        "plain, three share one",
        ("first.switch(granted)", "self._hub.loop.run_callback(first.switch, granted)"),
    ),
    line(
        "two are served for one item",
        "plain, grows",
        (
            "first.switch(granted)",
            "second = next(iter(self.waiters), None)\n"
            "            first.switch(granted)\n"
            "            if self.waiters.pop(second, 1) is None: second.switch(granted)",
        ),
    ),
    pool(
        "a killed create keeps its slot",
        "plain, create is slow",
        ("except BaseException:\n            # Whatever", "except Exception:\n            #"),
    ),
    pool(
        "a failed create wakes nobody",
        "plain, create fails",
        ("self._line.vacate()\n            raise", "self._line.size -= 1\n            raise"),
    ),
    pool(
        "a dropped item keeps its slot",
        "plain, shrinks",
        ("line.vacate()\n            return", "return"),
    ),
    pool(
        "a larger size wakes nobody",
        "plain, grows",
        ("self._line.limit = new_size\n        self._line.wake()", "self._line.limit = new_size"),
    ),
    pool(
        "a put wakes nobody",
        "plain, three share one",
        ("if line.waiters:\n            line.wake()", ""),
    ),
    pool(
        "get takes an idle item past the line",
        "plain, a greedy loop",
        ("if line.idle and not line.waiters:", "if line.idle:"),
    ),
    pool(
        "the timer of get goes on after it",
        "plain, get times out",
        ("timer.close()", "pass"),
    ),
    pool(
        "an item() block that is killed keeps its item",
        "plain, three share one",
        ('self._pool.put(cast("T", item))', 'kind or self._pool.put(cast("T", item))'),
    ),
    connection(
        "a create that is killed keeps its slot",
        "all verbs switch",
        ("except BaseException:\n            # Whatever", "except Exception:\n            #"),
    ),
    connection(
        "a reset that is killed loses the item",
        "all verbs switch",
        (
            "self.reset(item)\n        except BaseException",
            "self.reset(item)\n        except Exception",
        ),
    ),
    connection(
        "a check that is killed loses the item",
        "all verbs switch",
        (
            "check(entry.item)\n        except BaseException",
            "check(entry.item)\n        except Exception",
        ),
    ),
    connection(
        "an item whose check said no goes out",
        "check fails",
        ("if not sound or self.closed:", "if self.closed:"),
    ),
    connection(
        "an item goes out of a pool closed meanwhile",
        "closes",
        ("if not sound or self.closed:", "if not sound:"),
    ),
    connection(
        "an item made for a pool closed meanwhile goes out",
        "closes",
        ("if line.refusal is not None:  # closed", "if False:  # closed"),
    ),
    connection(
        "who finds a dead item loses its turn",
        "dead items, two slots",
        ("first = True", "first = False"),
    ),
    connection(
        "an interrupted item is put back",
        "an error that is forgiven",
        ("if not isinstance(error, Exception):\n            return False", ""),
    ),
    connection(
        "an item is destroyed twice",
        "by hand",
        (
            "aside(partial(self._destroy, entry))",
            "aside(partial(self.destroy, entry.item)); aside(partial(self._destroy, entry))",
        ),
    ),
    connection(
        "a slot comes free before its item is gone",
        "all verbs switch",
        ("entry.state = State.GONE", "entry.state = State.GONE; self._vacate()"),
        ("del self._book.going[id(entry.item)]\n            self._vacate()", "pass"),
    ),
    connection(
        "the error of a destroy costs its slot",
        "destroy fails",
        (
            "finally:\n            del self._book.going",
            "else:\n            del self._book.going",
        ),
    ),
    connection(
        "a destroy that never ends is not cut off",
        "destroy is cut off",
        ("with Timeout(self._book.destroy_timeout):", "with Timeout(None):"),
    ),
    connection(
        "an item is destroyed in its user's greenlet",
        "by hand",
        (
            "aside(partial(self._destroy_each, entries))",
            "[self._destroy(entry) for entry in entries]",
        ),
    ),
    connection(
        "close lets everybody in line wait",
        "closes",
        ('is closed")\n        line.wake()', 'is closed")'),
    ),
    connection(
        "close forgets the idle items",
        "closes",
        ("idle, line.idle = line.idle, deque()", "idle, line.idle = (), deque()"),
    ),
    connection(
        "a closed pool keeps what comes back",
        "closes",
        ("if line.refusal is not None or line.size", "if line.size"),
    ),
    connection(
        "a smaller size keeps the idle surplus",
        "shrinks",
        ("for _ in range(surplus)", "for _ in range(0)"),
    ),
    connection(
        "a smaller size keeps the surplus that comes back",
        "shrinks",
        ("line.size - len(self._book.going) > line.limit", "False"),
    ),
    connection(
        "a put is taken for items that are not out",
        "put twice",
        ("if entry.state is not State.IN_USE:", "if entry.state is State.GONE:"),
    ),
    connection(
        "an item being reset can be put again",
        "put twice",
        ("entry.state = State.BETWEEN\n        return entry", "return entry"),
    ),
    connection(
        "an item that comes back wakes nobody",
        "all verbs switch",
        ("if line.waiters:\n            line.wake()", ""),
    ),
    connection(
        "a second kill, in fit_after, loses the item",
        "an error that is forgiven",
        ("pool.discard(entry.item)\n            raise", "raise"),
    ),
    connection(
        "a block puts what was discarded inside",
        "discarded inside",
        ("if entry.state is State.GONE:  #", "if False:  #"),
    ),
    connection(
        "a block puts back the next holder's item",
        "put back inside",
        (" or entry.uses != self._uses:", ":"),
    ),
    connection(
        "more stand in line than max_waiting",
        "max_waiting",
        ("len(line.waiters) >= book.max_waiting", "len(line.waiters) > book.max_waiting"),
    ),
    mutant(
        "_aside",
        "a slow act comes back to whoever started it",
        "discards and goes on",
        ("other.parent = hub", "pass"),
    ),
    mutant(
        "_aside",
        "the way back is taken twice",
        "discards and goes on",
        ("back.stop()", "pass"),
    ),
]
