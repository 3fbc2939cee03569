"""The plots of a report as SVG: text, which needs no script. Pure.

Colours are the page's variables, so that dark and light are one drawing. What is told apart by a
colour also has a pattern, a dash, a shape or its name. Widths are a phone's, so that text keeps its
size where plots stand side by side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from orchestrator.performance.report.score import Scored
from orchestrator.performance.report.tables import seconds
from orchestrator.performance.results.probe import LinkRates, Spread

#: A plot's width, and the room for an axis's numbers, in the units of its text (px on a phone).
WIDTH, AXIS = 340.0, 44.0
#: The part of a time that is not split.
WHOLE = "whole"
#: Each part of a time: its colour (Okabe and Ito's, and Brewer's, for colour-blind people), and the
#: path of its pattern on a tile of 6: both are unique.
PARTS = {
    "compute": ("#0072b2", ""),
    "memory": ("#56b4e9", "M0,6L6,0"),
    "link latency": ("#d55e00", "M1,1h1.5v1.5h-1.5z"),
    "link bandwidth": ("#e69f00", "M0,0L6,6"),
    "scheduling": ("#cc79a7", "M3,0V6"),
    "host": ("#009e73", "M0,3H6"),
    "engine": ("#f0e442", "M0,6L6,0M0,0L6,6"),
    "long prefill": ("#8c6bb1", "M2,2h2v2h-2z"),
    "batch limit": ("#a6761d", "M3,0V6M0,3H6"),
    "unexplained": ("#999999", "M0,5L3,2L6,5"),
    WHOLE: ("#777777", "M5,0V1"),
}
#: Letters of the plots' text are at most so wide.
LETTER = 6.3


@dataclass(frozen=True)
class Bar:
    """A time: its parts one after the other, the whole with its interval, and its text. ``told``:
    it is forecast, not measured."""

    name: str
    parts: Mapping[str, float]
    whole: float
    low: float
    high: float
    told: bool = False
    value: str = ""


@dataclass(frozen=True)
class Span:
    """Some time of a lane, as a part."""

    lane: str
    part: str
    start: float
    end: float


def style(part: str) -> str:
    """The name of a part's pattern."""
    return f"p-{part.replace(' ', '-') if part in PARTS else WHOLE}"


def patterns() -> str:
    """The patterns that all plots refer to, and the plots' own looks."""
    tiles = (
        f'<pattern id="{style(name)}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<rect width="6" height="6" fill="{colour}"/>'
        f'<path d="{path}" stroke="#000" stroke-opacity=".55" fill="none"/></pattern>'
        for name, (colour, path) in PARTS.items()
    )
    return f"<defs>{''.join(tiles)}</defs>"


def swatch(part: str) -> str:
    """A part in the legend."""
    return f'<svg class="swatch" viewBox="0 0 20 12">{_rect(0, 0, 20, 12, style(part))}</svg>'


def bars(name: str, rows: Sequence[Bar], unit: float | None = None) -> str:
    """Stacked bars with their names above. ``unit``: seconds of the axis's end; None: each bar's
    whole is one length, and a forecast that is longer goes on, at most to twice of it."""
    ends = [max(row.whole, row.high, sum(row.parts.values())) for row in rows]
    if unit is None:
        longest = [end / (row.whole or 1.0) for end, row in zip(ends, rows, strict=True)]
        most = min(2.0, max(longest, default=1.0))
    drawn = []
    for y, row in zip(_rows(38, rows), rows, strict=True):
        scale = (WIDTH - 8) / (unit or (row.whole or 1.0) * most)
        drawn += [*_heading(y, row.name, row.value), *_stack(row, y + 17, scale)]
    return _svg(name, 38.0 * len(rows), drawn)


def _stack(row: Bar, y: float, scale: float) -> Iterable[str]:
    rest = row.whole - sum(row.parts.values())
    parts = dict(row.parts) or {WHOLE: row.whole}
    if row.parts and rest > 0:
        parts["unexplained"] = rest
    starts = [0.0, *accumulate(parts.values())]
    for (part, value), start in zip(parts.items(), starts, strict=False):
        left, right = (min(each * scale, WIDTH) for each in (start, start + value))
        if right - left < 0.3:
            continue
        tip = row.name if part == WHOLE else f"{row.name}, {part}: {seconds(value)}"
        yield _rect(left, y, max(right - left - 1, 0.3), 14, style(part), tip, row.told)
        if part != WHOLE and right - left > LETTER * len(part) + 10:
            yield _text((left + right) / 2, y + 11, part, "middle", "halo")
    x = min(row.whole * scale, WIDTH)
    yield _path("mark", f"M{x:.1f},{y - 2:.1f}v18")
    low, high = (min(each * scale, WIDTH) for each in (row.low, row.high))
    yield _path("mark thin", f"M{low:.1f},{y + 15:.1f}v4m0,-2H{high:.1f}m0,-2v4")


def curve(
    name: str, title: str, x_title: str, points: Mapping[float, Spread], unit: float, target: float
) -> str:
    """A figure over load, in ``unit``, with a whisker from its lowest to its highest repeat."""
    top, bottom = 26.0, 154.0
    loads = list(points)
    doubled = len(loads) > 2 and loads[-1] >= 8 * loads[0]
    place = math.log2 if doubled else float
    first = place(loads[0]) if doubled else 0.0
    wide = (WIDTH - AXIS - 16) / ((place(loads[-1]) - first) or 1.0)
    ticks = _ticks(max([each.high for each in points.values()] + [target]) / unit)

    def at(value: float) -> float:
        return bottom - (bottom - top) * value / ticks[-1]

    drawn = [_text(0, 13, title, kind="title"), _text((AXIS + WIDTH) / 2, 185, x_title, "middle")]
    for tick in ticks:
        drawn.append(_path("grid", f"M{AXIS},{at(tick):.1f}H{WIDTH}"))
        drawn.append(_text(AXIS - 5, at(tick) + 4, f"{tick:g}", "end"))
    if target:
        drawn.append(_path("mark dash", f"M{AXIS},{at(target / unit):.1f}H{WIDTH}"))
        drawn.append(_text(AXIS + 4, at(target / unit) - 4, "target", kind="halo"))
    line, free = [], -math.inf
    for load, each in points.items():
        x, y = AXIS + 8 + (place(load) - first) * wide, at(each.median / unit)
        line.append(f"{x:.1f},{y:.1f}")
        ends = f"M{x - 3:.1f},{at(each.low / unit):.1f}h6m-3,0V{at(each.high / unit):.1f}m-3,0h6"
        drawn += [
            _path("mark thin", ends),
            _circle("dot", x, y, 3.5, f"{load:g}: {each.median / unit:.4g}"),
        ]
        if x - free > 12 + LETTER * len(f"{load:g}"):
            drawn.append(_text(x, bottom + 14, f"{load:g}", "middle"))
            free = x
    return _svg(name, 190.0, [_path("line", f"M{'L'.join(line)}"), *drawn])


def _ticks(most: float) -> list[float]:
    """About four round numbers from zero to at least ``most``."""
    rough = max(most, 1e-12) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def beside(name: str, rows: Sequence[Scored]) -> str:
    """Measured times around their forecasts, on an axis of factors. A full circle is inside its
    forecast's interval, an empty diamond outside."""
    factors = [each.measured_s / each.forecast_s for each in rows]
    wide = min(3.0, max(1.0, *(abs(math.log2(each)) for each in factors)))

    def at(seconds: float, row: Scored) -> float:
        place = math.log2(max(seconds / row.forecast_s, 1e-3)) / wide
        return 8 + (WIDTH - 16) * (1 + max(-1.0, min(1.0, place))) / 2

    drawn = []
    for y, row in zip(_rows(34, rows), rows, strict=True):
        value = f"{seconds(row.measured_s)}, {row.measured_s / row.forecast_s - 1:+.0%}"
        drawn += _heading(y, row.workload, value)
        drawn.append(_path("grid", f"M0,{y + 23:.1f}H{WIDTH}"))
        if row.inside is not None:
            low, high = at(row.low_s or 0.0, row), at(row.high_s or 0.0, row)
            drawn.append(_rect(low, y + 19, high - low, 8, "band"))
        drawn.append(_path("mark thin", f"M{WIDTH / 2},{y + 17:.1f}v12"))
        x = at(row.measured_s, row)
        diamond = f"M{x - 4.5:.1f},{y + 23:.1f}l4.5,-5l4.5,5l-4.5,5z"
        drawn.append(_circle("dot", x, y + 23, 4) if row.inside else _path("empty", diamond))
    bottom = 34.0 * len(rows) + 13
    for factor in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8):
        if abs(math.log2(factor)) <= wide:
            x = 8 + (WIDTH - 16) * (1 + math.log2(factor) / wide) / 2
            anchor = "" if x < 20 else "end" if x > WIDTH - 20 else "middle"
            drawn.append(_text(x, bottom, "forecast" if factor == 1 else f"x {factor:g}", anchor))
    return _svg(name, bottom + 5, drawn)


def cables(name: str, links: Sequence[LinkRates]) -> str:
    """The nodes on a circle, and the numbered links between them. A line is wider for each factor
    of ten, and dashed if it is slower than half of the fastest."""
    nodes = list(dict.fromkeys(node for link in links for node in (link.a, link.b)))
    angles = [2 * math.pi * n / len(nodes) + (math.pi / 2 if len(nodes) == 2 else 0)
              for n in range(len(nodes))]  # fmt: skip
    place = {node: (WIDTH / 2 + 96 * math.sin(a), 122 - 92 * math.cos(a))
             for node, a in zip(nodes, angles, strict=True)}  # fmt: skip
    drawn, seen = [], Counter[frozenset[str]]()
    fastest = max(link.bytes_per_s.median for link in links)
    for number, link in enumerate(links, 1):
        (ax, ay), (bx, by), rate = place[link.a], place[link.b], link.bytes_per_s.median
        # Links of the same pair are drawn in parallel.
        pair = frozenset((link.a, link.b))
        far = math.hypot(bx - ax, by - ay) or 1.0
        bend = 60.0 * seen[pair] / far
        over = ((ax + bx) / 2 - bend * (by - ay), (ay + by) / 2 + bend * (bx - ax))
        seen[pair] += 1
        width = 1.5 + max(0.0, math.log10(max(rate, 1.0)) - 6)
        curved = f"M{ax:.1f},{ay:.1f}Q{over[0]:.1f},{over[1]:.1f} {bx:.1f},{by:.1f}"
        drawn.append(_path("line dash" if rate < fastest / 2 else "line", curved, width))
        # Beside the middle: those of lines across the circle are one point.
        x, y = (0.36 * a + 0.48 * o + 0.16 * b
                for a, o, b in zip((ax, ay), over, (bx, by), strict=True))  # fmt: skip
        drawn += [_circle("tag", x, y, 9), _text(x, y + 4, str(number), "middle")]
    for node, (x, y) in place.items():
        drawn.append(_circle("dot", x, y, 7))
        label = _short(node, 2 * min(x, WIDTH - x))
        drawn.append(_text(x, y + (22 if y >= 122 else -12), label, "middle", "halo"))
    return _svg(name, 244.0, drawn)


def lanes(name: str, spans: Sequence[Span], unit: float) -> str:
    """Spans over time, one lane for each node. ``unit``: seconds of the whole."""
    names = list(dict.fromkeys(each.lane for each in spans))
    scale = WIDTH / (unit or 1.0)
    bottom = 36.0 * len(names)
    drawn = []
    for y, lane in zip(_rows(36, names), names, strict=True):
        drawn += [*_heading(y, lane), _path("grid", f"M0,{y + 32:.1f}H{WIDTH}")]
        for each in (span for span in spans if span.lane == lane):
            x, wide = each.start * scale, max((each.end - each.start) * scale, 0.4)
            tip = f"{lane}, {each.part}: {seconds(each.end - each.start)}"
            drawn.append(_rect(x, y + 17, wide, 14, style(each.part), tip))
            if each.part != WHOLE and wide > LETTER * len(each.part) + 10:
                drawn.append(_text(x + wide / 2, y + 28, each.part, "middle", "halo"))
    drawn.append(_text(0, bottom + 13, "0"))
    drawn.append(_text(WIDTH, bottom + 13, seconds(unit), "end"))
    return _svg(name, bottom + 18, drawn)


def trace(title: str, points: Sequence[tuple[float, float]], until: float) -> str:
    """A quantity over seconds, with its highest value."""
    most = max((value for _, value in points), default=0.0) or 1.0
    line = "L".join(f"{WIDTH * x / (until or 1.0):.0f},{50 - 32 * y / most:.0f}" for x, y in points)
    drawn = [_path("grid", f"M0,50H{WIDTH}"), _path("trace", f"M{line}")]
    return _svg("", 52.0, [*_heading(0, title, f"{most:.3g}"), *drawn])


def _svg(name: str, height: float, drawn: Iterable[str]) -> str:
    named = f' id="{escape(name)}"' if name else ""
    box = f'viewBox="-2 0 {WIDTH + 4:g} {height:g}"'
    return f'<svg{named} class="plot" {box} role="img">{"".join(drawn)}</svg>'


def _rows(height: float, rows: Sequence[object]) -> Iterable[float]:
    """Where each row begins."""
    return (height * number for number in range(len(rows)))


def _heading(y: float, name: str, value: str = "") -> list[str]:
    """A row's name, cut to the room that it has, and its figure."""
    short = _short(name, WIDTH - LETTER * len(value) - 20)
    return [_text(0, y + 12, short), _text(WIDTH, y + 12, value, "end")]


def _rect(
    x: float, y: float, width: float, height: float, kind: str, tip: str = "", told: bool = False
) -> str:
    fill = f'class="{kind}"' if kind == "band" else f'fill="url(#{kind})"'
    edge = ' class="told"' if told else ""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}" {fill}{edge}'
    return f"<rect {box}><title>{escape(tip)}</title></rect>" if tip else f"<rect {box}/>"


def _circle(kind: str, x: float, y: float, radius: float, tip: str = "") -> str:
    place = f'class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"'
    return f"<circle {place}><title>{escape(tip)}</title></circle>"


def _path(kind: str, line: str, width: float = 0.0) -> str:
    style = f' style="stroke-width:{width:.1f}"' if width else ""
    return f'<path class="{kind}" d="{line}"{style}/>'


def _text(x: float, y: float, text: str, anchor: str = "", kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{anchor}{kind}>{escape(text)}</text>'


def _short(text: str, room: float) -> str:
    """The text, cut to the room that it has."""
    most = max(4, int(room / LETTER))
    return text if len(text) <= most else f"{text[: most - 1]}…"
