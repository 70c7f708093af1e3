"""Plot a metric against latency and against parameters for ``report.html``, with plotly."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from restormixer_arch.benchmark.tables import show_parameters, show_time
from restormixer_arch.compare.columns import show_metric, with_unit
from restormixer_arch.compare.results import Comparison, Competitor, DataSet


@dataclass(frozen=True)
class Cost:
    """The cost on the horizontal axis of a plot.

    Attributes:
        name: name of the cost.
        title: axis title, with the unit.
        value: function that returns a competitor's cost.
        show: function that formats a cost as text.
        factor: factor that converts a cost to the unit of the title.
    """

    name: str
    title: str
    value: Callable[[Competitor], float]
    show: Callable[[float], str]
    factor: float


LATENCY = Cost("latency", "latency in ms, less is better", lambda c: c.latency.median, show_time, 1e3)
PARAMETERS = Cost("parameters", "parameters in millions, less is better", lambda c: c.parameters, show_parameters, 1e-6)
# Colors that color-blind people can distinguish: those of Okabe and Ito, "Color Universal Design" (2008), without black
# and yellow, then four of Paul Tol's "muted".
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#332288", "#117733", "#999933")
NEUTRAL = "#808080"
AXIS_MARGIN = 0.3  # margin for names at both ends of an axis, as a fraction of the range of its values
LOG_AXIS_RATIO = 3  # minimum ratio of the largest to the smallest value for a logarithmic axis
MAX_NAME_LENGTH = 20  # maximum length of a name in a plot; the full name is shown on hover
CONFIG = {"displayModeBar": False}


def library() -> str:
    """Return the source of plotly.js, which a page with plots must contain once."""
    return get_plotlyjs()


def plots(comparison: Comparison, dataset: DataSet) -> list[str]:
    """Return the HTML of both plots of a dataset for the first metric, without plotly.js."""
    return [_plot(comparison, dataset, cost) for cost in (LATENCY, PARAMETERS)]


def _plot(comparison: Comparison, dataset: DataSet, cost: Cost) -> str:
    name, metric = next(iter(comparison.metrics.items()))
    means = {c.name: dataset.mean(name, c.name) for c in comparison.competitors}
    shown = [c for c in comparison.competitors if math.isfinite(means[c.name]) and cost.value(c) > 0]
    figure = go.Figure()
    sides = _sides([(math.log(cost.value(c)), means[c.name]) for c in shown])
    for competitor, side in zip(shown, sides, strict=True):
        mean, middle = means[competitor.name], cost.value(competitor)
        label, color = _text(competitor.name), _color(comparison, competitor)
        hover = f"{_text(name)} {show_metric(metric, mean)}<br>{cost.name} {cost.show(middle)}"
        trace = go.Scatter(x=[middle * cost.factor], y=[mean], mode="markers+text", name=label)
        trace.update(text=[_text(_short(competitor.name))], textposition=f"{side} center")
        trace.update(cliponaxis=False, showlegend=False)
        trace.update(marker={"size": 14, "color": color}, hoverinfo="text", hovertext=[f"<b>{label}</b><br>{hover}"])
        if cost is LATENCY:
            high, low = competitor.latency.high - middle, middle - competitor.latency.low
            trace.update(error_x={"array": [high * cost.factor], "arrayminus": [low * cost.factor], "color": color})
        figure.add_trace(trace)
    grid = {"gridcolor": "rgba(128,128,128,.25)", "zeroline": False, "automargin": True}
    y_title = _text(f"{with_unit(name, metric)}, {metric.better} is better")
    figure.update_layout(
        template="none",
        height=360,
        margin={"l": 56, "r": 16, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": NEUTRAL},
        xaxis={"title": {"text": cost.title}, **grid, **_axis([cost.value(c) * cost.factor for c in shown])},
        yaxis={"title": {"text": y_title}, **grid, "range": _pad([means[c.name] for c in shown])},
    )
    return figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)


def _axis(values: list[float]) -> dict[str, object]:
    """Return an axis with room for the names, logarithmic with round ticks if the values differ widely."""
    if not values or max(values) < LOG_AXIS_RATIO * min(values):
        return {"range": _pad(values)}
    low, high = _pad([math.log10(value) for value in values])
    digits = (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 5, 7)
    ticks = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high)) for digit in digits]
    return {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _pad(values: list[float]) -> list[float] | None:
    if not values:
        return None
    low, high = min(values), max(values)
    room = AXIS_MARGIN * (high - low) or max(abs(high) * AXIS_MARGIN, 0.1)
    return [low - room, high + room]


def _color(comparison: Comparison, competitor: Competitor) -> str:
    return COLORS[comparison.competitors.index(competitor) % len(COLORS)]


def _sides(points: list[tuple[float, float]]) -> list[str]:
    """Return the side on which each point's name is shown, ``top`` or ``bottom``: away from the nearest other point."""
    spans = [(max(values) - min(values)) or 1 for values in zip(*points, strict=True)]
    scaled = [tuple(value / span for value, span in zip(point, spans, strict=True)) for point in points]
    sides = []
    for index, point in enumerate(scaled):
        others = [other for place, other in enumerate(scaled) if place != index]
        nearest = min(others, key=lambda other: math.dist(point, other), default=point)
        sides.append("bottom" if point[1] < nearest[1] else "top")
    return sides


def _text(text: str) -> str:
    """Escape text for plotly, which interprets text as HTML with few entities."""
    return html.escape(text, quote=False)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"
