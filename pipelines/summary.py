"""The tables that a run prints: its plan before, its results after."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ensemble import costs, idle, memory, placement
from ensemble.config import Letter, Member
from ensemble.consistency import MEASURES
from ensemble.outputs import Written
from ensemble.placement import Need
from ensemble.plan import Plan
from ensemble.read import InputSummary
from ensemble.records import RowError
from ensemble.spent import sentence


def print_plan(plan: Plan, read: InputSummary, missing: Counter[str], store: Path, folder: Path) -> None:
    """Rows, prompts and tokens per task and member, models, and what the store has. Nothing is started."""
    console = Console(width=None if Console().is_terminal else 120)
    samples = costs.samples(plan, read.blocks, missing)
    table = Table(title="plan")
    for column in ("task", "questions", "stored", "to compute", "member", "asks", "prompts", "about tokens"):
        table.add_column(column, justify="right" if column in NUMBERS else "left")
    for task, members in plan.tasks.items():
        rows, lacking = read.by_task[task], missing[task]
        for i, planned in enumerate(members):
            member = planned.member
            prompts, tokens, _ = costs.cost(plan, task, planned, samples[task], lacking)
            head = [task, f"{rows:,}", f"{rows - lacking:,}", f"{lacking:,}"] if i == 0 else [""] * 4
            table.add_row(*head, planned.name, asks(member), f"{prompts:,.0f}", f"{tokens:,.0f}")
    console.print(table)
    needed = plan.models([task for task, n in missing.items() if n])
    for name in plan.models(list(plan.tasks)):
        model = plan.config.models[name]
        origin = model.source.hub or model.source.path or f"{model.source.package} (PyPI)"
        state = "to load" if name in needed else "not needed: all is stored"
        console.print(
            f"model {name}: {origin}, {model.dtype}, {plan.devices[name]}, context {model.context_length}; {state}"
        )
        for line in memory.lines(model, plan.devices[name]):
            console.print(f"  {line}", soft_wrap=True, highlight=False)
    console.print(f"store {store}\noutput {folder}", soft_wrap=True)
    if read.bad:
        console.print(f"{read.bad} bad rows will be left out (errors.jsonl)")
    _print_placement(console, plan, costs.needs(plan, read.blocks, missing))  # last: it may refuse


def asks(member: Member) -> str:
    """What a member is asked, in a few words."""
    if member.samples is not None:
        return "nothing"
    if isinstance(member.scoring, Letter):
        most = " (at most)" if member.scoring.orders == "adaptive" else ""
        return f"letter, {member.scoring.orders}{most}" + (", pride" if member.scoring.debias == "pride" else "")
    return member.scoring.method if member.scoring else f"{member.sampling.max_tokens} tokens"


NUMBERS = ("questions", "stored", "to compute", "prompts", "about tokens")


def _print_placement(console: Console, plan: Plan, needs: Sequence[Need]) -> None:
    """Waves with their engines and GPUs. Raises ConfigError where a model finds no place."""
    if not any(need.gpus for need in needs):
        return
    ray, here = plan.config.ray, placement.gpus_here()
    nodes = placement.nodes_of(ray, [here] if here else [])
    said = "ray.gpus" if ray.gpus else "of this machine"
    if not nodes:
        nodes = [sum(need.gpus * (1 if need.replicas == "auto" else need.replicas) for need in needs)]
        said = "assumed, enough for all models at once; name yours: --set ray.gpus=N"
    of_nodes = f", nodes of {' + '.join(map(str, nodes))}" if len(nodes) > 1 else ""
    total = f"{sum(nodes)} GPU" + "s" * (sum(nodes) != 1)
    table = Table(title=f"waves on {total} ({said}{of_nodes})")
    for column in ("wave", "GPUs used", "idle", "model", "engines", "GPUs each", "share of work"):
        table.add_column(column, justify="left" if column in ("wave", "model") else "right")
    sizes, work = {need.model: need.gpus for need in needs}, {need.model: need.work for need in needs}
    formed = placement.place(plan, needs, nodes)
    for number, wave in enumerate(formed, 1):
        used = sum(n * sizes[model] for model, n in wave.engines.items())
        head = [f"{number} of {len(formed)}", str(used), str(sum(nodes) - used)]
        for model, n in wave.engines.items():
            share = work[model] / (sum(work.values()) or 1)
            table.add_row(*head, model, str(n), str(sizes[model] or "CPU"), f"{share:.0%}")
            head = [""] * 3
    console.print(table)


def print_results(
    read: InputSummary, written: Written, facts: Mapping[str, Any], folder: Path, errors: Sequence[RowError]
) -> None:
    """Questions, seconds, tokens and scores per task, then where everything is."""
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title=None)
    for column in ("task", "questions", "answered", "seconds", "tokens", "score (95% interval)"):
        table.add_column(column, justify="left" if column.startswith(("task", "score")) else "right")
    for task, n in read.by_task.items():
        grades = written.grades.get(task, {})
        named = {m: g for m, g in grades.items() if m not in (*MEASURES, "letter_mass")}
        scores = "\n".join(f"{m} {g['mean']:.3f} ({g['ci_low']:.3f} to {g['ci_high']:.3f})" for m, g in named.items())
        usage = facts["usage"].get(task, {"seconds": 0.0, "members": {}})
        tokens = sum(u["prompt_tokens"] + u["output_tokens"] for u in usage["members"].values())
        cached = sum(u["cached_tokens"] for u in usage["members"].values())
        shown = f"{tokens:,} ({cached / tokens:.0%} cached)" if cached else f"{tokens:,}"
        cells = (str(n), str(written.answered[task]), f"{usage['seconds']:.1f}", shown)
        table.add_row(task, *cells, scores or "no gold")
    console.print(table)
    for task, votes in facts["votes"].items():
        if taken := sentence(task, votes):
            console.print(taken, soft_wrap=True, highlight=False)
    if facts.get("engines"):
        console.print(idle.sentence(facts["idle"]), soft_wrap=True, highlight=False)
    if relative := facts.get("relative"):
        console.print(relative_line(relative), soft_wrap=True, highlight=False)
    if deadline := facts.get("deadline"):
        console.print(deadline_line(deadline), soft_wrap=True, highlight=False)
    questions = facts["questions"]
    total = sum(v for v in facts["seconds"].values() if isinstance(v, float))
    console.print(
        f"{questions['answered']} answered ({questions['from_store']} from the store, {questions['computed']} "
        f"computed) in {total:.1f} s; {questions['failed']} failed, {len(errors)} bad rows, "
        f"{questions['near_ties']} near ties, "
        f"{questions['cut']} inputs cut\nresults in {folder}/ (open report.html)",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def deadline_line(kept: Mapping[str, Any]) -> str:
    """What the deadline left out."""
    left = kept["answered_in_part"] + kept["not_reached"]
    what = f"{kept['answered_in_part']} answered in part, {kept['not_reached']} not reached"
    return (
        f"deadline {kept['seconds']:g} s, {kept['seconds_left']:g} s left: {kept['answered_in_full']} questions have "
        f"their whole plan, {what if left else 'nothing was left out'}"
        + ("; another run on this store goes on from there" if left else "")
    )


def relative_line(scores: Mapping[str, Any]) -> str:
    """Such as `relative to the baseline 3.29412 = accuracy 0.39000/0.17000 + rouge2_char 0.06000/0.06000`."""
    tasks = scores["tasks"].values()
    terms = [f"{t['metric']} {t['mean']:.5f}/{t['baseline']:.5f}" for t in tasks if t["ratio"] is not None]
    skipped = [f"; {task} left out, its baseline is 0" for task, t in scores["tasks"].items() if t["ratio"] is None]
    return f"relative to the baseline {scores['total']:.5f} = {' + '.join(terms)}{''.join(skipped)}"
