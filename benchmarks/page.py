"""What a theme says of its results: tables, goals and plots, in Markdown and SVG."""

from typing import NamedTuple

from benchmarks.harness import ROOT
from benchmarks.peers import LEAST, LIBRARIES
from benchmarks.plots import short

MET = {True: "**met**", False: "not met", None: "-"}
PAGE = ROOT / "docs" / "benchmarks.md"


class Goal(NamedTuple):
    what: str
    measured: str
    met: bool | None  # None: not measured


class Section(NamedTuple):
    title: str
    text: str
    goals: list[Goal]
    plots: dict[str, str]  # SVG by name
    better: tuple[str, ...] = ()  # where others are

    def show(self):
        plots = [f"![{self.title}](benchmarks/{name}.svg)" for name in self.plots]
        goals = [goals_table(self.goals)] if self.goals else []
        return "\n\n".join([f"## {self.title}", self.text.strip(), *plots, *goals]) + "\n"


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
    rows = [(each.what, each.measured, MET[each.met]) for each in goals]
    return table(("goal", "measured", ""), rows).strip()


def all_goals(sections):
    rows = [
        (f"[{section.title}](#{section.title.lower().replace(' ', '-')})", each.what, each.measured,
         MET[each.met])
        for section in sections
        for each in section.goals
    ]  # fmt: skip
    return table(("", "goal", "measured", ""), rows)


def better(what, values, unit, more=False):
    """Say which of *values*, (label, value, is it ours), are better than the best of ours."""
    pick = max if more else min
    best = pick((value, label) for label, value, ours in values if ours)
    ahead = [
        f"{label} ({short(value)})"
        for label, value, ours in values
        if not ours and pick(value, best[0]) != best[0] and not label.endswith(("floor", LEAST))
    ]
    if not ahead:
        return ()
    return (f"{what}, {unit}: {', '.join(ahead)}; ours at best {short(best[0])} ({best[1]})",)


def write(facts, sections):
    """Write the page and its plots; *sections* maps themes to (section, words on its run)."""
    plots = PAGE.with_suffix("")
    plots.mkdir(exist_ok=True)
    for section, _ in sections.values():
        for name, picture in section.plots.items():
            (plots / f"{name}.svg").write_text(picture)
    every = [each for section, _ in sections.values() for each in section.goals]
    met = sum(each.met is True for each in every)
    template = (ROOT / "benchmarks" / "page.md").read_text()
    ahead = [line for section, _ in sections.values() for line in section.better]
    PAGE.write_text(
        template.format(
            facts="".join(f"- {name}: {words}\n" for name, words in facts.items()),
            met=met,
            of=len(every),
            goals=all_goals(section for section, _ in sections.values()),
            sections="\n".join(section.show() for section, _ in sections.values()),
            better="".join(f"- {line}\n" for line in ahead),
            runs="".join(f"- {name}: {words}\n" for name, (_, words) in sections.items()),
        )
    )
