"""Lines of predictions.jsonl with their questions, made for tests of what is told about a run."""

import math
import random
from collections.abc import Iterable, Iterator
from typing import Any

from ensemble.digest import Digest
from ensemble.records import Question, Task

Rows = list[tuple[Question, dict[str, Any]]]
METRICS = {
    "multiple_choice": "accuracy",
    "math": "numeric_match",
    "summarization": "rouge1",
    "generation": "exact_match",
}


def row_of(question: Question, **fields: Any) -> dict[str, Any]:
    """A line of predictions.jsonl; right where nothing is said."""
    row: dict[str, Any] = {
        "id": question.id, "task": question.task, "group": question.group, "prediction": question.gold,
        "answer_text": "an answer", "confidence": None, "scores": None, "votes": None, "orders_used": 1,
        "members": ["m/t"], "grade": {METRICS[question.task]: 1.0} if question.gold is not None else None,
        "error": None, "near_tie": False, "partial": False, "letter_mass": None,
        "flip_rate": None, "circular": None, "samples": None,
        "prompt_tokens": 100, "shots_dropped": 0, "cut_tokens": 0, "cut_characters": None,
    }  # fmt: skip
    assert fields.keys() <= row.keys()
    return row | fields


def choice(index: int, confidence: float = 0.8, right: bool = True, **fields: Any) -> tuple[Question, dict[str, Any]]:
    """A multiple-choice row of four options with gold B; a wrong answer is C."""
    asked = {key: fields.pop(key) for key in ("id", "text", "context", "group", "gold", "choices") if key in fields}
    asked = {"id": f"q{index}", "text": f"text {index}", "choices": ("ice", "iron", "snow", "gas"), "gold": 1} | asked
    question = Question(index, "in.jsonl", index + 1, task="multiple_choice", **asked)
    prediction = 1 if right else 2
    rest = math.log((1 - confidence) / 3)
    scores = [round(math.log(confidence) if i == prediction else rest, 4) for i in range(4)]
    graded = {"grade": {"accuracy": float(right)}} if question.gold is not None else {"grade": None}
    given = {"prediction": prediction, "confidence": confidence, "scores": scores, "votes": [0, 1, 0, 0], **graded}
    return question, row_of(question, **given | fields)


def text_row(index: int, task: Task, grade: float = 1.0, **fields: Any) -> tuple[Question, dict[str, Any]]:
    asked = {key: fields.pop(key) for key in ("text", "context", "group") if key in fields}
    asked = {"text": f"text {index}", "gold": ("a reference",)} | asked
    question = Question(index, "in.jsonl", index + 1, f"q{index}", task, **asked)
    return question, row_of(question, **{"prediction": "an answer", "grade": {METRICS[task]: grade}} | fields)


def failed(index: int, kind: str = "TooLongError", task: Task = "math", **fields: Any) -> Any:
    question, row = text_row(index, task, 0.0, **fields)
    gone = {
        "prediction": None,
        "answer_text": None,
        "error": {"type": kind, "message": f"{kind}: raise context_length"},
    }
    return question, row | gone | {"prompt_tokens": 0}


def mixed(n: int, seed: int = 0) -> Iterator[tuple[Question, dict[str, Any]]]:
    """Rows of all tasks with groups, failures, cut inputs, near ties and texts that nothing could be read from."""
    rng = random.Random(seed)
    for i in range(n):
        if i % 97 == 5:
            yield failed(i, rng.choice(["TooLongError", "EngineError"]))
        elif i % 4 == 0:
            unread = {"prediction": None} if i % 52 == 0 else {}
            yield text_row(i, "math", 0.0 if unread else float(rng.random() < 0.4), **unread)
        elif i % 4 == 1:
            text, start = "word " * rng.randint(50, 900), rng.randint(10, 50)
            cut = {"cut_tokens": 30, "cut_characters": [start, start + 120]} if i % 41 == 0 else {}
            yield text_row(i, "summarization", rng.random() / 2, text=text, prompt_tokens=len(text) // 5, **cut)
        else:
            confidence = round(rng.uniform(0.3, 1), 4)
            group = rng.choice(["law", "physics", "日本史"])
            right = rng.random() < (0.2 if group == "law" else confidence)
            fields = {"near_tie": confidence < 0.32, "letter_mass": round(rng.uniform(0.5, 1), 4)}
            yield choice(i, confidence, right, group=group, prompt_tokens=rng.randint(20, 900), **fields)


def digest_of(rows: Iterable[tuple[Question, dict[str, Any]]], seed: int = 0, **options: Any) -> Digest:
    digest = Digest(seed, **options)
    for question, row in rows:
        digest.add(question, row)
    return digest
