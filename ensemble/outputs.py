"""The run folder: predictions, grades, submission, errors and manifest, written in one streaming pass.

Every file appears whole or not at all, and the pass reads only the store, so a run and its replay write the
same bytes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ensemble.files import replacing, write_json
from ensemble.grading import DEFAULT_METRICS, GradeBook, grade
from ensemble.plan import Plan
from ensemble.records import Decision, Gold, Question, RowError
from ensemble.submissions import SUBMISSIONS

EXAMPLES = 20  # per task, kept for the report

Failures = Mapping[int, tuple[str, str]]  # row_index -> error type and message


class Written(NamedTuple):
    """What the pass saw. examples: prediction rows with their question, some of each task."""

    answered: Counter[str]
    failed: list[RowError]
    near_ties: int
    cut: int
    grades: dict[str, dict[str, dict[str, float | int]]]
    examples: dict[str, list[dict[str, Any]]]
    gold_matched: int


def write_results(
    folder: Path,
    plan: Plan,
    decided: Iterable[tuple[Question, Decision | None]],
    failures: Failures,
    gold: Mapping[int | str, Gold] | None,
    stopped: tuple[str, str] | None = None,
) -> Written:
    """predictions.jsonl, submission.json and grades.json. A question without a decision is a failure.

    stopped: type and message of what ended the run early, the failure of every question it did not reach.
    """
    failures = dict(failures)
    gold_matched = 0
    book, answered, failed = GradeBook(), Counter[str](), list[RowError]()
    near_ties = cut = 0
    examples: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as files:
        predictions = files.enter_context(replacing(folder / "predictions.jsonl"))
        submission = files.enter_context(replacing(folder / "submission.json"))
        submit = SUBMISSIONS[plan.config.submission.format](submission)
        for question, decision in decided:
            if decision is None and stopped is not None:
                failures.setdefault(question.row_index, stopped)
            if gold is not None:
                gold_matched += question.id in gold
                question = replace(question, gold=gold.get(question.id, question.gold))
            row = prediction_row(question, decision, failures, plan)
            book.add(question.task, question.group, row["grade"])
            if row["error"]:
                failed.append(RowError(question.file, question.line, question.id, **row["error"]))
            else:
                answered[question.task] += 1
                near_ties += row["near_tie"]
                cut += row["cut_tokens"] > 0
            predictions.write(json.dumps(row, ensure_ascii=False) + "\n")
            submit.send((question, row))
            shown = examples.setdefault(question.task, [])
            if len(shown) < EXAMPLES:
                shown.append({"question": question, **row})
        submit.close()
    grades = book.summary(plan.config.seed)
    write_json(folder / "grades.json", grades)
    return Written(answered, failed, near_ties, cut, grades, examples, gold_matched)


def prediction_row(question: Question, decision: Decision | None, failures: Failures, plan: Plan) -> dict[str, Any]:
    """One line of predictions.jsonl; log-probabilities and confidence with 4 decimals."""
    members = [m.name for m in plan.tasks[question.task]]
    row: dict[str, Any] = {
        "id": question.id,
        "task": question.task,
        "group": question.group,
        "prediction": None,
        "answer_text": None,
        "confidence": None,
        "scores": None,
        "votes": None,
        "orders_used": 0,
        "members": members,
        "grade": None,
        "error": None,
        "near_tie": False,
        "letter_mass": None,
        "prompt_tokens": 0,
        "shots_dropped": 0,
        "cut_tokens": 0,
        "cut_characters": None,
    }
    metrics = plan.config.tasks[question.task].metrics or DEFAULT_METRICS[question.task]
    if decision is None:
        kind, message = failures.get(question.row_index, ("StoreError", "its scores are not in the store: run again"))
        return row | {
            "error": {"type": kind, "message": message},
            "grade": grade(question.task, None, question.gold, metrics),
        }
    return row | {
        "prediction": decision.prediction,
        "answer_text": decision.answer_text,
        "confidence": _rounded(decision.confidence),
        "scores": None if decision.scores is None else [_rounded(s) for s in decision.scores],
        "votes": decision.votes,
        "orders_used": decision.orders_used,
        "grade": grade(question.task, decision.prediction, question.gold, metrics),
        "near_tie": decision.near_tie,
        "letter_mass": _rounded(decision.letter_mass),
        "prompt_tokens": decision.prompt.tokens,
        "shots_dropped": decision.prompt.shots_dropped,
        "cut_tokens": decision.prompt.cut_tokens,
        "cut_characters": [decision.prompt.cut_start, decision.prompt.cut_end] if decision.prompt.cut_tokens else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def write_errors(path: Path, errors: Iterable[RowError]) -> None:
    with replacing(path) as f:
        for error in errors:
            f.write(json.dumps(error._asdict(), ensure_ascii=False) + "\n")
