"""Samples of lm-evaluation-harness as a member's scores: what is read, which row is whose, and what is refused."""

import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.errors import InputError
from ensemble.questions import parse_question
from ensemble.records import Question
from ensemble.samples import SamplesFile
from ensemble.submissions import open_submission
from tests.test_files import local_s3

Row = dict[str, Any]

# Lines that lm-evaluation-harness 0.4.13 wrote (backend hf, SmolLM2-135M-Instruct in float32, CPU) for the demo's first
# question: benchmarks/lm_eval_samples.py, with and without --letters.
BEES = {"id": "mc-01", "text": "What do bees make from the nectar of flowers?", "context": None}
BEES |= {"choices": ["Milk", "Silk", "Honey", "Sugar cane"], "answer": 2}
CLOZE = {
    "doc_id": 0,
    "doc": BEES,
    "target": "2",
    "arguments": {
        "gen_args_0": {"arg_0": f"Question: {BEES['text']}\nAnswer:", "arg_1": " Milk"},
        "gen_args_1": {"arg_0": f"Question: {BEES['text']}\nAnswer:", "arg_1": " Silk"},
        "gen_args_2": {"arg_0": f"Question: {BEES['text']}\nAnswer:", "arg_1": " Honey"},
        "gen_args_3": {"arg_0": f"Question: {BEES['text']}\nAnswer:", "arg_1": " Sugar cane"},
    },
    "resps": [
        [["-10.25008487701416", "False"]],
        [["-13.426880836486816", "False"]],
        [["-5.826229095458984", "False"]],
        [["-13.29542350769043", "False"]],
    ],
    "filtered_resps": [
        ["-10.25008487701416", "False"],
        ["-13.426880836486816", "False"],
        ["-5.826229095458984", "False"],
        ["-13.29542350769043", "False"],
    ],
    "filter": "none",
    "metrics": ["acc", "acc_norm"],
    "doc_hash": "f504f2a4de490c25a345cd0c491a3f5eab3e4e97f530233aa88b9ff4be2cba0d",
    "prompt_hash": "46c12dde8fe2025dc3b8a6bce9c26122ad4e92ae7188d883b30ea1bd4932c984",
    "target_hash": "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35",
    "acc": 1.0,
    "acc_norm": 1.0,
}
LISTED = f"Question: {BEES['text']}\nA. Milk\nB. Silk\nC. Honey\nD. Sugar cane\nAnswer:"
LETTERS = CLOZE | {
    "arguments": {f"gen_args_{i}": {"arg_0": LISTED, "arg_1": f" {letter}"} for i, letter in enumerate("ABCD")},
    "resps": [
        [["-2.8015451431274414", "False"]],
        [["-6.918118476867676", "False"]],
        [["-5.38664436340332", "False"]],
        [["-4.608136177062988", "False"]],
    ],
}
MELTS = {"question": "Which of the two melts first?", "choices": ["ice", "iron"], "answer": 0}
NAMED = {"id": 7, "text": MELTS["question"], "choices": MELTS["choices"]}


def question(**fields: Any) -> Question:
    row = {"id": 7, "task": "multiple_choice", "text": MELTS["question"], "choices": MELTS["choices"]}
    return parse_question(row | fields, 0, "q.jsonl", 1)


def sample(
    prompt: str = "Which of the two melts first?\nAnswer:",
    texts: tuple[str, ...] = (" ice", " iron"),
    logprobs: tuple[float, ...] = (-1.5, -2.25),
    doc: Row | None = None,
    **fields: Any,
) -> Row:
    return {
        "doc_id": 0,
        "doc": doc or NAMED,
        "arguments": {f"gen_args_{i}": {"arg_0": prompt, "arg_1": text} for i, text in enumerate(texts)},
        "resps": [[[str(value), "False"]] for value in logprobs],
        "filter": "none",
    } | fields


def write(path: Path, *rows: Row) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def logprobs(samples: SamplesFile, *questions: Question) -> list[list[float] | None]:
    return [None if s is None else s.logprobs.tolist()[0] for s in samples.scores(questions)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (CLOZE, [-10.25008487701416, -13.426880836486816, -5.826229095458984, -13.29542350769043]),
        (LETTERS, [-2.8015451431274414, -6.918118476867676, -5.38664436340332, -4.608136177062988]),
    ],
)
def test_what_the_harness_wrote(row: Row, expected: list[float], tmp_path: Path) -> None:
    samples = SamplesFile(write(tmp_path / "samples_quorum_2026-11-21T15-09-23.724922.jsonl", row))
    bees = question(id="another", text=BEES["text"], choices=BEES["choices"])
    score, nothing = pickle.loads(pickle.dumps(samples)).scores([bees, question()])
    assert nothing is None
    assert score.orders == ((0, 1, 2, 3),)
    assert (score.logprobs.dtype, score.logprobs.tolist()) == (np.float32, [np.float32(expected).tolist()])
    assert (score.tokens.dtype, score.tokens.tolist(), score.unconditional) == (np.int32, [1, 1, 1, 1], None)


SHOT = "Which of the two melts first?\nA. ice\nB. iron\nAnswer: A\n\n"
PASSAGE = {"passage": "Two things lie in the sun."}


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (sample(doc=MELTS), {}),  # no id
        (sample(doc=NAMED | {"id": "7"}), {}),
        (sample("Q:  Which of the two\nmelts first? A:", (" ice ", "\niron")), {}),  # white space
        (sample(texts=("ice", "iron")), {}),  # a chat template leaves no blank
        (sample(f"Which is bigger?\nAnswer: iron\n\n{MELTS['question']}\nAnswer:"), {}),  # a worked example before it
        (sample(f"{MELTS['question']}\n(A) ice\n(B) iron\n", (" A", " B")), {}),
        (sample(f"{MELTS['question']}\n(A) ice (B) iron\n", ("(A)", "(B)")), {}),
        (sample(f"{MELTS['question']} 1: ice, 2: iron. Answer:", (" 1", " 2")), {}),
        (sample(f"{MELTS['question']}\na) ice\nb) iron\nAnswer:", (" a", " b")), {}),
        (sample(f"What is A?\nA. x\nB. y\n\n{MELTS['question']}\nA. ice\nB. iron\nAnswer:", (" A", " B")), {}),
        (sample(doc=MELTS | {"choices": {"text": ["ice", "iron"], "label": ["A", "B"]}}), {}),
        (
            sample(
                f"{MELTS['question']}\nA. ice\nB. iron ore\nAnswer:",
                (" A", " B"),
                doc={"q": MELTS["question"], "opa": "ice", "opb": "iron ore", "wrong": "iron"},
            ),
            {"choices": ["ice", "iron ore"]},
        ),
        (
            sample(
                "春の花は？\nA. 桜\nB. 梅\n答え:", (" A", " B"), doc={"text": "春の花は？", "choices": ["桜", "梅"]}
            ),
            {"text": "春の花は？", "choices": ["桜", "梅"]},
        ),
        (
            sample("-1?\nA. (1)\nB. -1\nAnswer:", (" A", " B"), doc={"text": "-1?", "choices": ["(1)", "-1"]}),
            {"text": "-1?", "choices": ["(1)", "-1"]},
        ),
        (sample(doc=NAMED | PASSAGE), {"context": "Two things  lie in the sun."}),
        (sample(doc=NAMED | PASSAGE), {}),  # the row has more than our question says
        (sample(resps=[[["-1.5", "False"], ["-9", "False"]], [["-2.25", "True"], ["-9", "True"]]]), {}),  # repeats
    ],
)
def test_a_row_that_is_the_questions(row: Row, fields: Row, tmp_path: Path) -> None:
    samples = SamplesFile(write(tmp_path / "s.jsonl", row))
    assert logprobs(samples, question(**fields)) == [[-1.5, -2.25]]


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (sample(), {"text": "Which of the two melts last?"}),
        (sample(), {"text": "Which"}),  # only a part of what the prompt shows
        (sample(), {"choices": ["iron", "ice"]}),  # another order
        (sample(), {"choices": ["ice", "iron", "gold"]}),
        (sample(), {"context": "In the sun."}),
        (sample(doc=NAMED | PASSAGE), {"context": "In the sun."}),
        (sample(), {"task": "generation"}),
        # the question as another one's worked example, by texts and by letters
        (sample(f"{SHOT}Which is bigger?\nAnswer:", doc={"id": 7, "text": "Which is bigger?"}), {}),
        (
            sample(
                f"{SHOT}Which is bigger?\nA. ice\nB. iron\nAnswer:",
                (" A", " B"),
                doc={"text": "Which is bigger?", "choices": ["ice", "iron"]},
            ),
            {},
        ),
        # letters whose options the task has shuffled, or that stand for more than our options
        (sample(f"{MELTS['question']}\nA. iron\nB. ice\nAnswer:", (" A", " B")), {}),
        (sample(f"{MELTS['question']}\nA. ice\nB. iron\nAnswer:", (" A", " B")), {"choices": ["A", "B"]}),
        (sample(f"{MELTS['question']}\nA. ice cream\nB. iron\nAnswer:", (" A", " B")), {}),
        (sample(f"{MELTS['question']}\nA. ice\nB. ironing\nAnswer:", (" A", " B")), {}),
        (sample(f"{MELTS['question']} Say A or B.", (" A", " B")), {}),
    ],
)
def test_a_row_that_is_another_questions(row: Row, fields: Row, tmp_path: Path) -> None:
    other = sample("Why?", ("x", "y"), doc={"text": "Why?", "choices": ["x", "y"]})  # so that the file is of use
    samples = SamplesFile(write(tmp_path / "s.jsonl", row, other))
    assert logprobs(samples, question(**fields)) == [None]
    assert logprobs(samples, question(text="Why?", choices=["x", "y"])) == [[-1.5, -2.25]]


def test_rows_of_one_text_are_told_apart_by_context_id_and_group(tmp_path: Path) -> None:
    first = sample(doc=NAMED | {"context": "Sun.", "group": "a"}, logprobs=(-1, -2))
    second = sample(doc=NAMED | {"id": 8, "context": "Frost.", "group": "b"}, logprobs=(-3, -4))
    samples = SamplesFile(write(tmp_path / "s.jsonl", first, second))
    table = [
        ({"id": 0, "context": "Sun."}, [-1, -2]),
        ({"id": 7, "context": "Frost."}, [-3, -4]),  # content before the id
        ({"id": 8}, [-3, -4]),
        ({"id": 0, "group": "b"}, [-3, -4]),
        ({"id": 0}, None),  # nothing tells which one
    ]
    assert logprobs(samples, *[question(**fields) for fields, _ in table]) == [values for _, values in table]


def test_of_rows_with_one_document_the_first_counts(tmp_path: Path) -> None:
    """Several filters, and a data set that has a row twice, with other ids."""
    rows = [sample(), sample(filter="upper", logprobs=(-8, -9)), sample(doc=NAMED | {"id": 8}, logprobs=(-8, -9))]
    samples = SamplesFile(write(tmp_path / "s.jsonl", *rows))
    assert logprobs(samples, question(), question(id=8), question(id=9)) == [[-1.5, -2.25], [-8, -9], [-1.5, -2.25]]


def test_impossible_options_stay_numbers(tmp_path: Path) -> None:
    failed = sample("Why?", ("x", "y"), (-math.inf, -math.inf), doc={"text": "Why?"})
    samples = SamplesFile(write(tmp_path / "s.jsonl", failed, sample(logprobs=(-math.inf, -2))))
    assert logprobs(samples, question(), question(text="Why?", choices=["x", "y"])) == [[-10000, -2], None]


def test_mutual_information_brings_the_options_without_the_question(tmp_path: Path) -> None:
    row = sample(texts=(" ice", " iron", " ice", " iron"), logprobs=(-1, -2, -3, -5))
    row["arguments"]["gen_args_2"]["arg_0"] = row["arguments"]["gen_args_3"]["arg_0"] = ""
    (score,) = SamplesFile(write(tmp_path / "s.jsonl", row)).scores([question()])
    assert score is not None
    assert score.unconditional is not None
    assert (score.logprobs.tolist(), score.unconditional.tolist()) == ([[-1, -2]], [-3, -5])


def test_our_own_submission(tmp_path: Path) -> None:
    known = [question(choices=[{"choice_id": 10, "text": "ice"}, {"choice_id": 20, "text": "iron"}], context="記事")]
    known += [question(id=8, text="Why?"), question(id=9, task="math", text="1 + 1?"), question(id=10, text="How?")]
    answers: list[Row] = [
        {"prediction": 1, "answer_text": "iron", "scores": [-1.3863, -0.2877]},
        {"prediction": 1, "answer_text": "iron", "scores": None},
        {"prediction": "2", "answer_text": "2", "scores": None},
        {"prediction": None, "answer_text": None, "scores": None},
    ]
    file = io.StringIO()
    sink = open_submission("lm_eval", file)
    for asked, answer in zip(known, answers, strict=True):
        sink.send((asked, answer | {"grade": None}))
    (tmp_path / "submission.json").write_text(file.getvalue(), "utf-8")
    (tmp_path / "grades.json").write_text("{}")
    (tmp_path / "predictions.jsonl").write_text('{"id": 7}\n')
    expected = [np.float32([-1.3863, -0.2877]).tolist(), [-10000, 0], None, None]
    assert logprobs(SamplesFile(str(tmp_path)), *known) == expected
    assert logprobs(SamplesFile(str(tmp_path / "submission.json")), *known) == expected


def test_several_files_and_their_fingerprint(tmp_path: Path) -> None:
    other = sample("Why?", ("x", "y"), doc={"text": "Why?"})
    one = SamplesFile(write(tmp_path / "one.jsonl", sample(), other))
    write(tmp_path / "out/model/samples_a_2026.jsonl", sample(acc=1.0))
    write(tmp_path / "out/model/samples_b_2026.jsonl", other)
    (tmp_path / "out/model/results_2026.json").write_text('{"results": {}}')
    for spec in ("out", "out/model/samples_*.jsonl"):
        both = SamplesFile(str(tmp_path / spec))
        assert logprobs(both, question(), question(text="Why?", choices=["x", "y"])) == [[-1.5, -2.25]] * 2
        assert both.fingerprint == one.fingerprint  # of what they say, not of names or metrics
    assert len(one.fingerprint) == 32
    for changed in (sample(logprobs=(-1.5, -2.26)), sample(doc=NAMED | {"id": 8}), sample(texts=(" iron", " ice"))):
        assert SamplesFile(write(tmp_path / "c.jsonl", changed, other)).fingerprint != one.fingerprint


def test_samples_in_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.files import location

    with local_s3() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        location("s3://quorum/lm/samples_a_1.jsonl").write_bytes(json.dumps(sample()).encode())
        location("s3://quorum/lm/results_1.json").write_bytes(b"{}")
        assert logprobs(SamplesFile("s3://quorum/lm"), question()) == [[-1.5, -2.25]]


GENERATED = {"arguments": {"gen_args_0": {"arg_0": "Why?", "arg_1": {"until": ["\n"]}}}, "resps": [["ice"]]}
SUITS = "run a task of output_type multiple_choice"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"doc_id": 0, "doc": {', "not valid JSON"),
        ("[1]", "none of lm-evaluation-harness's samples"),
        ('"text"', "is none of lm-evaluation-harness's samples; give a samples_*.jsonl of lm_eval --log_samples, or"),
        ({"id": 7, "answer": 1}, "none of lm-evaluation-harness's samples"),
        (sample(doc=[1]), "none of lm-evaluation-harness's samples"),  # type: ignore[arg-type]
        (sample(resps=None), "none of lm-evaluation-harness's samples"),
        (sample(**GENERATED), f"holds no log-likelihoods of options (a generate_until task writes texts): {SUITS}"),
        (sample(arguments={"gen_args_0": {"arg_0": "a whole text"}}), "holds no log-likelihoods of options"),
        (sample(arguments={"gen_args_0": None, "gen_args_1": None}), "holds no log-likelihoods of options"),
        (sample(texts=(" ice",), logprobs=(-1,)), "has 1 option in 1 requests and 1 responses; a row has one of each"),
        (sample(logprobs=(-1, -2, -3)), "has 2 options in 2 requests and 3 responses"),
        (sample(texts=tuple(map(str, range(27))), logprobs=(-1,) * 27), "for 2 to 26 options: make the file again"),
        (
            sample(arguments={f"gen_args_{i}": {"arg_0": f"{x} melts", "arg_1": " first"} for i, x in enumerate("ab")}),
            "its options stand in the prompts; run a task whose doc_to_choice gives texts or letters",
        ),
        (sample(logprobs=(-1, math.nan)), 'of \'iron\' is no number up to 0 in [["nan", "False"]]'),
        (sample(logprobs=(math.inf, -1)), "the log-likelihood of 'ice' is no number up to 0"),
        (sample(resps=[[["-1", "False"]], [["minus two", "False"]]]), "of 'iron' is no number up to 0"),
        (sample(resps=[[["-1", "False"]], []]), "of 'iron' is no number up to 0 in []; run the model again"),
    ],
)
def test_rows_that_are_refused(row: Row | str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "samples_a_1.jsonl"
    path.write_text(json.dumps(sample()) + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(InputError) as caught:
        SamplesFile(str(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "runs/samples_a_1.jsonl", sample())
    write(tmp_path / "runs/samples_a_2.jsonl", sample(logprobs=(-8, -9)))
    with pytest.raises(InputError, match=r"samples_a_2.jsonl:1: .*samples_a_1.jsonl has the same document: name the"):
        SamplesFile(str(tmp_path / "runs"))
    write(tmp_path / "other/predictions.jsonl", sample())
    with pytest.raises(InputError, match=r"the folder holds no samples_\*.jsonl or submission.json; name the file"):
        SamplesFile(str(tmp_path / "other"))
    with pytest.raises(InputError, match="no file or folder matches"):
        SamplesFile(str(tmp_path / "none.jsonl"))
    shown = write(tmp_path / "shown.jsonl", sample(doc={"text": "not what the prompt shows"}))
    with pytest.raises(InputError, match=r"no row whose prompt shows a text of its document and the options; run a"):
        SamplesFile(shown)
