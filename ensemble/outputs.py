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

from ensemble.digest import Digest
from ensemble.files import replacing, write_json
from ensemble.grading import DEFAULT_METRICS, GradeBook, grade
from ensemble.plan import Plan
from ensemble.records import Decision, Gold, Question, RowError, Task
from ensemble.relative import BaselineGrades, relative
from ensemble.spent import VoteBook
from ensemble.submissions import open_submission
from ensemble.tally import Tally

Failures = Mapping[int, tuple[str, str]]  # row_index -> error type and message
Decided = tuple[Question, Decision | None]
GUESSES: dict[Task, int | str] = {"multiple_choice": 0, "math": "0", "generation": "", "summarization": ""}


_encode = json.JSONEncoder(ensure_ascii=False).encode  # made once: dumps would make one for each row


class Outside(NamedTuple):
    """What answers are compared with or filled from: gold by id, and two submissions of others."""

    gold: Mapping[int | str, Gold] | None = None
    overlay: Path | None = None
    baseline: Path | None = None


class Written(NamedTuple):
    """What the pass saw; relative: `ensemble.relative.relative`; digest: for the report; votes: per task
    `ensemble.spent.VoteBook.summary`."""

    answered: Counter[str]
    failed: list[RowError]
    partial: int
    near_ties: int
    cut: int
    grades: dict[str, dict[str, dict[str, float | int]]]
    relative: dict[str, Any] | None
    digest: Digest
    gold_matched: int
    votes: dict[Task, dict[str, Any]]


def write_results(
    folder: Path,
    plan: Plan,
    decided: Iterable[Decided],
    tally: Tally,
    outside: Outside,
    stopped: tuple[str, str] | None = None,
    guess: bool = False,
) -> Written:
    """predictions.jsonl, submission.json and grades.json. A question without a decision is a failure.

    tally: of the inference before, whose errors and slowest questions are told.
    stopped: type and message of what ended the run early, the failure of every question it did not reach.
    guess: submit something for questions without an answer, so that the submission is complete (an overlay is).
    """
    gold, overlay, _ = outside
    failures = dict(tally.errors)
    baseline = BaselineGrades(outside.baseline, plan.config) if outside.baseline else None
    guess = guess and overlay is None
    gold_matched = 0
    votes: dict[Task, VoteBook] = {}
    book, answered, failed = GradeBook(), Counter[str](), list[RowError]()
    partial = near_ties = cut = 0
    compared_by: dict[str, str] = {task: next(iter(means)) for task, means in plan.config.baseline.items()}
    if baseline is not None:
        compared_by = {task: baseline.metric(task) for task in plan.tasks}
    digest = Digest(plan.config.seed, tally.top(), compared_by)
    with ExitStack() as files:
        predictions = files.enter_context(replacing(folder / "predictions.jsonl"))
        submission = files.enter_context(replacing(folder / "submission.json"))
        submit = open_submission(plan.config.submission.format, submission, overlay)
        for question, decision in decided:
            if decision is None and stopped is not None:
                failures.setdefault(question.row_index, stopped)
            if gold is not None:
                gold_matched += question.id in gold
                question = replace(question, gold=gold.get(question.id, question.gold))
            if baseline is not None:
                baseline.add(question)
            row = prediction_row(question, decision, failures, plan)
            book.add(question.task, question.group, row["grade"], row["letter_mass"])
            if question.task == "multiple_choice" and decision is not None:
                assert not isinstance(question.gold, tuple)
                known = (row[key] for key in ("prediction", "confidence", "flip_rate", "circular"))
                book.consistency(question.task, question.group).add(question.gold, *known)
                votes.setdefault(question.task, VoteBook(plan, question.task)).add(question, decision)
            if row["error"]:
                failed.append(RowError(question.file, question.line, question.id, **row["error"]))
            else:
                answered[question.task] += 1
                partial += row["partial"]
                near_ties += row["near_tie"]
                cut += row["cut_tokens"] > 0
            predictions.write(_encode(row) + "\n")
            submitted = {"prediction": GUESSES[question.task]} if guess and row["prediction"] is None else {}
            submit.send((question, row | submitted))
            digest.add(question, row)
        submit.close()
    grades = book.summary(plan.config.seed)
    write_json(folder / "grades.json", grades)
    compared = relative(grades, baseline.means() if baseline else plan.config.baseline)
    spent = {task: taken.summary() for task, taken in votes.items()}
    return Written(answered, failed, partial, near_ties, cut, grades, compared, digest, gold_matched, spent)


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
        "partial": False,
        "doubt": None,
        "letter_mass": None,
        "flip_rate": None,
        "circular": None,
        "samples": None,
        "prompt_tokens": 0,
        "shots_dropped": 0,
        "cut_tokens": 0,
        "cut_characters": None,
    }
    task = plan.config.tasks[question.task]
    metrics = task.metrics or DEFAULT_METRICS[question.task]
    if decision is None:
        kind, message = failures.get(question.row_index, ("StoreError", "its scores are not in the store: run again"))
        return row | {
            "error": {"type": kind, "message": message},
            "grade": grade(question.task, None, question.gold, metrics, task.rouge_words),
        }
    return row | {
        "prediction": decision.prediction,
        "answer_text": decision.answer_text,
        "confidence": _rounded(decision.confidence),
        "scores": None if decision.scores is None else [_rounded(s) for s in decision.scores],
        "votes": decision.votes,
        "orders_used": decision.orders_used,
        "grade": grade(question.task, decision.prediction, question.gold, metrics, task.rouge_words),
        "near_tie": decision.near_tie,
        "doubt": _rounded(decision.doubt),
        "partial": decision.partial,
        "letter_mass": _rounded(decision.letter_mass),
        "flip_rate": _rounded(decision.flip_rate),
        "circular": decision.circular,
        "samples": list(decision.samples) or None,
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
