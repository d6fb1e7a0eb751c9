"""leaderboard.html: one self-contained page that opens offline and compares the variants of an ablation.

What is small (variants, scores, costs) stands in the page as JSON. What is large (answers and questions) is packed:
deflated bytes in base64, which the browser inflates when two variants are compared.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ensemble.digest import brief
from ensemble.files import replacing

PAGE_BYTES = 12_000_000
NONE = 255  # in arrays of bytes: no answer, no grade
GRADE_STEPS = 250  # a grade in [0, 1] is kept as a byte, in steps of 0.004
CHOICE = "multiple_choice"


class Limits(NamedTuple):
    """Characters kept of one text. answer: of an answer to a text task; 0 leaves these out."""

    text: int
    option: int
    answer: int


LIMITS = (Limits(280, 120, 280), Limits(280, 120, 140), Limits(140, 60, 70), Limits(140, 60, 0), Limits(40, 30, 0))


def write(
    path: Path, board: Mapping[str, Any], questions: Mapping[str, Sequence[Any]], answers: Mapping[str, Any]
) -> None:
    """See `page`. Raises StoreError where the file cannot be written."""
    html = page(board, questions, answers)
    with replacing(path) as f:
        f.write(html)


def page(board: Mapping[str, Any], questions: Mapping[str, Sequence[Any]], answers: Mapping[str, Any]) -> str:
    """The page, under PAGE_BYTES where shortened texts can achieve it; texts from outside are escaped.

    board: leaderboard.json. questions: per task rows of {id, group, text, choices, gold} in one order.
    answers: per variant id {predictions, grades} in that order: indices of options (-1: none) or texts, and grades
    in [0, 1] (nan: none). Grades of multiple choice are read off the gold answers.
    """
    here = resources.files("ensemble")
    source = here.joinpath("leaderboard.html.jinja").read_text(encoding="utf-8")
    script = Markup(here.joinpath("leaderboard.js").read_text(encoding="utf-8"))  # ours: nothing of the data is in it
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # and the keys in their given order
    template = environment.from_string(source)
    variants = {task: [v for v in board["variants"] if v["task"] == task] for task in board["tasks"]}
    names = {variant["id"]: variant["name"] for variant in board["variants"]}
    given = {task: [answers[variant["id"]] for variant in of_task] for task, of_task in variants.items()}
    matrices = {task: _matrices(task, questions[task], given[task]) for task in variants}
    values = {"board": board, "variants": variants, "names": names, "script": script}
    for limits in LIMITS:
        packs = [_texts(task, questions[task], given[task], limits) | matrices[task] for task in variants]
        data = {
            "tasks": [_task(task, board["tasks"][task], of_task, limits) for task, of_task in variants.items()],
            "steps": GRADE_STEPS,
        }
        html = template.render(values | {"data": data, "packs": packs, "limits": limits})
        if len(html.encode()) <= PAGE_BYTES:
            break
    return html


def _task(task: str, facts: Mapping[str, Any], variants: Sequence[Mapping[str, Any]], limits: Limits) -> dict[str, Any]:
    """What the script needs of a task at once. Intervals are lists: mean, low, high and n where there is one."""
    return {
        "task": task,
        "choice": task == CHOICE,
        "texts": task == CHOICE or limits.answer > 0,
        "metric": facts["metric"],
        "chance": facts["chance"],
        "groups": facts["groups"],
        "reference": facts["reference"],
        "best": facts["best"],
        "variants": [
            {
                "id": variant["id"],
                "name": variant["name"],
                "axes": variant["axes"],
                "score": _interval(variant["score"]),
                "groups": [_interval(variant["groups"].get(group)) for group in facts["groups"]],
                "orders": variant["cost"]["orders"],
                "tokens": variant["cost"]["tokens"],
                "against": _against(variant["against_reference"]),
                "consistency": {key: _interval(value) for key, value in variant["consistency"].items()},
                "adaptive": variant["adaptive"],
                "pareto": variant["pareto"],
            }
            for variant in variants
        ],
    }


def _against(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {**found, "difference": _interval(found["difference"])} if found else None


def _interval(value: Mapping[str, Any] | None) -> list[float] | None:
    if value is None or value["mean"] is None or np.isnan(value["mean"]):
        return None
    return [float(f"{value[key]:.6g}") for key in ("mean", "ci_low", "ci_high", "n") if key in value]


def _matrices(task: str, questions: Sequence[Any], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Packed bytes, questions x variants: neighbours agree mostly, which deflates well.

    picked: the option; of text tasks which of the question's distinct answers (2 bytes each where `wide`).
    grades: of text tasks in steps, else none.
    """
    shape = (len(questions), len(answers))
    if task == CHOICE:
        picked = np.stack([answer["predictions"] for answer in answers], axis=1)
        assert picked.shape == shape
        assert picked.max(initial=0) < NONE
        return {"picked": pack(np.where(picked < 0, NONE, picked).astype(np.uint8)), "wide": False, "grades": None}
    indices = np.zeros(shape, np.uint16)
    for row, texts in enumerate(zip(*(answer["predictions"] for answer in answers), strict=True)):
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        indices[row] = [place[text] for text in texts]
    grades = np.stack([answer["grades"] for answer in answers], axis=1)
    assert grades.shape == shape
    steps = np.where(np.isnan(grades), NONE, np.rint(np.nan_to_num(grades) * GRADE_STEPS)).astype(np.uint8)
    wide = bool(indices.max(initial=0) > NONE)
    kept = indices.astype("<u2") if wide else indices.astype(np.uint8)
    return {"picked": pack(kept), "wide": wide, "grades": pack(steps)}


def _texts(task: str, questions: Sequence[Any], answers: Sequence[Mapping[str, Any]], limits: Limits) -> dict[str, Any]:
    """Packed JSON: the questions, and of text tasks the distinct answers to each in the order of `picked`."""
    rows = [
        {
            "id": str(question["id"]),
            "group": question["group"],
            "text": brief(question["text"], limits.text),
            "choices": [brief(choice, limits.option) for choice in question["choices"] or ()],
            "gold": _gold(question["gold"], limits),
        }
        for question in questions
    ]
    distinct: list[list[str]] = []
    if task != CHOICE and limits.answer:
        columns = zip(*(answer["predictions"] for answer in answers), strict=True)
        distinct = [[brief(text, limits.answer) for text in dict.fromkeys(texts)] for texts in columns]
    text = json.dumps({"questions": rows, "answers": distinct}, ensure_ascii=False, separators=(",", ":"))
    return {"texts": pack(text.encode())}


def _gold(gold: int | Sequence[str] | None, limits: Limits) -> int | list[str] | None:
    return gold if gold is None or isinstance(gold, int) else [brief(text, limits.text) for text in gold]


def pack(content: bytes | NDArray[Any]) -> str:
    """Deflated (zlib) and in base64: only letters, digits and + / =, so it can stand anywhere in HTML."""
    return base64.b64encode(zlib.compress(content if isinstance(content, bytes) else content.tobytes())).decode()
