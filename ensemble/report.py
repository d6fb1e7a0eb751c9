"""report.html: one self-contained page that opens offline and shows what to fix first."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml

from ensemble import charts, idle
from ensemble.charts import Score, seconds, share
from ensemble.consistency import MEASURES
from ensemble.digest import LOW_MASS, Digest, TaskDigest, brief
from ensemble.files import replacing
from ensemble.outputs import Written
from ensemble.plan import Plan
from ensemble.read import InputSummary
from ensemble.records import RowError
from ensemble.render import labels
from ensemble.spent import sentence

PAGE_BYTES = 3_000_000
SHOWN_EXAMPLES = 40  # per task; fewer where the page would be larger than PAGE_BYTES
SHOWN_GROUPS = 100  # per task
SHOWN_ERRORS = 60  # per type
SHOWN_TYPES = 10
SHOWN_OPTIONS = 26
FEW = 10  # questions: from fewer, bootstrap intervals are too narrow to call a group clearly lower
FLAGS = {
    "wrong": "wrong",
    "low": "low score",
    "failed": "failed",
    "unread": "no answer read",
    "cut": "cut",
    "near_tie": "near tie",
    "partial": "answered in part",
    "slow": "slow",
}


class Finding(NamedTuple):
    """One thing to look at first; href: the part of the page that shows it."""

    text: str
    href: str


def write(
    path: Path,
    plan: Plan,
    read: InputSummary,
    written: Written,
    facts: Mapping[str, Any],
    errors: Sequence[RowError],
    digest: Digest,
) -> None:
    """facts: the manifest, see `ensemble.manifest.build`. Texts from outside are escaped by the template engine."""
    source = resources.files("ensemble").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"share": share, "seconds": seconds, "brief": brief, "probability": math.exp}
    template = environment.from_string(source)
    lines, failed = list(score_lines(digest, written.grades, facts)), failures(errors)
    names = option_names(plan)
    values = {
        "name": run_name(facts),
        "read": read,
        "facts": facts,
        "total": sum(v for v in facts["seconds"].values() if isinstance(v, int | float)),
        "tasks": digest.tasks,
        "answered": written.answered,
        "grades": written.grades,
        "scores": [line for line in lines if line.place <= SHOWN_GROUPS],
        "more_groups": sum(line.place > SHOWN_GROUPS for line in lines),
        "findings": list(findings(digest, lines, facts, errors, names)),
        "charts": {
            "scores": charts.scores(lines),
            "stages": charts.stages(facts["seconds"]),
            "engines": charts.engines(facts),
            "confidence": _of_tasks(digest, charts.confidence),
            "mass": _of_tasks(digest, charts.letter_mass),
            "positions": _of_tasks(digest, lambda task, d: charts.positions(task, d, names)),
            "length": _of_tasks(digest, charts.length),
            "cut": _of_tasks(digest, charts.cut),
        },
        "measures": MEASURES,
        "usage": list(usage_lines(facts)),
        "idle": idle.sentence(facts["idle"]) if facts.get("engines") else "",
        "orders": [line for task, votes in facts.get("votes", {}).items() if (line := sentence(task, votes))],
        "failures": failed,
        "other_failures": len(errors) - sum(failure.n for failure in failed),
        "option_names": names,
        "flags": FLAGS,
        "config": yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True, width=100),
    }
    shown = SHOWN_EXAMPLES
    while True:
        examples = {task: d.examples(shown) for task, d in digest.tasks.items()}
        slowest = [(task, e) for task, rows in examples.items() for e in rows if e.seconds is not None]
        slowest.sort(key=lambda pair: -(pair[1].seconds or 0.0))
        found = Counter(flag for rows in examples.values() for e in rows for flag in e.flags)
        html = template.render(values | {"examples": examples, "slowest": slowest, "found": found})
        if len(html.encode()) <= PAGE_BYTES or shown <= 1:
            break
        shown //= 2
    with replacing(path) as f:
        f.write(html)


def _of_tasks(digest: Digest, chart: Any) -> dict[str, charts.Chart]:
    drawn = ((task, chart(task, d)) for task, d in digest.tasks.items())
    return {task: figure for task, figure in drawn if figure is not None}


def run_name(facts: Mapping[str, Any]) -> str:
    """The config's name where the command says it, else the run folder's."""
    words: list[str] = " ".join(facts["command"]).replace("--config=", "--config ").split()
    named = [after for word, after in pairwise(words) if word == "--config"]
    return Path(named[-1] if named else facts["config"]["output"]).stem


def option_names(plan: Plan) -> list[str]:
    """What the first member's prompt calls the options, beyond that their numbers."""
    task = plan.config.tasks.get("multiple_choice")
    known = list(labels(plan.config.templates[task.members[0].template])) if task and task.members[0].template else []
    return [known[i] if i < len(known) else str(i + 1) for i in range(SHOWN_OPTIONS)]


def score_lines(digest: Digest, grades: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Score]:
    """Tasks from the lowest score up, each followed by its groups from the lowest up.

    Metrics differ in scale, so tasks are compared by their ratio to the baseline where every one has it.
    """
    tasks = {task: grades[task][d.metric] for task, d in digest.tasks.items() if d.metric in grades.get(task, {})}
    relative = (facts.get("relative") or {"tasks": {}})["tasks"]
    ratios = {task: entry["ratio"] for task, entry in relative.items() if entry["ratio"] is not None}
    heights = {task: grade["mean"] for task, grade in tasks.items()}
    if all(task in ratios for task in tasks):
        heights = ratios
    for task in sorted(tasks, key=lambda t: (heights[t], t)):
        metric = str(digest.tasks[task].metric)
        chance = digest.tasks[task].chance
        guess = chance.mean if chance.n and metric == "accuracy" else None
        whole = _score(task, None, metric, tasks[task], guess)
        lowest = heights[task] == min(heights.values()) < max(heights.values())
        notes = ["lowest task"] if lowest else []
        if guess is not None and whole.low <= guess:
            notes.append("no better than guessing")
        yield whole._replace(notes=tuple(notes))
        groups = {key.removeprefix(f"{task}/"): g for key, g in grades.items() if key.startswith(f"{task}/")}
        inner = [_score(task, group, metric, g[metric], None) for group, g in groups.items() if metric in g]
        if len(inner) == 1 and inner[0].n == whole.n:  # the same once more
            continue
        for rank, line in enumerate(sorted(inner, key=lambda s: (s.mean, s.high, s.group))):
            notes = ["lowest group"] if rank == 0 and len(inner) > 1 else []
            if line.high < whole.mean and line.n >= FEW:
                notes.append("clearly below the task")
            yield line._replace(place=rank + 1, notes=tuple(notes))


def _score(task: str, group: str | None, metric: str, grade: Mapping[str, Any], chance: float | None) -> Score:
    mean, low, high, n = (grade[key] for key in ("mean", "ci_low", "ci_high", "n"))
    return Score(task, group, metric, mean, low, high, n, chance)


def findings(
    digest: Digest,
    lines: Sequence[Score],
    facts: Mapping[str, Any],
    errors: Sequence[RowError],
    names: Sequence[str],
) -> Iterator[Finding]:
    """What stands out, the most costly first."""
    if late := facts.get("deadline"):
        yield Finding(
            f"The deadline of {seconds(late['seconds'])} left {late['not_reached']:,} questions unanswered "
            f"and {late['answered_in_part']:,} answered in part.",
            "#questions",
        )
    if errors:
        kind, n = Counter(error.type for error in errors).most_common(1)[0]
        most = f"most often for {kind} ({n:,})" if n > 1 or len(errors) == 1 else "each for another reason"
        yield Finding(f"{len(errors):,} rows have no answer, {most}.", "#failures")
    for line in lines:
        if "lowest task" in line.notes:
            yield Finding(f"{line.task} has the lowest score, {line.metric} {line.mean:.3f}.", f"#task={line.task}")
        if line.chance is not None and line.low <= line.chance:
            yield Finding(f"{line.task} is no better than guessing ({line.chance:.3f}).", "#scores")
    below = [line for line in lines if "clearly below the task" in line.notes]
    if below:
        shown = ", ".join(f"{line.group} ({line.mean:.3f})" for line in below[:5])
        more = f" and {len(below) - 5} more" if len(below) > 5 else ""
        yield Finding(f"Groups clearly below their task: {shown}{more}.", "#scores")
    for task, d in digest.tasks.items():
        yield from _task_findings(task, d, names)


def _task_findings(task: str, digest: TaskDigest, names: Sequence[str]) -> Iterator[Finding]:
    answered = max(digest.rows - digest.flags["failed"], 1)
    if (mass := digest.letter_mass.n) and digest.low_mass > 0.05 * mass:
        yield Finding(
            f"{task}: in {share(digest.low_mass / mass)} of the questions the option labels hold under "
            f"{share(LOW_MASS)} of the probability: the template probably does not lead the model to a label.",
            "#options",
        )
    if unread := digest.flags["unread"]:
        yield Finding(
            f"{task}: no answer could be read from {unread:,} texts ({share(unread / answered)}): "
            "look at the template, stop and max_tokens.",
            f"#task={task}&flag=unread",
        )
    if digest.flags["cut"] > 0.01 * answered:
        text = f"{task}: {share(digest.flags['cut'] / answered)} of the inputs were cut to fit"
        yield Finding(f"{text}.", f"#task={task}&flag=cut")
    picked, gold = digest.picked.total(), digest.gold.total()
    if gold >= 50:
        lead, option = max((digest.picked[i] / picked - digest.gold[i] / gold, i) for i in digest.picked)
        if lead > 0.1 and option < len(names):
            yield Finding(
                f"{task}: option {names[option]} is answered in {share(digest.picked[option] / picked)} of the "
                f"questions and right in {share(digest.gold[option] / gold)}.",
                "#options",
            )
    if digest.calibration.n >= 50 and digest.calibration.ece > 0.1:
        side = "too sure" if digest.calibration.gap > 0 else "too modest"
        yield Finding(f"{task}: the confidence is {side}, by {digest.calibration.ece:.2f} (ECE).", "#confidence")
    if digest.flags["near_tie"] > 0.05 * answered:
        text = f"{task}: {share(digest.flags['near_tie'] / answered)} of the answers are near ties"
        yield Finding(f"{text}: more orders or members would settle them.", f"#task={task}&flag=near_tie")


class Usage(NamedTuple):
    """One member's work. computed: prompt tokens that did not come from the prefix cache."""

    task: str
    member: str
    requests: int
    prompt: int
    cached: int
    generated: int
    share: float  # of all tokens that were computed or generated
    seconds: float  # of the task
    speed: float | None  # tokens per second of the task

    @property
    def computed(self) -> int:
        return self.prompt - self.cached


def usage_lines(facts: Mapping[str, Any]) -> Iterator[Usage]:
    counts = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
    found = [
        (task, name, used, [int(u.get(key, 0)) for key in counts])
        for task, used in facts["usage"].items()
        for name, u in used["members"].items()
    ]
    cost = sum(prompt - cached + generated for *_, (_, prompt, cached, generated) in found) or 1
    for task, name, used, (requests, prompt, cached, generated) in found:
        tokens = sum(n[1] + n[3] for other, _, _, n in found if other == task)
        speed = tokens / used["seconds"] if used["seconds"] else None
        part = (prompt - cached + generated) / cost
        yield Usage(task, name, requests, prompt, cached, generated, part, used["seconds"], speed)


class Failure(NamedTuple):
    """Errors of one type: n in all, and by message some of their rows."""

    type: str
    n: int
    shown: int
    messages: dict[str, list[RowError]]


def failures(errors: Sequence[RowError]) -> list[Failure]:
    """Grouped by type, the most frequent first; a frequent type does not crowd out the others."""
    found = []
    for kind, n in Counter(error.type for error in errors).most_common(SHOWN_TYPES):
        messages: dict[str, list[RowError]] = {}
        rows = list(islice((error for error in errors if error.type == kind), SHOWN_ERRORS))
        for error in rows:
            messages.setdefault(error.message, []).append(error)
        found.append(Failure(kind, n, len(rows), messages))
    return found
