"""Two kinds of plots, as SVG that can be read on its own."""

from html import escape
from math import ceil, floor, log10

WIDTH, LEFT, ROW = 780, 330, 22
OURS, PEER, INK = "#1f6f8b", "#b8bfc6", "#222"


def short(value):
    """Write a number with three digits that count, large ones in full."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _text(x, y, words, anchor="start", **more):
    style = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def _line(x1, y1, x2, y2, colour="#ddd"):
    return f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="{colour}"/>'


def _picture(title, height, parts):
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13" fill="{INK}">'
        f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>'
    )
    heading = _text(12, 24, title, font_size=16, font_weight="bold")
    return "\n".join([head, heading, *parts, "</svg>\n"])


def _steps(most):
    """Return round numbers from 0 to *most*, some five of them."""
    size = 10 ** int(log10(most) // 1)
    step = next(size * part for part in (0.2, 0.5, 1, 2) if most / (size * part) <= 6)
    return [step * number for number in range(int(most / step) + 1)]


def bars(title, axis, values, limit=None):
    """Draw a bar for each (label, value, is it ours); *limit*, (label, value), is a goal."""
    most = max([value for _, value, _ in values] + ([limit[1]] if limit else []))
    scale = (WIDTH - LEFT - 70) / most
    bottom = 48 + ROW * len(values)
    parts = []
    for step in _steps(most):
        x = LEFT + step * scale
        parts += [_line(x, 42, x, bottom), _text(x, bottom + 16, f"{step:g}", "middle")]
    for number, (label, value, ours) in enumerate(values):
        y = 46 + ROW * number
        parts += [
            _text(LEFT - 8, y + 13, label, "end"),
            f'<rect x="{LEFT}" y="{y}" width="{value * scale:.1f}" height="{ROW - 5}" '
            f'fill="{OURS if ours else PEER}"/>',
            _text(LEFT + value * scale + 5, y + 13, short(value)),
        ]
    if limit:
        x = LEFT + limit[1] * scale
        parts += [_line(x, 36, x, bottom, "#c0392b"), _text(x, 35, limit[0], font_size=11)]
    parts.append(_text(LEFT, bottom + 34, axis))
    return _picture(title, bottom + 44, parts)


def lines(title, x_axis, y_axis, series):
    """Draw a line for each {label: ([(x, y), ...], is it ours)}; both axes are logarithmic."""
    points = [point for line, _ in series.values() for point in line]
    xs, ys = ([log10(value) for value in values] for values in zip(*points, strict=True))
    low, high = floor(min(ys)), ceil(max(ys))
    left, right, top, bottom = 70, 480, 60, 330

    def place(x, y):
        across = (log10(x) - min(xs)) / (max(xs) - min(xs))
        up = (log10(y) - low) / (high - low)
        return left + across * (right - left), bottom - up * (bottom - top)

    parts = [_text(12, 46, y_axis)]
    for power in range(low, high + 1):
        y = place(points[0][0], 10.0**power)[1]
        parts += [_line(left, y, right, y), _text(left - 8, y + 4, f"{10.0**power:g}", "end")]
    for x in sorted({x for x, _ in points}):
        short = f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"
        parts.append(_text(place(x, 1)[0], bottom + 18, short, "middle"))
    y_of_label = 0.0
    for label, (line, ours) in sorted(series.items(), key=lambda item: -item[1][0][-1][1]):
        places = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour, width = (OURS, 3) if ours else ("#8a929a", 1.5)
        style = f'fill="none" stroke="{colour}" stroke-width="{width}"'
        parts.append(f'<polyline points="{path}" {style}/>')
        y_of_label = max(places[-1][1] + 4, y_of_label + 15)
        parts.append(_text(right + 10, y_of_label, label, fill=colour))
    parts.append(_text((left + right) / 2, bottom + 40, x_axis, "middle"))
    return _picture(title, bottom + 54, parts)
