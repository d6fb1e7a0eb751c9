"""Figures of the report: inline SVG by matplotlib, its text as text and its colours as the page's CSS variables.

A figure is WIDTH units wide and shown at about that many pixels, so its text has one size on a phone and a desk.
Equal numbers give equal bytes. Nothing here touches pyplot or its global state.
"""

import functools
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec

from markupsafe import Markup, escape

WIDTH = 380
ROW = 22  # height of a row of horizontal marks
FONT = 12
# matplotlib needs colours, the page wants var(--name), which follows light and dark: these stand in for them.
COLOURS = {"ink": "#010101", "muted": "#020202", "line": "#030303", "accent": "#040404", "warm": "#050505"}
INK, MUTED, LINE, ACCENT, WARM = COLOURS.values()
LOOKS: dict[str, dict[str, Any]] = {
    "full": {"facecolor": ACCENT, "edgecolor": ACCENT},
    "grey": {"facecolor": MUTED, "edgecolor": MUTED},
    "pale": {"facecolor": LINE, "edgecolor": LINE},
    "warm": {"facecolor": WARM, "edgecolor": WARM},
    "outlined": {"facecolor": "none", "edgecolor": MUTED},
    "striped": {"facecolor": "none", "edgecolor": WARM, "hatch": "////"},
    "striped back": {"facecolor": "none", "edgecolor": MUTED, "hatch": "\\\\\\\\"},
    "dotted": {"facecolor": "none", "edgecolor": MUTED, "hatch": "...."},
}
Draws = ParamSpec("Draws")


class Interval(NamedTuple):
    """A mean with its bounds. chance: what guessing gives. marked: drawn as the one to look at."""

    label: str
    mean: float
    low: float
    high: float
    chance: float | None = None
    strong: bool = False
    marked: bool = False


def _drawn(draw: Callable[Draws, Any]) -> Callable[Concatenate[str, str, Draws], Markup]:
    """(name, alt, *what to draw) -> SVG. name: unique on the page. alt: what a reader who cannot see it is told."""

    @functools.wraps(draw)
    def svg(name: str, alt: str, /, *args: Draws.args, **kwargs: Draws.kwargs) -> Markup:
        import matplotlib

        style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
        buffer = io.StringIO()
        with matplotlib.rc_context(style | {"font.size": FONT}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the browser has the fonts, this machine need not
            draw(*args, **kwargs).savefig(buffer, format="svg", metadata={"Date": None})
        return _inline(buffer.getvalue(), alt)

    return svg


def _inline(text: str, alt: str) -> Markup:
    """A matplotlib file as an element of the page: without what only a file needs, in the page's font and colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|\bfont-family: [^;\"]*;? ?", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<=<g) id="[^"]*"', "", text)  # other ids are digests, unique by svg.hashsalt
    for colour, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{colour})")
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))


@_drawn
def intervals(rows: Sequence[Interval]) -> Any:
    """Dots with 95% intervals on a scale from 0 to 1, one row each, the mean in figures at the right."""
    figure, axes = _rows([row.label for row in rows], right=60, bottom=26)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.grid(axis="x", color=LINE)
    for y, row in enumerate(rows):
        colour = WARM if row.marked else ACCENT
        axes.plot([row.low, row.high], [y, y], color=colour, linewidth=3 if row.strong else 1.5, clip_on=False)
        shape = "D" if row.marked else "o"
        axes.plot([row.mean], [y], shape, color=colour, markersize=8 if row.strong else 6, clip_on=False, zorder=3)
        if row.chance is not None:
            axes.plot([row.chance] * 2, [y - 0.35, y + 0.35], color=INK, linewidth=1.5, linestyle=(0, (2, 1.5)))
        weight = "bold" if row.strong else "normal"
        at = {"xytext": (12, 0), "textcoords": "offset points"}
        axes.annotate(f"{row.mean:.3f}", (1, y), va="center", color=INK, weight=weight, annotation_clip=False, **at)
        axes.get_yticklabels()[y].set_weight(weight)
    return figure


@_drawn
def bars(rows: Sequence[tuple[str, float, str]]) -> Any:
    """Horizontal bars of (label, value, value for people)."""
    figure, axes = _rows([label for label, _, _ in rows], right=64, bottom=4)
    most = max(value for _, value, _ in rows) or 1.0
    axes.set_xlim(0, most)
    axes.xaxis.set_visible(False)
    axes.barh(range(len(rows)), [value for _, value, _ in rows], height=0.6, color=ACCENT)
    for y, (_, value, shown) in enumerate(rows):
        axes.text(value + most * 0.02, y, shown, va="center", color=INK)
    return figure


@_drawn
def stacks(rows: Sequence[tuple[str, Sequence[float]]], parts: Sequence[tuple[str, str]], most: float) -> Any:
    """Horizontal bars of (label, its parts from the left), up to `most`. parts: (name, a key of LOOKS)."""
    lines = -(-len(parts) // 3)
    figure, axes = _rows([label for label, _ in rows], right=14, bottom=26 + 20 * lines)
    axes.set_xlim(0, most or 1.0)
    axes.xaxis.set_major_locator(_few_ticks())
    left = [0.0] * len(rows)
    for i, (name, look) in enumerate(parts):
        widths = [values[i] for _, values in rows]
        axes.barh(range(len(rows)), widths, left=left, height=0.6, label=name, linewidth=0.8, **LOOKS[look])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    columns = {"loc": "lower left", "bbox_to_anchor": (0, 0), "ncols": 3, "columnspacing": 1.2, "handlelength": 1.2}
    figure.legend(frameon=False, borderpad=0, handletextpad=0.5, labelcolor=INK, **columns)
    return figure


@_drawn
def reliability(cells: Sequence[tuple[float, float, float, float]], counts: Sequence[int]) -> Any:
    """Reliability diagram (Guo et al. 2017): (confidence, share right, its bounds) of each bin, over all counts."""
    figure = _figure(380)
    axes = _axes(figure, left=44, right=10, top=10, bottom=130)
    _unit_axes(axes, "right")
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(color=LINE)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for confidence, right, low, high in cells:
        axes.plot([confidence] * 2, [low, high], color=ACCENT, linewidth=1.5)
        axes.plot([confidence] * 2, [confidence, right], color=WARM, linewidth=1, linestyle=(0, (1, 1)))
        axes.plot([confidence], [right], "o", color=ACCENT, markersize=6, clip_on=False, zorder=3)
    _histogram(_axes(figure, left=44, right=10, top=276, bottom=40), counts, "confidence")
    return figure


@_drawn
def histogram(counts: Sequence[int], label: str, marked: int = 0) -> Any:
    """Counts in equal bins of [0, 1]; the first `marked` bins are the ones to look at."""
    figure = _figure(190)
    _histogram(_axes(figure, left=44, right=10, top=18, bottom=40), counts, label, marked)
    return figure


@_drawn
def pairs(labels: Sequence[str], first: Sequence[float], second: Sequence[float]) -> Any:
    """Shares of answers (filled) beside shares of gold (outlined), by option."""
    figure = _figure(230)
    axes = _axes(figure, left=44, right=10, top=34, bottom=30)
    places = range(len(labels))
    axes.bar([p - 0.2 for p in places], first, width=0.38, color=ACCENT, label="answers")
    if second:
        outlined = {"facecolor": "none", "edgecolor": INK, "linewidth": 1.5}
        axes.bar([p + 0.2 for p in places], second, width=0.35, label="gold", **outlined)
    axes.set_xticks(list(places), labels, color=INK)
    top = max(0.1, *first, *second)
    axes.set_ylim(0, top * 1.1)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.grid(axis="y", color=LINE)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, frameon=False, borderpad=0, labelcolor=INK)
    return figure


def _histogram(axes: Any, counts: Sequence[int], label: str, marked: int = 0) -> None:
    bins = len(counts)
    _unit_axes(axes, label)
    axes.set_yticks([])
    axes.set_ylim(0, (max(counts) or 1) * 1.25)
    for i, count in enumerate(counts):
        look = {"color": ACCENT} if i >= marked else {"facecolor": "none", "edgecolor": WARM, "hatch": "////"}
        axes.bar((i + 0.5) / bins, count, width=0.9 / bins, **look)
        axes.text((i + 0.5) / bins, count, _compact(count), ha="center", va="bottom", fontsize=10, color=MUTED)


def _unit_axes(axes: Any, label: str) -> None:
    axes.set_xlim(0, 1)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    if label == "right":
        axes.set_ylabel("share right", color=INK)
    else:
        axes.set_xlabel(label, color=INK)


def _compact(count: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count) if count else ""


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / 72, height / 72), facecolor="none")


def _axes(figure: Any, left: float, right: float, top: float, bottom: float) -> Any:
    """Axes with these margins, in units."""
    width, height = figure.get_size_inches() * 72
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED)
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def _rows(labels: Sequence[str], right: float, bottom: float) -> tuple[Any, Any]:
    """Axes for one row a label, the first on top, with these margins."""
    shown = [_shortened(label) for label in labels]
    figure = _figure(ROW * len(labels) + 4 + bottom)
    axes = _axes(figure, left=max(map(_width, shown)) + 16, right=right, top=4, bottom=bottom)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), shown, color=INK)
    axes.tick_params(axis="y", pad=10)
    return figure, axes


def _shortened(label: str, most: int = 150) -> str:
    if len(label) < most and _width(label) <= most:
        return label
    kept = label[:most]
    while _width(kept) > most - FONT:
        kept = kept[:-1]
    return kept + "…"


def _width(text: str) -> float:
    """About how wide a browser shows it; matplotlib cannot know the reader's font."""
    return sum(FONT if unicodedata.east_asian_width(c) in "WF" else 0.58 * FONT for c in text)
