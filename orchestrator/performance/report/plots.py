"""The plots of a report, from plain figures. Pure: the same figures give the same plot.

Inputs are in seconds, bytes and FLOPs; each plot chooses units that people read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import plotly.graph_objects as go
from plotly.subplots import make_subplots

#: Colours that colour-blind people can distinguish (Okabe and Ito,
#: https://jfly.uni-koeln.de/color/): for measured, predicted and unexplained times, and for series.
MEASURED, PREDICTED, UNEXPLAINED = "#0072B2", "#E69F00", "#999999"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 70, "r": 20, "t": 30, "b": 50},
    "height": 380,
    "legend": {"orientation": "h", "y": 1.12, "x": 0},
}
MS = 1e3


@dataclass(frozen=True)
class Bar:
    """A figure with the spread of its repeats."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PlotCurve:
    """A curve over load: a figure for each ``x``."""

    name: str
    x: Sequence[float]
    y: Sequence[Bar]


@dataclass(frozen=True)
class Roof:
    """A device's two measured limits: memory bandwidth and arithmetic."""

    name: str
    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True)
class Point:
    """A phase in the roofline plot: FLOPs per byte read, and FLOPs per second reached."""

    name: str
    flops_per_byte: float
    flops_per_s: float


@dataclass(frozen=True)
class Lane:
    """One row of a timeline: a quantity of one node over seconds since the start."""

    name: str
    unit: str
    seconds: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Span:
    """A named period of the timeline."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Cable:
    """A link between two nodes on one network, with its label."""

    a: str
    b: str
    label: str
    bytes_per_s: float


def waterfall(parts: Mapping[str, float], measured_s: float) -> go.Figure:
    """A phase's predicted parts as steps up to its measured time; the last step is "unexplained".

    If the prediction is too long, the last step goes down.
    """
    rest = measured_s - sum(parts.values())
    steps = {**parts, "unexplained": rest}
    starts = [0.0, *accumulate(steps.values())][:-1]
    bars = go.Bar(
        x=[*steps, "measured"],
        base=[each * MS for each in [*starts, 0.0]],
        y=[each * MS for each in [*steps.values(), measured_s]],
        marker={"color": [*([PREDICTED] * len(parts)), UNEXPLAINED, MEASURED]},
        text=[f"{each * MS:.3g} ms" for each in [*steps.values(), measured_s]],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{x}: %{text}<extra></extra>",
    )
    return _laid(go.Figure(bars), y="milliseconds", showlegend=False)


def roofline(roofs: Sequence[Roof], points: Sequence[Point]) -> go.Figure:
    """Attainable FLOPs per second over FLOPs per byte, with the phases as points
    (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009)."""
    figure = go.Figure()
    ridges = [roof.flops_per_s / roof.bytes_per_s for roof in roofs]
    intensities = [*ridges, *(point.flops_per_byte for point in points)] or [1.0]
    low, high = min(intensities) / 10, max(intensities) * 10
    for roof, ridge, colour in zip(roofs, ridges, SERIES * len(roofs), strict=False):
        x = [low, ridge, high]
        y = [min(roof.flops_per_s, roof.bytes_per_s * each) for each in x]
        line = {"color": colour}
        figure.add_scatter(x=x, y=y, mode="lines", name=roof.name, line=line, opacity=0.7)
    for point, colour in zip(points, SERIES[::-1] * len(points), strict=False):
        figure.add_scatter(
            x=[point.flops_per_byte],
            y=[point.flops_per_s],
            mode="markers+text",
            name=point.name,
            text=[point.name],
            textposition="bottom right",
            marker={"size": 11, "color": colour, "symbol": "diamond"},
            showlegend=False,
        )
    figure = _laid(figure, x="FLOPs for each byte read", y="FLOPs a second")
    figure.update_xaxes(type="log", range=[math.log10(low), math.log10(high)])
    figure.update_yaxes(type="log", exponentformat="SI")
    return figure


def latency_over_load(
    load: str, curves: Sequence[PlotCurve], target_s: Mapping[str, float] | None = None
) -> go.Figure:
    """Latencies over load (concurrency, or requests per second), one panel per latency.

    Error bars show the spread of the repeats; a dashed line is the latency's target.
    """
    figure = make_subplots(
        rows=1, cols=max(1, len(curves)), subplot_titles=[curve.name for curve in curves]
    )
    for column, curve in enumerate(curves, 1):
        figure.add_scatter(
            x=list(curve.x),
            y=[each.value * MS for each in curve.y],
            error_y={
                "type": "data",
                "array": [(each.high - each.value) * MS for each in curve.y],
                "arrayminus": [(each.value - each.low) * MS for each in curve.y],
            },
            mode="lines+markers",
            name=curve.name,
            line={"color": MEASURED},
            row=1,
            col=column,
        )
        if target := (target_s or {}).get(curve.name):
            dash = {"line_dash": "dash", "line_color": UNEXPLAINED}
            figure.add_hline(y=target * MS, row=1, col=column, annotation_text="target", **dash)
        figure.update_xaxes(title=load, rangemode="tozero", row=1, col=column)
        figure.update_yaxes(title="milliseconds", rangemode="tozero", row=1, col=column)
    return _laid(figure, showlegend=False)


def timeline(lanes: Sequence[Lane], spans: Sequence[Span]) -> go.Figure:
    """Quantities of all nodes over one time axis, one lane each, with phases as bars on top."""
    figure = make_subplots(
        rows=len(lanes) + 1,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.12 / (len(lanes) + 1),
        row_heights=[0.8, *([1.0] * len(lanes))],
    )
    names = list(dict.fromkeys(span.name for span in spans))
    colours = dict(zip(names, SERIES * len(names), strict=False))
    for number, span in enumerate(spans):
        figure.add_bar(
            y=["phase"],
            x=[span.end_s - span.start_s],
            base=[span.start_s],
            orientation="h",
            name=span.name,
            legendgroup=span.name,
            showlegend=span.name not in {each.name for each in spans[:number]},
            marker={"color": colours[span.name]},
            hovertemplate=f"%{{base:.3f}} s + %{{x:.3f}} s<extra>{span.name}</extra>",
            row=1,
            col=1,
        )
    for row, lane in enumerate(lanes, 2):
        figure.add_scatter(
            x=list(lane.seconds),
            y=list(lane.values),
            name=lane.name,
            mode="lines",
            line={"color": SERIES[row % len(SERIES)], "width": 1.2},
            fill="tozeroy",
            showlegend=False,
            row=row,
            col=1,
        )
        figure.update_yaxes(rangemode="tozero", exponentformat="SI", nticks=3, row=row, col=1)
        figure.add_annotation(
            text=f"{lane.name}, {lane.unit}" if lane.unit else lane.name,
            **{"xref": "paper", "yref": f"y{row} domain", "x": 0.005, "y": 1.02},
            showarrow=False,
            xanchor="left",
            yanchor="top",
            font={"size": 11},
            bgcolor="rgba(255,255,255,0.7)",
        )
    figure.update_xaxes(title="seconds since the start", row=len(lanes) + 1, col=1)
    return _laid(figure, barmode="overlay", height=160 + 70 * len(lanes))


def cables(nodes: Sequence[str], links: Sequence[Cable]) -> go.Figure:
    """The nodes on a circle and the links between them; a line is wider per factor of ten in
    rate."""
    angle = 2 * math.pi / max(1, len(nodes))
    place = {
        name: (math.sin(angle * number), math.cos(angle * number))
        for number, name in enumerate(nodes)
    }
    figure = go.Figure()
    seen: dict[frozenset[str], int] = {}
    for link, colour in zip(links, SERIES * len(links), strict=False):
        (ax, ay), (bx, by) = place[link.a], place[link.b]
        # Links of the same pair are drawn in parallel.
        pair = frozenset((link.a, link.b))
        apart = 0.4 * seen.get(pair, 0)
        seen[pair] = seen.get(pair, 0) + 1
        length = math.hypot(bx - ax, by - ay) or 1.0
        middle = (
            (ax + bx) / 2 - apart * (by - ay) / length,
            (ay + by) / 2 + apart * (bx - ax) / length,
        )
        width = 1 + max(0.0, math.log10(max(link.bytes_per_s, 1.0)) - 5)
        figure.add_scatter(
            x=[ax, middle[0], bx],
            y=[ay, middle[1], by],
            mode="lines",
            line={"color": colour, "width": width, "shape": "spline"},
            hoverinfo="skip",
        )
        figure.add_annotation(
            x=middle[0], y=middle[1], text=link.label, showarrow=False, bgcolor="white"
        )
    figure.add_scatter(
        x=[place[name][0] for name in nodes],
        y=[place[name][1] for name in nodes],
        mode="markers+text",
        text=list(nodes),
        textposition="bottom center",
        marker={"size": 26, "color": MEASURED},
        hoverinfo="text",
    )
    figure = _laid(figure, showlegend=False, height=460)
    figure.update_xaxes(visible=False, range=[-1.3, 1.3])
    figure.update_yaxes(visible=False, range=[-1.4, 1.4])
    return figure


def _laid(figure: go.Figure, x: str = "", y: str = "", **layout: object) -> go.Figure:
    figure.update_layout(**(LAYOUT | layout))
    if x:
        figure.update_xaxes(title=x)
    if y:
        figure.update_yaxes(title=y)
    return figure
