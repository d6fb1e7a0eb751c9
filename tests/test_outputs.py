"""What a run writes of consistency: rows of predictions.jsonl, grades.json and the report's calibration agree."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.config import Cloze, Member, RunConfig, TaskPlan, Template
from ensemble.manifest import job
from ensemble.outputs import Outside, Written, write_results
from ensemble.plan import Plan
from ensemble.records import Decision, Question
from ensemble.tally import Tally

Rows = list[tuple[Question, Decision | None]]


def decided(n: int) -> Rows:
    rng = random.Random(5)
    rows: Rows = []
    for i in range(n):
        gold = rng.choice([None, 0, 1, 2])
        question = Question(
            i, "q.jsonl", i, i, "multiple_choice", f"t{i}", choices=("a", "b", "c"), gold=gold, group="g"
        )
        best, asked = rng.randrange(3), i % 4 > 0
        fields: dict[str, Any] = {"flip_rate": 2 / 3, "circular": rng.choice([-1, best])} if asked else {}
        logs = (-0.7654321, -1.0, -1.8)
        rows.append(
            (question, Decision(best, "a", rng.uniform(0.34, 1), logs, (1, 0, 0), 3, ("m/t",), **fields) if i else None)
        )
    return rows


def run(folder: Path, rows: Rows) -> tuple[Written, list[dict[str, Any]], dict[str, Any]]:
    """What was written, the lines of predictions.jsonl, and grades.json."""
    member = Member(model="m", template="t", scoring=Cloze(method="cloze"))
    config = RunConfig(tasks={"multiple_choice": TaskPlan(members=(member,))}, templates={"t": Template(question="?")})
    folder.mkdir()
    written = write_results(folder, Plan(config, {"multiple_choice": ()}, {}), rows, Tally(), Outside())
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return written, [json.loads(line) for line in lines], json.loads((folder / "grades.json").read_text())


def test_a_run_writes_them_beside_accuracy_whatever_the_order_of_rows(tmp_path: Path):
    rows = decided(200)
    _, lines, grades = run(tmp_path / "a", rows)
    assert [(line["flip_rate"], line["circular"] is None) for line in lines[:3]] == [
        (None, True), (0.6667, False), (0.6667, False),
    ]  # fmt: skip
    measures = grades["multiple_choice"]
    assert list(measures) == ["accuracy", "circular_accuracy", "ece", "flip_rate", "rstd"]
    assert grades["multiple_choice/g"] == measures
    assert all(set(m) == {"mean", "ci_low", "ci_high", "n"} for m in measures.values())
    assert (measures["flip_rate"]["mean"], measures["flip_rate"]["n"]) == (0.6667, 150)
    graded = [line for line in lines if line["grade"] is not None and not line["error"]]
    recalls = [
        np.mean([line["prediction"] == gold for line in graded if rows[line["id"]][0].gold == gold])
        for gold in range(3)
    ]
    assert measures["rstd"]["mean"] == pytest.approx(np.std(recalls), abs=1e-6)
    assert measures["rstd"]["n"] == measures["ece"]["n"] == len(graded)
    circles = [line["circular"] == rows[line["id"]][0].gold for line in graded if line["circular"] is not None]
    assert measures["circular_accuracy"]["mean"] == pytest.approx(np.mean(circles), abs=1e-6)

    shuffled = random.Random(0).sample(rows, len(rows))
    assert run(tmp_path / "b", shuffled)[2] == grades


def test_the_report_draws_the_calibration_whose_error_is_graded(tmp_path: Path):
    written, _, grades = run(tmp_path / "a", decided(500))
    graded, drawn = grades["multiple_choice"]["ece"], written.digest.tasks["multiple_choice"].calibration
    assert graded["mean"] == pytest.approx(drawn.ece, abs=1e-6)
    assert graded["n"] == drawn.n


def test_the_manifest_names_the_ray_job(monkeypatch):
    variable = "RAY_JOB_CONFIG_JSON_ENV_VAR"
    monkeypatch.delenv(variable, raising=False)
    assert job() is None
    monkeypatch.setenv(variable, '{"runtime_env": {}, "metadata": {"job_submission_id": "solve-1"}}')
    assert job() == "solve-1"
