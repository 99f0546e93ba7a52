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


def fast(*what):
    return mutant("_fast", *what)


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
        (
            "self.wake()  # for the next, who",
            "pass  # for the next, who",
        ),
    ),
    line(
        "newcomers overtake the line",
        "plain, a greedy loop",
        ("if not self.waiters or arrived < next(iter(self.waiters.values())):", "if True:"),
    ),
    line(
        "the last in line is served first",
        "plain, three share one",
        (
            "first = next(iter(self.waiters))\n        if not first:",
            "first = next(reversed(self.waiters))\n        if not first:",
        ),
    ),
    line(
        "one item more than max_size",
        "plain, three share two",
        ("return self.size < self.limit and", "return self.size <= self.limit and"),
    ),
    line(
        "a slot is not counted when it is taken",
        "plain, create is slow",
        ("self.size += 1\n        if self.budget", "if self.budget"),
    ),
    line(
        "the hub serves once and never again",
        "plain, three share one",
        ("self._scheduled = False\n        if", "if"),
    ),
    line(
        "whose item was dead goes to the end of the line",
        "made aside, dead items",
        ("for waiter in (me, *reversed(earlier)):", "for waiter in ():"),
    ),
    line(
        "served and still in line",
        "plain, three share one",
        ("del self.waiters[first]\n            self.wake()", "self.wake()"),
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
    fast(
        "a dropped item keeps its slot",
        "plain, shrinks",
        ("line.vacate()\n            return", "return"),
    ),
    pool(
        "a larger size wakes nobody",
        "plain, grows",
        ("self._line.limit = new_size\n        self._line.wake()", "self._line.limit = new_size"),
    ),
    fast(
        "a put wakes nobody",
        "plain, three share one",
        ("if line.waiters:\n            line.wake()", ""),
    ),
    fast(
        "get takes an idle item past the line",
        "plain, a greedy loop",
        ("line.idle and not line.waiters:\n            return", "line.idle:\n            return"),
    ),
    mutant(
        "_within",
        "the timer of get goes on after it",
        "plain, get times out",
        ("timer.close()", "pass"),
    ),
    fast(
        "an item() block that is killed keeps its item",
        "plain, three share one",
        (
            "self._item = MISSING\n        self._pool.put",
            "self._item = MISSING\n        kind or self._pool.put",
        ),
    ),
    connection(
        "a create that is killed keeps its slot",
        "all verbs switch",
        (
            "except BaseException as error:\n            # Whatever ended",
            "except Exception as error:\n            # Whatever ended",
        ),
    ),
    fast(
        "a reset that is killed loses the item",
        "all verbs switch",
        (
            "self.reset(item)\n        except BaseException",
            "self.reset(item)\n        except Exception",
        ),
    ),
    fast(
        "a check that is killed loses the item",
        "all verbs switch",
        ('self._let_go("check", item)\n            raise', "raise"),
    ),
    fast(
        "an item whose check said no goes out",
        "check fails",
        (
            "if not sound:\n            self._doubt_all()",
            "if False:\n            self._doubt_all()",
        ),
    ),
    fast(
        "an item goes out of a pool closed meanwhile",
        "closes",
        (
            'return "closed" if self.closed else life.verdict(entry, monotonic())',
            "return life.verdict(entry, monotonic())",
        ),
    ),
    connection(
        "an item made for a pool closed meanwhile goes out",
        "closes",
        ("if line.refusal is not None:  # closed", "if False:  # closed"),
    ),
    fast(
        "who finds a dead item loses its turn",
        "dead items, two slots",
        ("arrived = begun\n", "arrived = monotonic()\n"),
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
            "going.append(partial(self._destroy,",
            "going.append(partial(self.destroy, item))\n"
            "                going.append(partial(self._destroy,",
        ),
    ),
    connection(
        "a slot comes free before its item is gone",
        "all verbs switch",
        ("entry.find = partial(same, item)  #", "self._vacate(line)  #"),
        (
            'self._vacate(line)\n        self._tell("destroyed", reason)',
            'self._tell("destroyed", reason)',
        ),
    ),
    connection(
        "the error of a destroy costs its slot",
        "destroy fails",
        ("finally:\n            del book.going", "else:\n            del book.going"),
    ),
    connection(
        "a destroy that never ends is not cut off",
        "destroy is cut off",
        ("with Timeout(book.destroy_timeout):", "with Timeout(None):"),
    ),
    connection(
        "an item is destroyed in its user's greenlet",
        "by hand",
        ("aside(partial(each_aside, going))", "[act() for act in going]"),
    ),
    connection(
        "close lets everybody in line wait",
        "closes",
        ("until it is destroyed\n        line.wake()", "until it is destroyed"),
    ),
    connection(
        "close forgets the idle items",
        "closes",
        ("self._let_go(reason, *idle)", "pass"),
    ),
    connection(
        "a closed pool keeps what comes back",
        "closes",
        (
            'if line.refusal is not None:\n            reason = "closed"',
            'if False:\n            reason = "closed"',
        ),
    ),
    connection(
        "a smaller size keeps the idle surplus",
        "shrinks",
        ('self._drop_longest_idle(line.size - len(book.going) - new_size, "surplus")', "pass"),
    ),
    connection(
        "a smaller size keeps the surplus that comes back",
        "shrinks",
        ("elif line.size - len(book.going) > line.limit:", "elif False:"),
    ),
    fast(
        "a put is taken for items that are not out",
        "put twice",
        ("if entry is None or entry.state is not IN_USE or", "if entry is None or"),
    ),
    fast(
        "an item being reset can be put again",
        "put twice",
        ("entry.state = BETWEEN\n    if book.count_holds", "if book.count_holds"),
    ),
    fast(
        "an item that comes back wakes nobody",
        "all verbs switch",
        ("if line.waiters:\n        line.wake()", ""),
    ),
    connection(
        "a second kill, in fit_after, loses the item",
        "an error that is forgiven",
        ("self.discard(item)\n            raise", "raise"),
    ),
    connection(
        "a block puts what was discarded inside",
        "discarded inside",
        (
            "if self._book.items.get(use._entry.key) is not use._entry:\n            return",
            "if False:\n            return",
        ),
    ),
    fast(
        "a block puts back the next holder's item",
        "put back inside",
        (" and self._entry.uses == self._uses", ""),
    ),
    fast(
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
    line(
        "a place is kept at the end of the line",
        "two dead items",
        ("place = greenlet()  # never runs", "place, arrived = greenlet(), monotonic()"),
    ),
    line(
        "a place that is given up wakes nobody",
        "a dead item while it grows",
        ("del self.waiters[place]\n        self.wake()", "del self.waiters[place]"),
    ),
    line(
        "one who is away is served",
        "a dead item while it grows",
        ("if not first:  # a place", "if False:  # a place"),
    ),
    fast(
        "a place is not given up by who is killed",
        "two dead items, three callers",
        (
            "finally:\n                line.give_up_place(place)",
            "except Exception:\n                raise\n"
            "            else:\n                line.give_up_place(place)",
        ),
    ),
    fast(
        "a place is kept for too long",
        "two dead items",
        (
            "finally:\n                line.give_up_place(place)",
            "finally:\n                spawn_raw(spawn_raw, line.give_up_place, place)",
        ),
    ),
    fast(
        "a check that hangs is not cut off",
        "check hangs",
        ("within(self._book.check_timeout, ", "within(None, "),
    ),
    connection(
        "the slot of a dropped item is lost",
        "an item is dropped",
        ('self._gone(line, book, key, "collected")', "pass"),
    ),
    line(
        "nobody tells the maker that somebody waits",
        "made aside",
        (
            "elif self.maker is not None and self.open():\n                self.maker()",
            "elif self.maker is not None and self.open():\n                pass",
        ),
    ),
    line(
        "callers make their own items past the maker",
        "made aside",
        ("return self.maker is None and self.open()", "return self.open()"),
    ),
    line(
        "an error waits for a put",
        "made aside, it fails",
        ("or self.room() or self.errors or", "or self.room() or"),
    ),
    connection(
        "a failed creation keeps its slot",
        "made aside, it fails",
        (
            "self._return_token(book, token)\n            self._vacate(line)\n",
            "self._return_token(book, token)\n            failed or self._vacate(line)\n",
        ),
    ),
    mutant(
        "_creator",
        "a failed creation stays in flight",
        "made aside, tried again",
        ("self.in_flight -= 1\n        self.failures += 1", "self.failures += 1"),
    ),
    mutant(
        "_creator",
        "a creation that ended stays in flight",
        "made aside, discarded",
        ("self.in_flight -= 1\n            self.failures, ", "self.failures, "),
    ),
    mutant(
        "_creator",
        "nobody in line hears of a failure",
        "made aside, never made",
        ("line.fail(error, everybody=in_vain)", "pass"),
    ),
    mutant(
        "_creator",
        "a creation is killed with the greenlet that asked",
        "made aside, given up",
        (
            "spawn_raw(self._create, pool, pool._line, pool._book)",
            "self._create(pool, pool._line, pool._book)",
        ),
    ),
    mutant(
        "_creator",
        "the end of a creation starts no other",
        "made aside, two kept",
        ("from starting.\n        self.look()", "from starting."),
    ),
    mutant(
        "_creator",
        "nobody tries again",
        "made aside, two fail",
        ("self._look_again_in(pause)\n", ""),
    ),
    mutant(
        "_creator",
        "a creation that hangs is not cut off",
        "made aside, it hangs",
        ("Timeout.start_new(self._create_timeout)", "Timeout.start_new(None)"),
    ),
    mutant(
        "_creator",
        "one failure too many is counted off",
        "made aside, it fails",
        (
            "self.in_flight -= 1\n        self.failures += 1",
            "self.in_flight -= 2\n        self.failures += 1",
        ),
    ),
    mutant(
        "_creator",
        "a new item is kept from the line",
        "made aside",
        ("pool._shelve(book.items[id(item)], item)", "pass"),
    ),
    fast(
        "nobody looks at the age after a check",
        "recycled",
        ("if self.closed else life.verdict(entry, monotonic())", "if self.closed else None"),
    ),
    connection(
        "an item in use outlives a recycle",
        "recycled",
        (
            "reason = book.life.verdict(entry, now)\n        if line",
            "reason = None\n        if line",
        ),
    ),
    connection(
        "what expires stays idle too",
        "recycled",
        ("if id(item) not in gone]", "if True]"),
    ),
    connection(
        "idle items outlive a recycle",
        "recycled",
        (
            "self._outdate(spread)\n        self._retire_expired(monotonic())",
            "self._outdate(spread)",
        ),
    ),
    mutant(
        "lifecycle",
        "an item being made outlives a recycle",
        "made aside, recycled",
        ("if entry.born < self.generation:  #", "if False:  #"),
    ),
    mutant(
        "_sweeper",
        "the sweeper outlives its pool",
        "swept and closed",
        ("if pool is None or pool.closed or", "if pool is None or"),
    ),
    line(
        "a freed slot is not passed to another key",
        "two keys share one, made aside",
        ("self.budget.freed(self)\n            self.budget.seek()", "self.budget.freed(self)"),
    ),
    line(
        "who leaves the line keeps its turn from other keys",
        "keys, given up",
        (
            "self.errors.clear()\n            self._pass_on()\n            return",
            "self.errors.clear()\n            return",
        ),
    ),
    line(
        "a slot is not counted in the common limit",
        "two keys share one",
        (
            "self.budget.used += 1",
            "pass",
        ),
    ),
    line(
        "a slot given up stays counted in the common limit",
        "two keys share one",
        ("self.budget.used -= 1\n            self.budget.freed", "self.budget.freed"),
    ),
    mutant(
        "keyed",
        "one item more than the common limit",
        "two keys share one",
        ("if self.used >= self.limit:", "if self.used > self.limit:"),
    ),
    mutant(
        "keyed",
        "idle items of another key do not make way",
        "two keys share one",
        ("else:\n            self._make_room()", ""),
    ),
    mutant(
        "keyed",
        "keys are recycled one after the other",
        "keys, recycled and killed",
        ("pool._outdate(spread)  #", "pool.recycle(spread)  #"),
    ),
    mutant(
        "keyed",
        "keys are closed one after the other",
        "keys, closed and killed",
        ("pool._refuse_all()  #", "pool.close()  #"),
    ),
    connection(
        "what is idle in a closed pool still goes out",
        "two keys are closed, both idle",
        ("self._doubt_all()  #", "pass  #"),
    ),
    mutant(
        "keyed",
        "the sweeper of a forgotten key goes on",
        "a key is forgotten",
        ("keyed.pool._end_sweeper()", "pass"),
    ),
    line(
        "who dies in line is still counted as wanting a slot",
        "two keys share one, given up",
        (
            "self.waiters.pop(me, None)\n            if self.budget is not None:",
            "self.waiters.pop(me, None)\n            if False:",
        ),
    ),
    line(
        "a line that lost an item to one who came earlier wants no slot",
        "two keys share two, dead items",
        (
            "item = self.idle.popleft()\n                if self.budget is not None:",
            "item = self.idle.popleft()\n                if False:",
        ),
    ),
    line(
        "what is left idle by its own key makes way for no other",
        "two keys share two, one idle too many",
        ("elif self.idle:\n            self._pass_on()", ""),
    ),
    line(
        "a line that wakes is not looked at",
        "two keys share one",
        (
            "self.budget.note(self)\n        if self.waiters:",
            "pass\n        if self.waiters:",
        ),
    ),
    line(
        "who took a slot still wants one",
        "two keys share one, made aside",
        ("self.budget.used += 1\n            self.budget.note(self)", "self.budget.used += 1"),
    ),
    connection(
        "nobody sees that an item is idle",
        "two keys share one",
        ("if line.waiters or line.budget is not None:", "if line.waiters:"),
    ),
    connection(
        "a line that lost its idle items wants no slot",
        "two keys share two, dead items",
        (
            "line.budget.going += 1\n                    line.budget.note(line)",
            "line.budget.going += 1",
        ),
    ),
    connection(
        "what is on its way out is not counted",
        "two keys share one",
        ("line.budget.going += 1\n", "line.budget.going += 0\n"),
    ),
    connection(
        "what is gone is still on its way out",
        "two keys share one",
        ("line.budget.going -= 1", "pass"),
    ),
    mutant(
        "_creator",
        "a creation that starts is still missing",
        "two keys share two, made aside",
        (
            "self.in_flight += 1\n            pool._line.claim()",
            "pool._line.claim()\n            self.in_flight += 1",
        ),
    ),
    mutant(
        "_creator",
        "a pause that ends wakes nobody under the common limit",
        "keys made aside, tried again",
        ("pool._line.wake()  #", "pass  #"),
    ),
    mutant(
        "keyed",
        "a key that has items counts as one that has none",
        "two keys share two",
        ("None if line.size else first", "first"),
    ),
    mutant(
        "keyed",
        "a key that has nothing gets nothing of those that have",
        "two keys share one, in turn",
        ("self._poor.place(keyed, None if line.size else first)", "pass"),
    ),
    mutant(
        "keyed",
        "a key whose idle item was taken is thought to have it still",
        "two keys share two, in turn",
        ("if since == self._spare.time(keyed):", "if True:"),
    ),
    mutant(
        "_order",
        "a key stands where it stood before, too",
        "two keys share one",
        ("entry[2] = None\n", "pass\n"),
    ),
    mutant(
        "_order",
        "a key that comes late stands first",
        "two keys share one, in turn",
        ("[time, next(self._numbers), thing]", "[-time, next(self._numbers), thing]"),
    ),
    line(
        "an item lost on its way is not made up for",
        "made aside, lost on its way",
        ("self.wake()\n            return\n        if error", "return\n        if error"),
    ),
]
