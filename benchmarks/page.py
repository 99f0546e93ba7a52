"""What a theme says of its results: tables, goals and plots, in Markdown and SVG."""

from typing import NamedTuple

from benchmarks.peers import LIBRARIES


class Goal(NamedTuple):
    what: str
    measured: str
    met: bool | None  # None: not measured


class Section(NamedTuple):
    title: str
    text: str
    goals: list[Goal]
    plots: dict[str, str]  # SVG by name


def table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def named(pool):
    """Write the name of *pool* bold if it is one of ours."""
    return f"**{pool}**" if pool in LIBRARIES and LIBRARIES[pool].ours else pool


def spread(three, digits=2):
    """Write a median and its quartiles."""
    middle, low, high = (f"{value:.{digits}f}" for value in three)
    return f"{middle} ({low} to {high})"


def goal(what, ratio, most=None, least=None):
    """Compare the median of *ratio*, as `Results.ratios` returns it, with a limit."""
    if ratio is None:
        return Goal(what, "not measured", None)
    met = ratio[0] <= most if most is not None else ratio[0] >= least
    return Goal(what, spread(ratio), met)


def goals_table(goals):
    words = {True: "**met**", False: "not met", None: "-"}
    rows = [(each.what, each.measured, words[each.met]) for each in goals]
    return table(("goal", "measured", ""), rows)
