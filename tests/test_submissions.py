"""Forms of submission.json, and one run's answers laid over another submission."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from ensemble.errors import ConfigError, InputError
from ensemble.questions import parse_question
from ensemble.records import Question
from ensemble.submissions import SUBMISSIONS, open_submission, read_answers, require_common, submission_rows

OBJECTS = [{"choice_id": 10, "text": "ice"}, {"choice_id": 20, "text": "iron"}]


def questions(*rows: dict[str, Any]) -> list[Question]:
    return [parse_question({"id": i, "text": f"q{i}"} | row, i, "f.jsonl", i + 1) for i, row in enumerate(rows)]


def answered(prediction: int | str | None, **fields: Any) -> dict[str, Any]:
    return {"prediction": prediction, "answer_text": None, "scores": None, "grade": None, "error": None} | fields


def submit(name: str, pairs: list[tuple[Question, dict[str, Any]]], overlay: Path | None = None) -> str:
    file = io.StringIO()
    sink = open_submission(name, file, overlay)
    for pair in pairs:
        sink.send(pair)
    sink.close()
    return file.getvalue()


def lines(text: str) -> list[Any]:
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


MIXED = questions(
    {"task": "multiple_choice", "choices": OBJECTS},
    {"task": "multiple_choice", "choices": ["ice", "iron"]},
    {"task": "multiple_choice", "choices": ["ice", "iron"], "id": "x"},
    {"task": "summarization", "context": "記事"},
    {"task": "math"},
)
ROWS = [answered(1), answered(1), answered(None), answered("要約"), answered(None)]


def test_jsonl_answers_as_gold_is_given() -> None:
    assert lines(submit("jsonl", list(zip(MIXED, ROWS, strict=True)))) == [
        {"id": 0, "answer": 20},
        {"id": 1, "answer": 1},
        {"id": "x", "answer": None},
        {"id": 3, "answer": "要約"},
        {"id": 4, "answer": None},
    ]


def test_matsuo_answers_every_row() -> None:
    numbered = [{"choice_id": 1, "text": "ice"}, {"choice_id": 2, "text": "iron"}]
    text = submit("matsuo", list(zip(MIXED, ROWS, strict=True)))
    assert "要約" in text
    assert json.loads(text) == [
        {"id": 0, "task_type": "multiple_choice", "text": "q0", "choices": OBJECTS, "answer": 20},
        {"id": 1, "task_type": "multiple_choice", "text": "q1", "choices": numbered, "answer": 2},
        {"id": "x", "task_type": "multiple_choice", "text": "q2", "choices": numbered, "answer": 1},
        {"id": 3, "task_type": "summarization", "text": "q3", "context": "記事", "answer": "要約"},
        {"id": 4, "task_type": "math", "text": "q4", "answer": ""},
    ]
    assert json.loads(submit("matsuo", [])) == []


def test_every_format_of_the_config_is_there() -> None:
    assert list(SUBMISSIONS) == ["jsonl", "matsuo", "lm_eval"]
    with pytest.raises(ConfigError, match="unknown format 'matsu'; did you mean 'matsuo'"):
        open_submission("matsu", io.StringIO())


def test_lm_eval_samples_are_those_of_the_harness() -> None:
    # Form and hashes are what lm-evaluation-harness 0.4.13 wrote (--log_samples, its dummy model) for these rows as
    # tasks of output_type multiple_choice and generate_until; what was answered is ours, and arg_1 of the second.
    choice, text = questions(
        {"id": 2, "task": "multiple_choice", "text": "春の花は？", "choices": ["桜", "梅"], "answer": 1},
        {"id": 3, "task": "generation", "text": "Capital of Peru?", "answer": "Lima"},
    )
    scores, grades = (math.log(0.25), math.log(0.75)), {"accuracy": 1.0}
    pairs = [
        (choice, answered(1, answer_text="梅", scores=[round(x, 4) for x in scores], grade=grades)),
        (text, answered("Lima", answer_text="Lima.", grade={"exact_match": 1.0, "f1": 1.0})),
    ]
    first, second = lines(submit("lm_eval", pairs))
    assert first == {
        "doc_id": 0,
        "doc": {"id": 2, "task": "multiple_choice", "text": "春の花は？", "choices": ["桜", "梅"], "answer": 1},
        "target": "1",
        "arguments": {
            "gen_args_0": {"arg_0": "春の花は？", "arg_1": " 桜"},
            "gen_args_1": {"arg_0": "春の花は？", "arg_1": " 梅"},
        },
        "resps": [[["-1.3863", "False"]], [["-0.2877", "False"]]],
        "filtered_resps": [["-1.3863", "False"], ["-0.2877", "False"]],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": "09fc2da30613eb5b45be4e8f516948e3e40b92651b5524eaed3af847b5738ffd",
        "prompt_hash": "610254d5f9c929c412e4b7de20d89dcdc3dc9d78ef16b95c365bdb54298d7bc0",
        "target_hash": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
        "acc": 1.0,
    }
    assert second == {
        "doc_id": 1,
        "doc": {"id": 3, "task": "generation", "text": "Capital of Peru?", "answer": "Lima"},
        "target": "Lima",
        "arguments": {"gen_args_0": {"arg_0": "Capital of Peru?", "arg_1": {}}},
        "resps": [["Lima."]],
        "filtered_resps": ["Lima"],
        "filter": "none",
        "metrics": ["exact_match", "f1"],
        "doc_hash": "4887a4d30ecf46d9b26647c3f30954a1b0c8d3cccbabc4018ba50347997368c1",
        "prompt_hash": "5c242018f7cc8f578461bf91de6e6c438b55ede8092a73658f68bd20a0f63ee9",
        "target_hash": "aaf2d054d5f750cbf297a4ecd8c58f861a34a48ff7159ce6cd08f986f6a0c0eb",
        "exact_match": 1.0,
        "f1": 1.0,
    }


@pytest.mark.parametrize(
    ("prediction", "text", "scores", "expected"),
    [
        (0, "ice", [-0.1, -2.5], ["-0.1", "-2.5"]),
        (1, "iron", [-0.6931, -0.6931], ["-0.6931", "-0.693"]),  # equal when rounded: the harness would take the first
        (1, "iron", [-0.3567, -1.204], ["-0.3567", "-0.3566"]),  # a majority of orders against the mean
        (1, "iron", None, ["-inf", "0.0"]),  # generated and parsed: certain as far as the run knows
        (None, None, None, ["-inf", "-inf"]),  # failed
        (0, None, None, ["-inf", "-inf"]),  # guessed, so that a submission is complete
    ],
)
def test_lm_eval_samples_always_have_a_log_likelihood_per_option(
    prediction: int | None, text: str | None, scores: list[float] | None, expected: list[str]
) -> None:
    (row,) = lines(submit("lm_eval", [(MIXED[0], answered(prediction, answer_text=text, scores=scores))]))
    assert row["filtered_resps"] == [[score, "False"] for score in expected]
    assert all(float(score) <= 0 for score, _ in row["filtered_resps"])
    assert row["doc"]["choices"] == OBJECTS
    assert (row["target"], row["metrics"], "answer" in row["doc"]) == ("", [], False)  # no gold


@pytest.mark.parametrize(
    ("row", "target", "answer"),
    [
        ({"task": "multiple_choice", "choices": OBJECTS, "answer": 20}, "1", 20),
        ({"task": "multiple_choice", "choices": ["ice", "iron"], "answer": "B"}, "1", 1),
        ({"task": "summarization", "summary": "短い"}, "短い", "短い"),
        ({"task": "generation", "answer": ["Lima", "Lima, Peru"]}, "['Lima', 'Lima, Peru']", ["Lima", "Lima, Peru"]),
        ({"task": "math", "answer": 7}, "7", "7"),
    ],
)
def test_lm_eval_target_and_document(row: dict[str, Any], target: str, answer: Any) -> None:
    (question,) = questions(row | {"group": "g"})
    (sample,) = lines(submit("lm_eval", [(question, answered(None))]))
    assert (sample["target"], sample["doc"]["answer"], sample["doc"]["group"]) == (target, answer, "g")
    again = parse_question(sample["doc"], 0, "f.jsonl", 1)  # a document is an input row
    assert (again.gold, again.choices, again.hash) == (question.gold, question.choices, question.hash)


BASELINE = [
    {"id": 7, "task_type": "generation", "text": "t", "extra": [1.50, None], "answer": "theirs"},
    {"id": 0, "task_type": "multiple_choice", "text": "q0", "choices": OBJECTS, "answer": 10},
    {"id": 3, "task_type": "summarization", "text": "q3", "answer": "古い"},
    {"id": 4, "task_type": "math", "text": "q4", "answer": "12"},
    {"id": 1, "task_type": "multiple_choice", "choices": [{"choice_id": "a"}, {"choice_id": "b"}], "answer": "a"},
]


def test_overlay_on_an_array_keeps_its_order_rows_and_fields(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(BASELINE, indent=2))
    written = json.loads(submit("jsonl", list(zip(MIXED, ROWS, strict=True)), path))
    # 0, 1 and 3 are answered here, 1 by the id that its option has there; 4 failed here; x is new, and failed.
    answers = {0: 20, 1: "b", 3: "要約", 4: "12", 7: "theirs"}
    assert written[:-1] == [row | {"answer": answers[row["id"]]} for row in BASELINE]
    numbered = [{"choice_id": 1, "text": "ice"}, {"choice_id": 2, "text": "iron"}]
    assert written[-1] == {"id": "x", "task_type": "multiple_choice", "text": "q2", "choices": numbered, "answer": 1}


def test_overlay_on_lines_may_lie_on_itself(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    path.write_text('{"answer": "x", "id": "3", "note": "kept"}\n{"id": 3, "answer": "y"}\n{"id": 1, "answer": 0}')
    pairs = list(zip(MIXED, ROWS, strict=True))
    text = submit("matsuo", [pairs[1], pairs[3], pairs[4]], path)
    assert lines(text) == [
        {"answer": "x", "id": "3", "note": "kept"},  # "3" is not 3
        {"id": 3, "answer": "要約"},
        {"id": 1, "answer": 1},
        {"id": 4, "answer": None},
    ]
    path.write_text(text)
    assert submit("jsonl", [pairs[1], pairs[3], pairs[4]], path) == text


def test_overlay_of_one_task_reads_that_task_alone(tmp_path: Path, data: Path) -> None:
    gold = json.loads((data / "matsuo_style_gold.json").read_text("utf-8"))
    rows = [row | {"answer": 1} if row["task_type"] == "multiple_choice" else row | {"answer": "-"} for row in gold]
    (tmp_path / "baseline.json").write_text(json.dumps(rows))
    asked = [parse_question(row, i, "f", i) for i, row in enumerate(gold) if row["task_type"] == "multiple_choice"]
    written = json.loads(submit("matsuo", [(q, answered(q.gold)) for q in asked], tmp_path / "baseline.json"))
    assert [row["id"] for row in written] == [row["id"] for row in gold]
    for ours, theirs, right in zip(written, rows, gold, strict=True):
        assert ours == (right if right["task_type"] == "multiple_choice" else theirs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 0, "text": "q"}', "1: a submission's row has id and answer, this one does not; give the submission"),
        ('[{"id": 0, "answer": 1},\n {"answer": 1}]', "2: a submission's row has id and answer"),
        ('{"id": 0, "answer": 1}\n{"doc_id": 0}', "2: a submission's row has id"),
        ('["a"]', "1: a submission's row has id"),
        ('{"id": 0, "answer": ', "1: not valid JSON"),
        (
            '{"id": "0", "answer": 1}',
            'its ids are strings, the questions\' are numbers (1 is not "1"): write them alike',
        ),
        ('{"id": 99, "answer": 1}', "has no answer to any of the questions: give a submission for the same file"),
    ],
)
def test_overlay_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        submit("jsonl", list(zip(MIXED, ROWS, strict=True)), path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)


def test_overlay_needs_a_submission_file_and_a_format_of_submissions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(submission_rows(tmp_path / "none.json"))
    (tmp_path / "b.json").write_text('{"id": 0, "answer": 1}')
    with pytest.raises(ConfigError, match=r"--set submission.format=jsonl"):
        open_submission("lm_eval", io.StringIO(), tmp_path / "b.json")


def test_common_ids_can_be_asked_for_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"id": 1, "answer": 1}')
    answers = read_answers(tmp_path / "b.json")
    require_common(tmp_path / "b.json", answers, ["1", 5, 1])
    with pytest.raises(InputError, match="are strings"):
        require_common(tmp_path / "b.json", answers, ["1"])


@pytest.mark.parametrize(
    ("row", "question", "prediction"),
    [
        ({"answer": 20}, MIXED[0], 1),  # by choice_id
        ({"answer": "20"}, MIXED[0], 1),
        ({"answer": 1}, MIXED[0], None),
        ({"answer": 1}, MIXED[1], 1),  # by index
        ({"answer": "B"}, MIXED[1], 1),
        ({"answer": 2}, MIXED[1], None),
        ({"answer": 2, "choices": [{"choice_id": 1}, {"choice_id": 2}]}, MIXED[1], 1),  # by the ids that came along
        ({"answer": None}, MIXED[1], None),
        ({"answer": "要約"}, MIXED[3], "要約"),
        ({"answer": 12}, MIXED[4], "12"),
        ({"answer": None}, MIXED[4], None),
    ],
)
def test_answers_are_read_as_predictions(
    row: dict[str, Any], question: Question, prediction: int | str | None, tmp_path: Path
) -> None:
    (tmp_path / "b.json").write_text(json.dumps([{"id": 0} | row]))
    assert read_answers(tmp_path / "b.json")[0].prediction(question) == prediction
