"""What you see: a headline, the table as it grows, the verdict."""

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demo.verdict import broken, verdict

WIDTH = 98
HEADS = {
    "gpools": {"HTTP": "gpools\nHttpPool", "Redis": "gpools\nRedisPool"},
    "finally": dict.fromkeys(["HTTP", "Redis"], "naive\nfinally"),
    "except": dict.fromkeys(["HTTP", "Redis"], "naive\nexcept"),
}
LEGEND = (
    "naive finally: a client goes back whatever happened to it.  naive except: an Exception drops\n"
    "it, else it goes back; but a kill or a gevent.Timeout is no Exception, and leaks it.\n"
    "The servers counted the connections.  RedisPool connects during the wait, the naive pools\n"
    "after it.  ✗: what gpools promises does not hold here."
)


def rows(max_size):
    """List the rows: label, key of the promise that it shows, what to print; None is a rule."""
    return [
        ("answers received", None, lambda r: number(r.done)),
        ("  a second, before the storm", None, lambda r: number(r.before)),
        ("  a second, after it", "after", lambda r: number(r.after)),
        ("wait for a client, median", None, lambda r: milliseconds(r.p50)),
        ("wait for a client, 99 %", None, lambda r: milliseconds(r.p99)),
        None,
        ("cut off by a gevent.Timeout", None, lambda r: number(r.timed_out)),
        ("cut off by a kill", None, lambda r: number(r.killed)),
        ("failed: server down, hung up", None, lambda r: number(r.server_gone)),
        ("failed: no client within 1 s", None, lambda r: number(r.no_client)),
        ("connections made, in all", None, lambda r: number(r.opened)),
        None,
        (f"connections at once, max {max_size}", "peak", lambda r: number(r.peak)),
        ("answers meant for another", "strange", lambda r: number(r.strange)),
        ("answers from a wrong database", "astray", database),
        ("errors that nobody ordered", "unexpected", lambda r: number(sum(r.unexpected.values()))),
        (f"slots lost, of {max_size}", "lost", lambda r: number(r.lost)),
        ("greenlets left hanging", "stuck", lambda r: number(r.stuck)),
    ]


def number(value):
    return "-" if value is None else f"{value:,.0f}"


def milliseconds(seconds):
    return "-" if seconds is None else f"{seconds * 1000:,.{seconds < 0.01:d}f} ms"


def database(result):
    return number(result.astray) if result.side == "Redis" else ""


def table(results, width=WIDTH):
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1), width=width)
    grid.add_column("", no_wrap=True)
    for result in results:
        style = "bold" if result.gpools else ""
        pool = HEADS[result.recipe].get(result.side)
        head = Text(f"{result.side}\n{pool}", style)
        grid.add_column(head, justify="right", no_wrap=True, min_width=9, style=style)
    for row in rows(results[0].max_size):
        if row is None:
            grid.add_section()
            continue
        label, promise, show = row
        grid.add_row(label, *(cell(result, promise, show(result)) for result in results))
    return grid


def cell(result, promise, text):
    if promise is None or text in ("", "-"):
        return text
    if promise in broken(result):
        return Text(f"✗ {text}", "bold red")
    return Text(text, "green")


def closing(results):
    """Return the last lines: the verdict, and all that led to it."""
    status, complaints = verdict(results)
    if status:
        yield from (Text(f"PROMISE BROKEN: {complaint}", "bold red") for complaint in complaints)
        yield Text("gpools did NOT keep its promises", "bold white on red")
        return
    for recipe in ("finally", "except"):
        naive = [r for r in results if r.recipe == recipe]
        yield Text(
            f"naive {recipe}: {sum(r.strange + r.astray for r in naive):,} wrong answers, "
            f"{sum(r.lost or 0 for r in naive)} of {sum(r.max_size for r in naive)} slots lost"
        )
    ours = [r for r in results if r.gpools]
    yield Text(
        f"gpools kept its promises: {sum(r.cut_off for r in ours):,} requests cut off, no wrong "
        "answer, no slot lost",
        "bold green",
    )


class Screen:
    """Live where stdout is a terminal, else plain lines."""

    def __init__(self, plain):
        self.console = Console(
            highlight=False, no_color=plain or None, force_terminal=False if plain else None
        )
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self.live = None
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        if self.live:
            self.live.stop()
            self.live = None

    def say(self, line, style=None):
        self.console.print(Text(line, style or ""), soft_wrap=True)

    def headline(self, number, of, headline):
        self.phase = f"{number}/{of}  {headline}"
        if not self.live:
            self.say(self.phase)

    def progress(self, passed, length, results):
        """Show how far things are, where that can be shown in place."""
        if self.live:
            head = Table.grid(padding=(0, 2))
            head.add_column(width=66, no_wrap=True)
            head.add_row(
                Text(self.phase, "bold cyan"),
                ProgressBar(length, min(passed, length), width=20),
                f"{max(0, length - passed):2.0f} s",
            )
            width = min(WIDTH, self.console.width)
            self.live.update(Group(head, table(results, width)), refresh=True)

    def passage(self, passed, results):
        """Where it cannot, tell what a phase came to."""
        if not self.live:
            told = [
                f"{side}: gpools {ours.done:,}, naive {' and '.join(f'{r.done:,}' for r in naive)}"
                for side in ("HTTP", "Redis")
                for ours, *naive in [[r for r in results if r.side == side]]
            ]
            self.say(f"   {passed:4.1f} s  answers from {';  '.join(told)}")

    def end(self, results):
        self.stop()
        self.console.print()
        self.console.print(table(results, min(WIDTH, self.console.width)))
        self.console.print()
        self.console.print(Text(LEGEND, "dim"), soft_wrap=True)
        self.console.print()
        for line in closing(results):
            self.console.print(line, soft_wrap=True)
