"""Real data sets through the real model, real vLLM and real Ray on CPU: accuracy, and the Matsuo array's format."""

import json
from pathlib import Path

import pytest

from tests.demo import lines, solve

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def public(data, tmp_path_factory) -> Path:
    """100 ARC-easy questions and a fifth of the Matsuo array in one run: one engine serves both."""
    folder = tmp_path_factory.mktemp("public")
    (folder / "in").mkdir()
    arc = (data / "arc_easy_a.jsonl").read_text().splitlines()[:100]
    (folder / "in/arc.jsonl").write_text("\n".join(arc))
    for name in ("matsuo_style.json", "matsuo_style_gold.json"):
        (folder / name).write_text(json.dumps(json.loads((data / name).read_text())[::5], ensure_ascii=False))
    (folder / "in/matsuo.json").symlink_to(folder / "matsuo_style.json")
    more = ["--input", folder / "in", "--gold", folder / "matsuo_style_gold.json", "--set", "submission.format=matsuo"]
    more += ["--set", "tasks.summarization.members.0.sampling.max_tokens=24"]  # of long texts on two cores
    for task in ("multiple_choice", "math", "generation", "summarization"):  # before quantization
        more += ["--set", f"tasks.{task}.members.0.model=smollm2"]
    solve(folder / "run", folder / "store", *more)
    return folder


def test_arc_easy_by_cloze(public):
    grades = [row["grade"]["accuracy"] for row in lines(public / "run/predictions.jsonl") if "arc" in str(row["id"])]
    assert len(grades) == 100
    assert sum(grades) / 100 >= 0.42


def test_the_matsuo_array_is_answered_and_graded_by_a_gold_file(public):
    by_id = {row["id"]: row for row in json.loads((public / "matsuo_style_gold.json").read_text())}
    submission = json.loads((public / "run/submission.json").read_text())[100:]
    assert [row["id"] for row in submission] == list(by_id)
    grades = {row["id"]: row["grade"] for row in lines(public / "run/predictions.jsonl")}

    def pairs(text: str) -> set[str]:
        return {text[i : i + 2] for i in range(len(text) - 1)}

    for row in submission:
        gold = by_id[row["id"]]
        if row["task_type"] == "multiple_choice":
            assert row["answer"] in range(1, 6)
            assert grades[row["id"]]["accuracy"] == (row["answer"] == gold["answer"])
        else:
            a, b = pairs(row["answer"]), pairs(gold["summary"])
            assert grades[row["id"]]["rouge2_char"] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    summary = json.loads((public / "run/grades.json").read_text())
    assert summary["summarization"]["rouge2_char"]["n"] == 4
    assert summary["multiple_choice"]["accuracy"]["n"] == 100 + 20
