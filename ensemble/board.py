"""leaderboard.json: variants compared on the same questions, with what choosing among them is worth.

Intervals are bootstrap intervals that draw questions (of equal content together), the same draws for all variants.
Every variant is tested against the reference, with Holm's correction over all of a task's variants.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ensemble import compare
from ensemble.adaptive import Certificate
from ensemble.combine import Floats
from ensemble.compare import Intervals, Ints
from ensemble.consistency import Consistency
from ensemble.errors import ConfigError
from ensemble.grid import Variant
from ensemble.names import unknown
from ensemble.records import Question, Task

MEASURES = ("rstd", "flip_rate", "circular_accuracy", "ece")
EPSILON = 1e-9


class Outcome(NamedTuple):
    """What one variant did with a task's questions, each in their order.

    predictions: option indices (-1: none) or texts. grades: in [0, 1]. confidence, flips: nan where there is none.
    circular: see `ensemble.revote.Voted`. prompts, tokens: sent. expected: estimated share of other decisions than by
    all orders, of adaptive votes.
    """

    predictions: Ints | list[str]
    grades: Floats
    prompts: Ints
    tokens: Ints
    confidence: Floats | None = None
    flips: Floats | None = None
    circular: Ints | None = None
    certificate: Certificate | None = None
    expected: float | None = None
    reference_orders: int | None = None


class Compared(NamedTuple):
    """A task's part of leaderboard.json. best: the variant with the highest mean, of equal ones the cheapest."""

    summary: dict[str, Any]
    variants: list[dict[str, Any]]
    best: Variant


def compare_task(
    questions: Sequence[Question],
    variants: Sequence[Variant],
    outcomes: Sequence[Outcome],
    metric: str,
    reference: str | None,
    seed: int,
) -> Compared:
    """questions: all with gold, at least one. reference: a variant's name or id, None for the first.

    Raises ConfigError where no variant is called that.
    """
    grades = np.stack([outcome.grades for outcome in outcomes], axis=1)
    clusters = np.unique([question.hash for question in questions], return_inverse=True)[1]
    first = _reference(variants, reference)
    overall = compare.intervals(grades, clusters, seed)
    against = compare.against(grades, first, clusters, seed)
    adjusted = compare.holm(against.p)
    cost = np.array([outcome.prompts.mean() for outcome in outcomes])
    front = compare.pareto(overall.mean, cost)
    groups = _groups(questions, grades, clusters, seed)
    rows = []
    for i, (variant, outcome) in enumerate(zip(variants, outcomes, strict=True)):
        rows.append(
            {
                "id": variant.id,
                "task": variant.task,
                "name": variant.name,
                "axes": variant.axes,
                "score": _interval(overall, i, len(questions)),
                "groups": {name: _interval(found, i, n) for name, (found, n) in groups.items()},
                "cost": {"orders": round(float(cost[i]), 3), "tokens": round(float(outcome.tokens.mean()), 1)},
                "against_reference": None
                if i == first
                else {
                    "difference": _interval(Intervals(against.difference, against.low, against.high), i, None),
                    "wins": int(against.wins[i]),
                    "losses": int(against.losses[i]),
                    "p": float(against.p[i]),
                    "p_holm": float(adjusted[i]),
                },
                "consistency": _consistency(questions, outcome, seed),
                "adaptive": _adaptive(outcome, cost[i]),
                "pareto": bool(front[i]),
            }
        )
    best = min(range(len(variants)), key=lambda i: (-round(float(overall.mean[i]), 9), cost[i], i))
    summary = {
        "metric": metric,
        "questions": len(questions),
        "chance": _chance(questions),
        "groups": list(groups),
        "reference": variants[first].id,
        "best": variants[best].id,
        "cross_fitted": _cross_fitted(variants, grades, cost, clusters, seed),
    }
    return Compared(summary, rows, variants[best])


def _reference(variants: Sequence[Variant], name: str | None) -> int:
    for i, variant in enumerate(variants):
        if name in (None, variant.id, variant.name):
            return i
    raise ConfigError(f"reference: {unknown('variant', name, [v.name for v in variants])}")


def _interval(found: Intervals, i: int, n: int | None) -> dict[str, float | int]:
    values = {"mean": found.mean[i], "ci_low": found.low[i], "ci_high": found.high[i]}
    rounded: dict[str, float | int] = {name: round(float(value), 6) for name, value in values.items()}
    return rounded if n is None else rounded | {"n": n}


def _groups(
    questions: Sequence[Question], grades: Floats, clusters: Ints, seed: int
) -> dict[str, tuple[Intervals, int]]:
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        if question.group is not None:
            rows.setdefault(question.group, []).append(row)
    return {
        name: (compare.intervals(grades[places], clusters[places], seed), len(places))
        for name, places in sorted(rows.items())
    }


def _cross_fitted(
    variants: Sequence[Variant], grades: Floats, cost: Floats, clusters: Ints, seed: int
) -> dict[str, Any] | None:
    """Of equals the cheapest is chosen, as the best of all is; None for one question."""
    if len(np.unique(clusters)) < 2:
        return None
    cheapest = np.argsort(cost, kind="stable")
    found = compare.cross_fitted(grades[:, cheapest], clusters, seed)
    return {
        "mean": round(found.mean, 6),
        "ci_low": round(found.low, 6),
        "ci_high": round(found.high, 6),
        "n": found.n,
        "chosen": [variants[cheapest[i]].id for i in found.chosen],
    }


def _consistency(questions: Sequence[Question], outcome: Outcome, seed: int) -> dict[str, Any]:
    if isinstance(outcome.predictions, list):
        return dict.fromkeys(MEASURES)
    book = Consistency()
    gold = np.array([question.gold for question in questions])
    circles = outcome.circular if outcome.circular is not None and (outcome.circular != -2).all() else None
    book.add_all(gold, outcome.predictions, outcome.confidence, outcome.flips, circles)
    found = book.summary(seed)
    return {name: found.get(name) for name in MEASURES}


def _adaptive(outcome: Outcome, cost: float) -> dict[str, Any] | None:
    promise = outcome.certificate
    if promise is None:
        return None
    return {
        "guarantee": promise.guarantee,
        "max_disagreement": promise.max_disagreement,
        "confidence": promise.confidence,
        "expected_disagreement": outcome.expected,
        "upper_bound": promise.bound,
        "orders_share_of_full": outcome.reference_orders
        and round(cost * len(outcome.prompts) / outcome.reference_orders, 4),
        "calibration_questions": promise.fit + promise.test,
    }


def _chance(questions: Sequence[Question]) -> float | None:
    if questions[0].task != "multiple_choice":
        return None
    return round(float(np.mean([1 / len(question.choices) for question in questions])), 6)


def question_rows(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """For the page's comparison of two variants."""
    return [
        {
            "id": question.id,
            "group": question.group,
            "text": question.text if question.context is None else f"{question.context}\n{question.text}",
            "choices": list(question.choices),
            "gold": question.gold if isinstance(question.gold, int) else list(question.gold or ()),
        }
        for question in questions
    ]


def answers(variants: Sequence[Variant], outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Per variant id its predictions and grades, for the page."""
    return {
        variant.id: {"predictions": outcome.predictions, "grades": outcome.grades}
        for variant, outcome in zip(variants, outcomes, strict=True)
    }


def routes(compared: Mapping[Task, Compared]) -> dict[Task, tuple[Variant, str]]:
    """Per task its best variant, and in words what it is worth."""
    found: dict[Task, tuple[Variant, str]] = {}
    for task, result in compared.items():
        honest, best = result.summary["cross_fitted"], result.best
        row = next(row for row in result.variants if row["id"] == best.id)
        text = f"{best.name}: {result.summary['metric']} {row['score']['mean']:.3f}, the best of {len(result.variants)}"
        if honest:
            text += (
                f"; chosen on one half and scored on the other {honest['mean']:.3f} "
                f"({honest['ci_low']:.3f} to {honest['ci_high']:.3f})"
            )
        found[task] = best, text
    return found
