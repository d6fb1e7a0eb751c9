"""Scores relative to a baseline, given as means or as a submission."""

import json
from pathlib import Path
from typing import Any

import pytest

from ensemble.config import RunConfig
from ensemble.errors import ConfigError, InputError
from ensemble.questions import parse_question
from ensemble.relative import BaselineGrades, check_baseline, relative
from pipelines.summary import relative_line

CHOICE = {"members": [{"model": "m", "template": "t", "scoring": {"method": "letter"}}]}
TEXT = {"members": [{"model": "m", "template": "t"}]}


def config(**fields: Any) -> RunConfig:
    tasks = {"multiple_choice": CHOICE, "summarization": TEXT, "generation": TEXT}
    return RunConfig.model_validate_json(json.dumps({"tasks": tasks} | fields))


def graded(**means: dict[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    return {task: {name: {"mean": mean, "n": 100} for name, mean in row.items()} for task, row in means.items()}


# The published scores of two submissions: 39 and 43 of 100 questions right, the baseline 17, and its own summaries.
@pytest.mark.parametrize(("right", "published"), [(39, 3.29412), (43, 3.52941), (17, 2.0)])
def test_published_scores_of_the_matsuo_competition(right: int, published: float) -> None:
    grades = graded(multiple_choice={"accuracy": right / 100}, summarization={"rouge2_char": 0.06, "rouge1": 0.3})
    baseline = {"multiple_choice": {"accuracy": 0.17}, "summarization": {"rouge2_char": 0.06}}
    scores = relative(grades, baseline)
    assert scores is not None
    assert scores["total"] == pytest.approx(published, abs=5e-6)
    assert scores["tasks"]["summarization"] == {
        "metric": "rouge2_char",
        "mean": 0.06,
        "baseline": 0.06,
        "ratio": 1.0,
    }
    assert relative_line(scores).startswith(
        f"relative to the baseline {published:.5f} = accuracy 0.{right}000/0.17000 +"
    )


def test_tasks_that_cannot_be_compared_are_left_out() -> None:
    grades = graded(multiple_choice={"accuracy": 0.5}, generation={"f1": 0.3}) | {"generation/g": {"f1": {"mean": 1.0}}}
    baseline = {"multiple_choice": {"accuracy": 0.25}, "summarization": {"rouge1": 0.2}, "generation": {"f1": 0.0}}
    scores = relative(grades, baseline)
    assert scores is not None
    assert scores["total"] == 2
    assert scores["tasks"]["generation"]["ratio"] is None
    assert list(scores["tasks"]) == ["multiple_choice", "generation"]
    assert relative_line(scores).endswith("= accuracy 0.50000/0.25000; generation left out, its baseline is 0")
    assert relative({}, baseline) is None
    assert relative(grades, {}) is None
    assert relative(grades, {"generation": {"f1": 0.0}}) is None


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"math": {"numeric_match": 0.5}}, "baseline.math: nobody answers math; add members under tasks.math"),
        ({"generation": {}}, "baseline.generation: has 0 metrics; keep one, such as {exact_match: 0.2}"),
        ({"summarization": {"rouge1": 0.1, "rouge2": 0.1}}, "baseline.summarization: has 2 metrics; keep one"),
        ({"multiple_choice": {"acuracy": 0.1}}, "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        ({"multiple_choice": {"f1": 0.1}}, "metric 'f1' does not fit task multiple_choice"),
        ({"generation": {"rouge1": 0.1}}, "baseline.generation: rouge1 is not measured; add it to tasks.generation"),
        ({"summarization": {"rouge1": 0.0}}, "baseline.summarization.rouge1: is 0.0, and nothing can be relative"),
    ],
)
def test_baselines_that_cannot_be_used(baseline: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_baseline(config(baseline=baseline))
    assert str(caught.value).startswith(message)


def test_baselines_that_can() -> None:
    check_baseline(config())
    check_baseline(config(baseline={"multiple_choice": {"accuracy": 0.17}, "summarization": {"rouge2_char": 0.06}}))


QUESTIONS = [
    parse_question(row, i, "f", i + 1)
    for i, row in enumerate(
        [
            {"id": 1, "task": "multiple_choice", "text": "a", "choices": ["x", "y"], "answer": 1},
            {"id": 2, "task": "multiple_choice", "text": "b", "choices": ["x", "y"], "answer": 0},
            {"id": 3, "task": "multiple_choice", "text": "c", "choices": ["x", "y"], "answer": 0},
            {"id": 4, "task": "multiple_choice", "text": "d", "choices": ["x", "y"]},
            {"id": 5, "task": "summarization", "text": "e", "answer": "東京都"},
            {"id": 6, "task": "generation", "text": "f", "answer": "Lima"},
            {"id": 7, "task": "math", "text": "g", "answer": "7"},
        ]
    )
]


def means(path: Path, run: RunConfig) -> dict[Any, dict[str, float]]:
    grades = BaselineGrades(path, run)
    grades.require_common(question.id for question in QUESTIONS)
    for question in QUESTIONS:
        if question.task in run.tasks:
            grades.add(question)
    return grades.means()


def test_a_baseline_submission_is_graded_on_the_same_questions(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    rows = [{"id": 1, "answer": 1}, {"id": 2, "answer": 1}, {"id": 4, "answer": 0}, {"id": 5, "answer": "京都"}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    # Of the three with gold the first is right, the second wrong, the third not answered; 4 has no gold. Summaries:
    # characters 東 京 都 | 京 都 share 2 of 3 and 2 (rouge1); pairs {東京, 京都} | {京都} share 1 of 2 and 1.
    summaries = {"summarization": TEXT | {"rouge_words": "characters"}}
    tasks = {"tasks": {"multiple_choice": CHOICE, "generation": TEXT} | summaries}
    expected = {"multiple_choice": {"accuracy": pytest.approx(1 / 3)}, "generation": {"exact_match": 0}}
    assert means(path, config(**tasks)) == expected | {"summarization": {"rouge1": pytest.approx(4 / 5)}}
    matsuo = config(**tasks, submission={"format": "matsuo"})
    assert means(path, matsuo) == expected | {"summarization": {"rouge2_char": pytest.approx(2 / 3)}}


def test_a_matsuo_array_answers_by_choice_id(tmp_path: Path) -> None:
    numbered = [{"choice_id": 1, "text": "x"}, {"choice_id": 2, "text": "y"}]
    rows = [{"id": i, "choices": numbered, "answer": answer} for i, answer in ((1, 2), (2, 1), (3, 2))]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    run = config(tasks={"multiple_choice": CHOICE}, submission={"format": "matsuo"})
    assert means(tmp_path / "b.json", run) == {"multiple_choice": {"accuracy": pytest.approx(2 / 3)}}


def test_a_baseline_for_other_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"id": "1", "answer": 1}')
    with pytest.raises(InputError, match="its ids are strings"):
        means(tmp_path / "b.json", config())
