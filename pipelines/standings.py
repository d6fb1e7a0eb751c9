"""The tables that an ablation prints: what it would ask, and how the variants stand."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from ensemble.board import Compared
from ensemble.grid import Variant
from ensemble.plan import Plan
from ensemble.records import Task
from pipelines.missing import Missing
from pipelines.summary import asks

SHOWN = 15  # variants of a task in the printed table


class Lacking(NamedTuple):
    """What the store lacks: questions, and prompts per task."""

    questions: Missing
    prompts: Counter[str]


def print_plan(plan: Plan, variants: Sequence[Variant], lacking: Lacking) -> None:
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title="asked once, replayed for every variant")
    for column in ("task", "variants", "member", "asks", "prompts to ask"):
        table.add_column(column, justify="right" if column in ("variants", "prompts to ask") else "left")
    for task, members in plan.tasks.items():
        count = sum(v.task == task for v in variants)
        for i, planned in enumerate(members):
            head = (task, str(count)) if i == 0 else ("", "")
            cost = f"{lacking.prompts[task]:,}" if i == 0 else ""
            table.add_row(*head, planned.name, asks(planned.member), cost)
    console.print(table)


def print_board(compared: Mapping[Task, Compared], folder: Path) -> None:
    console = Console(width=None if Console().is_terminal else 120)
    for task, result in compared.items():
        table = Table(title=f"{task}: {result.summary['metric']} of {result.summary['questions']} questions")
        for column in ("variant", "score (95% interval)", "to the reference", "p (Holm)", "prompts a question"):
            table.add_column(column, justify="left" if column == "variant" else "right")
        ranked = sorted(result.variants, key=lambda row: (-row["score"]["mean"], row["cost"]["orders"]))
        for row in ranked[:SHOWN]:
            against = row["against_reference"]
            table.add_row(
                row["name"],
                _bounds(row["score"]),
                "reference" if against is None else _bounds(against["difference"], "+"),
                "" if against is None else f"{against['p_holm']:.3g}",
                f"{row['cost']['orders']:.1f}",
            )
        console.print(table)
        if len(ranked) > SHOWN:
            console.print(f"and {len(ranked) - SHOWN} more")
        if honest := result.summary["cross_fitted"]:
            console.print(f"the best, chosen on one half and scored on the other: {_bounds(honest)}", highlight=False)
    console.print(f"results in {folder}/ (open leaderboard.html; routes.yaml is a config for solve.py)", soft_wrap=True)


def _bounds(found: Mapping[str, Any], sign: str = "") -> str:
    return f"{found['mean']:{sign}.3f} ({found['ci_low']:{sign}.3f} to {found['ci_high']:{sign}.3f})"
