"""Which figures the report has, what to look for in each, and its numbers as a table for those who want them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from markupsafe import Markup

from ensemble import figures
from ensemble.digest import BINS, CUTS, Tally, TaskDigest
from ensemble.figures import Interval
from ensemble.idle import CAUSES

DRAWN_GROUPS = 12  # per task
DRAWN_ENGINES = 12
# What an engine's seconds go to, about in the sequence of a run, and how it is drawn.
SPENT = {
    "between": "pale", "loading": "grey", "before work": "outlined", "busy": "full", "starved": "striped",
    "restart": "warm", "tail": "striped back", "unused": "dotted",
}  # fmt: skip
STEPS = {"connect": "start Ray", "engines": "load models", "preflight": "preflight", "solve": "answer"}


class Chart(NamedTuple):
    """A figure, what to look for in it, and its numbers."""

    svg: Markup
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Score(NamedTuple):
    """A line of the table of scores: a task, or one of its groups.

    place: 1 for the task's lowest group, 0 for the task itself. notes: what a reader should see at once.
    """

    task: str
    group: str | None
    metric: str
    mean: float
    low: float
    high: float
    n: int
    chance: float | None
    place: int = 0
    notes: tuple[str, ...] = ()


def share(value: float) -> str:
    return f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def seconds(value: float) -> str:
    """For people: 0.42 s, 39 s, 12 min 5 s, 3 h 20 min."""
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def scores(lines: Sequence[Score]) -> Chart | None:
    """All tasks and the lowest groups of each. The table that stands beside it has the numbers."""
    drawn = [
        Interval(
            label=line.task if line.group is None else line.group,
            mean=line.mean,
            low=line.low,
            high=line.high,
            chance=line.chance,
            strong=line.group is None,
            marked=any(note.startswith("lowest") for note in line.notes),
        )
        for line in lines
        if line.place <= DRAWN_GROUPS
    ]
    if not drawn:
        return None
    caption = "Mean grade with its 95% interval, the lowest first; the diamond is the lowest task or group."
    if any(row.chance is not None for row in drawn):
        caption += " An interval that reaches the dashed line of guessing says that the model may know nothing."
    if len(drawn) < len(lines):
        caption += f" Of each task the {DRAWN_GROUPS} lowest groups are drawn."
    return Chart(figures.intervals("scores", "Scores by task and group, as in the table", drawn), caption, (), ())


def stages(spent: Mapping[str, Any]) -> Chart:
    """Seconds of each step; inference by its parts where it ran."""
    parts = spent.get("inference", {})
    steps = [(name, value) for name, value in spent.items() if isinstance(value, int | float)]
    if parts:
        inner = [(STEPS.get(name, name), value) for name, value in parts.items()]
        rest = dict(steps).get("infer", 0) - sum(parts.values())
        inner.append(("rest of inference", max(rest, 0.0)))
        at = next((i for i, (name, _) in enumerate(steps) if name == "infer"), len(steps))
        steps[at : at + 1] = inner
    rows = [(name, float(value), seconds(value)) for name, value in steps]
    svg = figures.bars("stages", "Seconds of each step, as in the table", rows)
    caption = "Where the time went. Loading models and starting Ray are paid once: they count less in a longer run."
    return Chart(svg, caption, ("step", "seconds"), [(name, f"{value:.2f}") for name, value, _ in rows])


def engines(facts: Mapping[str, Any]) -> Chart | None:
    """Seconds of each engine, and of the mean device, by what they went to; none where no engine ran."""
    if not facts.get("engines"):
        return None
    idle = facts["idle"]
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for life in facts["engines"]:
        found[f"{life['model']}/{life['replica']}"].update(life["seconds"])
    devices = max(idle["devices"], 1)
    mean = {what: value / devices for what, value in idle["seconds"].items()}
    least = sorted(found, key=lambda name: found[name]["busy"])[:DRAWN_ENGINES]
    rows = [(f"mean {idle['of']}", mean), *((name, spent) for name, spent in found.items() if name in least)]
    parts = [(what, look) for what, look in SPENT.items() if any(spent.get(what) for _, spent in rows)]
    svg = figures.stacks(
        "engines",
        "Seconds of each engine by what they went to, as in the table",
        [(label, [spent.get(what, 0.0) for what, _ in parts]) for label, spent in rows],
        parts,
        idle["span"],
    )
    told = "; ".join(f"{what}: {CAUSES[what]}" for what, _ in parts if what in CAUSES)
    caption = f"Where the seconds of the inference went; busy: something was under way{told and '; '}{told}."
    if len(found) > len(least):
        caption += f" Drawn are the {DRAWN_ENGINES} engines that were least busy."
    table = [(label, *(f"{spent.get(what, 0.0):.1f}" for what, _ in parts)) for label, spent in rows]
    return Chart(svg, caption, ("seconds", *(what for what, _ in parts)), table)


def confidence(task: str, digest: TaskDigest) -> Chart | None:
    """How often answers of a confidence are right, or with no gold how sure they are."""
    if not digest.confidence:
        return None
    counts = [digest.confidence[i] for i in range(BINS)]
    calibration, name = digest.calibration, f"confidence-{task}"
    if not calibration.n:
        svg = figures.histogram(name, f"Answers of {task} by confidence, as in the table", counts, "confidence")
        caption = "How many answers have which confidence. Without gold nothing says whether it is earned."
        return Chart(svg, caption, ("confidence", "answers"), list(zip(_ranges(), map(str, counts), strict=True)))
    cells, rows = [], []
    for label, total, right, count in zip(_ranges(), calibration.confidence, calibration.right, counts, strict=True):
        if right.n:
            cells.append((total / right.n, right.mean, *right.interval()))
            rows.append((label, f"{count:,}", f"{total / right.n:.3f}", *_mean_and_bounds(right)))
    svg = figures.reliability(name, f"Share of right answers of {task} by confidence, as in the table", cells, counts)
    caption = (
        "Dots under the diagonal: too sure; above it: too modest. Lines are 95% intervals, "
        "the bars below count the answers."
    )
    return Chart(svg, caption, ("confidence", "answers", "mean confidence", "share right", "95% interval"), rows)


def letter_mass(task: str, digest: TaskDigest) -> Chart | None:
    if not digest.letter_mass.n:
        return None
    counts = [digest.mass_bins[i] for i in range(BINS)]
    svg = figures.histogram(f"mass-{task}", f"Questions of {task} by letter mass, as in the table", counts, "mass", 1)
    caption = (
        "Probability that the model gives to the option labels together, before they are compared. It should stand "
        "at the right; much at the left (hatched) means that the template does not lead to a label."
    )
    return Chart(svg, caption, ("letter mass", "questions"), list(zip(_ranges(), map(str, counts), strict=True)))


def positions(task: str, digest: TaskDigest, names: Sequence[str]) -> Chart | None:
    """Answers and gold by option. With gold, over the questions that have it."""
    if not digest.picked:
        return None
    options = range(min(max([*digest.picked, *digest.gold]) + 1, len(names)))
    picked, gold, recalls = digest.picked.total(), digest.gold.total(), digest.recalls()
    first = [digest.picked[i] / picked for i in options]
    second = [digest.gold[i] / gold for i in options] if gold else []
    svg = figures.pairs(
        f"positions-{task}",
        f"Answers and gold of {task} by option, as in the table",
        names[: len(options)],
        first,
        second,
    )
    rows = [
        (names[i], f"{digest.picked[i]:,}", f"{digest.gold[i]:,}", f"{recalls[i]:.3f}" if i in recalls else "")
        for i in options
    ]
    caption = (
        "How often each option is answered and is right. Where filled bars differ much from outlined ones the model "
        "prefers a position: average over more orders of the options."
    )
    return Chart(svg, caption, ("option", "answers", "gold", "recall"), rows)


def length(task: str, digest: TaskDigest) -> Chart | None:
    bins = digest.length_bins()
    if len(bins) < 2:
        return None
    rows = [(f"{b.low:,.0f}–{b.high:,.0f}" if b.low < b.high else f"{b.low:,.0f}", b) for b in bins]
    caption = (
        f"{digest.metric} by tokens of the prompt, in classes of about equal size. Falling: long inputs cost score."
    )
    return _trend(f"length-{task}", f"{task}: {digest.metric} by prompt tokens", "prompt tokens", rows, caption)


def cut(task: str, digest: TaskDigest) -> Chart | None:
    bounds = [f"{a:,}–{b - 1:,}" for a, b in pairwise(CUTS)]
    labels = ["nothing cut", *bounds, f"{CUTS[-1]:,} or more"]
    rows = [(label, tally) for label, tally in zip(labels, digest.cuts, strict=True) if tally.n]
    if not any(tally.n for tally in digest.cuts[1:]):
        return None
    caption = f"{digest.metric} by tokens that were cut. Lower where cut: raise context_length, or try another cut."
    return _trend(f"cut-{task}", f"{task}: {digest.metric} by cut tokens", "tokens cut", rows, caption)


def _trend(name: str, alt: str, what: str, rows: Sequence[tuple[str, Tally]], caption: str) -> Chart:
    drawn = [Interval(label, tally.mean, *tally.interval()) for label, tally in rows]
    table = [(label, f"{tally.n:,}", *_mean_and_bounds(tally)) for label, tally in rows]
    head = (what, "questions", "mean", "95% interval")
    return Chart(figures.intervals(name, f"{alt}, as in the table", drawn), caption, head, table)


def _mean_and_bounds(tally: Tally) -> tuple[str, str]:
    low, high = tally.interval()
    return f"{tally.mean:.3f}", f"{low:.3f} to {high:.3f}"


def _ranges() -> list[str]:
    return [f"{i / BINS:g} to {(i + 1) / BINS:g}" for i in range(BINS)]
