"""What gpools promises, each as a claim about the numbers of one pool."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Result:
    """The numbers of one pool; None where nobody has looked yet."""

    side: str  # HTTP or Redis
    recipe: str  # gpools, or a naive one: finally, except
    max_size: int
    done: int = 0
    before: float | None = None  # answers per second before the storm
    after: float | None = None  # and after it
    p50: float | None = None  # seconds in get
    p99: float | None = None
    timed_out: int = 0
    killed: int = 0
    server_gone: int = 0
    no_client: int = 0
    unexpected: dict = field(default_factory=dict)  # name of the error: how often
    peak: int = 0  # connections open at once, as the server saw them
    opened: int = 0  # connections in all, as the server saw them
    strange: int = 0  # answers to somebody else's request
    astray: int = 0  # answers from somebody else's database
    lost: int | None = None  # slots
    stuck: int | None = None  # greenlets that hang

    @property
    def gpools(self):
        return self.recipe == "gpools"

    @property
    def name(self):
        pool = {"HTTP": "HttpPool", "Redis": "RedisPool"}[self.side]
        return pool if self.gpools else f"the naive pool for {self.side} ({self.recipe})"

    @property
    def cut_off(self):
        return self.timed_out + self.killed


# Each: the row of the table that shows it, the claim, and what is said when it does not hold.
PROMISES = [
    (
        "strange",
        lambda r: r.strange == 0,
        lambda r: f"gave {r.strange} answers to somebody who had not asked",
    ),
    (
        "astray",
        lambda r: r.astray == 0,
        lambda r: f"gave {r.astray} answers from somebody else's database",
    ),
    (
        "lost",
        lambda r: r.lost == 0,
        lambda r: f"lost {'?' if r.lost is None else r.lost} of its {r.max_size} slots",
    ),
    (
        "stuck",
        lambda r: r.stuck == 0,
        lambda r: f"left {'?' if r.stuck is None else r.stuck} greenlets hanging",
    ),
    (
        "peak",
        lambda r: 0 < r.peak <= r.max_size,
        lambda r: f"had {r.peak} connections open at once, its max_size is {r.max_size}",
    ),
    (
        "unexpected",
        lambda r: not r.unexpected,
        lambda r: f"raised what nobody ordered: {_counted(r.unexpected)}",
    ),
    (
        "after",
        lambda r: bool(r.before and r.after) and r.after >= r.before / 4,
        lambda r: (
            f"answers {r.after or 0:.0f} requests a second after the storm, "
            f"{r.before or 0:.0f} before it"
        ),
    ),
    (
        "cut_off",
        lambda r: r.timed_out > 0 and r.killed > 0,
        lambda r: f"proved nothing: {r.timed_out} Timeouts and {r.killed} kills hit it",
    ),
]


def broken(result):
    """Map the row of each promise that *result* breaks to what to say about it."""
    return {row: complaint(result) for row, claim, complaint in PROMISES if not claim(result)}


def verdict(results):
    """Judge the pools of gpools among *results*: the exit status, and all complaints."""
    ours = [result for result in results if result.gpools]
    complaints = [f"{r.name} {complaint}" for r in ours for complaint in broken(r).values()]
    if not ours:
        complaints = ["no pool of gpools took part"]
    return (1 if complaints else 0), complaints


def _counted(errors):
    return ", ".join(f"{name} x {count}" for name, count in sorted(errors.items()))
