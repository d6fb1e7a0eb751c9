"""The solve pipeline as a user runs it, with the scripted engine: fast, and failures on demand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble.config import ROOT

pytestmark = pytest.mark.slow

CONFIG = """
models:
  tiny: {source: {path: MODEL}, context_length: 400, engine: {device: cpu, fake: FAKE}}
templates:
  choice:
    question: "Q {{ text }}{% for c in choices %} {{ c.label }}={{ c.text }}{% endfor %} A"
    answer: "{{ answer }}"
  open: {question: "Q {{ text }} A"}
tasks:
  multiple_choice:
    members:
      - {model: tiny, template: choice, scoring: {method: letter, orders: cyclic}}
      - {model: tiny, template: choice, scoring: {method: cloze}, weight: 2}
  math: {members: [{model: tiny, template: open, sampling: {max_tokens: 20}}]}
  generation: {members: [{model: tiny, template: open, sampling: {max_tokens: 20}, cut: forbid}]}
ray: {stage_actors: 1}
store: {path: STORE}
"""


def good(i: int) -> dict:
    if i % 5 == 4:
        return {"id": f"m{i}", "task": "math", "text": f"How much is {i}?", "answer": "7" if i % 2 else "8"}
    choices = [f"option {j} of {i}" for j in range(2 + i % 4)]
    return {"id": i, "task": "multiple_choice", "text": f"Which {i}?", "choices": choices, "answer": 1, "group": "g"}


class Sandbox:
    def __init__(self, folder: Path, model: Path, cluster: str | None = None) -> None:
        """cluster: its address; None: each run has a Ray of its own."""
        self.folder, self.model, self.cluster = folder, model, cluster
        self.home = folder / "home"
        self.home.mkdir()

    def config(self, fake: str = "{}") -> Path:
        text = CONFIG.replace("MODEL", str(self.model)).replace("STORE", str(self.folder / "store"))
        path = self.folder / "run.yaml"
        path.write_text(text.replace("FAKE", fake))
        return path

    def rows(self, rows: list, name: str = "in.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return path

    def env(self) -> dict[str, str]:
        fixed = {"HOME": str(self.home), "QUORUM_HOME": str(self.folder / "q"), "RAY_AUTH_MODE": "disabled"}
        fixed |= {"RAY_ADDRESS": self.cluster} if self.cluster else {}
        dropped = ("RAY_ADDRESS", "PYTHONPATH")
        return {k: v for k, v in os.environ.items() if k not in dropped} | fixed

    def solve(self, *arguments: object, code: str | None = None) -> subprocess.CompletedProcess[str]:
        script = [str(ROOT / "pipelines/solve.py")] if code is None else ["-c", code]
        command = [sys.executable, *script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=self.env(), cwd=self.folder, timeout=200)

    def read(self, name: str, run: str = "out") -> list[dict]:
        return [json.loads(line) for line in (self.folder / run / name).read_text().splitlines()]


@pytest.fixture
def sandbox(tmp_path: Path, word_tokenizer: Path) -> Sandbox:
    return Sandbox(tmp_path, word_tokenizer)


@pytest.fixture
def joined(tmp_path: Path, word_tokenizer: Path, cluster: str) -> Sandbox:
    """Its runs join a Ray that is there."""
    return Sandbox(tmp_path, word_tokenizer, cluster)


BAD = [
    ({"task": "math", "text": "x"}, "id"),
    (good(0), "id"),  # stands there already
    ({"id": "b1", "task": "maths", "text": "x"}, "did you mean 'math'"),
    ({"id": "b2", "task": "multiple_choice", "text": "x"}, "choices"),
    ({"id": "b3", "task": "multiple_choice", "text": "x", "choices": ["a", "b"], "answer": 2}, "out of range"),
    ({"id": "b4", "task": "math", "text": "  "}, "text"),
    ({"id": "b5", "task": "math", "text": 5}, "text"),
    ('{"id": "b6", "task": "math", "text": "x"', "JSON"),
    ("[1, 2", "JSON"),
    ({"id": "b7", "task": "multiple_choice", "text": "x", "choices": "ab"}, "choices"),
    ({"id": "b8", "task": "multiple_choice", "text": "x", "choices": ["a"]}, "choices"),
    ({"id": True, "task": "math", "text": "x"}, "id"),
    ({"id": "b9", "text": "x"}, "task"),
    ('"just a string"', "object"),
    (
        {"id": "b10", "task": "multiple_choice", "text": "x", "choices": [{"choice_id": 1, "text": "a"}] * 2},
        "choice_id",
    ),
]


def test_fifteen_bad_rows_of_forty_and_then_a_replay(sandbox: Sandbox):
    rows: list = [good(i) for i in range(25)]
    places = [3 + 2 * i for i in range(len(BAD))]
    for place, (row, _) in zip(places, BAD, strict=True):
        rows.insert(place, row)
    assert len(rows) == 40
    arguments = ["--config", sandbox.config(), "--input", sandbox.rows(rows), "--output", "out"]
    first = sandbox.solve(*arguments)
    assert first.returncode == 1, first.stderr
    predictions = sandbox.read("predictions.jsonl")
    assert [p["id"] for p in predictions] == [good(i)["id"] for i in range(25)]
    assert not any(p["error"] for p in predictions)
    errors = sandbox.read("errors.jsonl")
    assert [e["line"] for e in errors] == [place + 1 for place in places]
    for error, (_, named) in zip(errors, BAD, strict=True):
        assert named.lower() in error["message"].lower()
    choice = predictions[1]
    assert choice["orders_used"] == 3 + 1  # three cyclic orders by letter, one by cloze
    assert sum(choice["votes"]) == 4
    assert len(choice["scores"]) == 3
    grades = json.loads((sandbox.folder / "out/grades.json").read_text())
    assert grades["math"]["numeric_match"]["n"] == 5
    assert grades["math"]["numeric_match"]["mean"] == pytest.approx(0.4)  # i = 9, 19 of 4, 9, 14, 19, 24
    assert grades["multiple_choice/g"]["accuracy"]["n"] == 20
    submission = [json.loads(x) for x in (sandbox.folder / "out/submission.json").read_text().splitlines()]
    assert [s["answer"] for s in submission] == [p["prediction"] for p in predictions]
    manifest = json.loads((sandbox.folder / "out/manifest.json").read_text())
    assert manifest["questions"] | {"near_ties": 0} == {
        "total": 25, "by_task": {"multiple_choice": 20, "math": 5}, "answered": 25, "from_store": 0, "computed": 25,
        "failed": 0, "bad_rows": 15, "near_ties": 0, "cut": 0,
    }  # fmt: skip
    assert "<html" in (sandbox.folder / "out/report.html").read_text()
    assert "b3" in (sandbox.folder / "out/report.html").read_text()

    # The replay computes nothing, imports neither Ray nor torch, and writes the same bytes.
    names = ("predictions.jsonl", "grades.json", "submission.json", "errors.jsonl")
    before = {name: (sandbox.folder / "out" / name).read_bytes() for name in names}
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pipelines import cli, run\n"
        f"assert run.solve(cli.solve_parser('', '').parse_args({[str(a) for a in arguments]!r}), 0.0) == 1\n"
        "assert not {'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)\n"
    )
    again = sandbox.solve(code=code)
    assert again.returncode == 0, again.stderr
    assert {name: (sandbox.folder / "out" / name).read_bytes() for name in names} == before
    assert json.loads((sandbox.folder / "out/manifest.json").read_text())["questions"]["from_store"] == 25

    # More questions, another vote and a gold file: only the new rows are computed.
    sandbox.rows([*rows, good(25)])
    gold = sandbox.rows([good(0) | {"answer": 0}], "gold.jsonl")
    more = sandbox.solve(
        *arguments, "--gold", gold, "--set", "tasks.multiple_choice.members.1.scoring.normalisation=sum"
    )
    assert more.returncode == 1, more.stderr
    questions = json.loads((sandbox.folder / "out/manifest.json").read_text())["questions"]
    assert (questions["from_store"], questions["computed"]) == (25, 1)
    assert sandbox.read("predictions.jsonl")[0]["grade"]["accuracy"] != predictions[0]["grade"]["accuracy"]


def test_a_question_that_fails_is_reported_and_the_rest_is_answered(joined: Sandbox):
    # The tokenizer has one token per byte; the scripted engine fails on the token of "Z".
    from transformers import AutoTokenizer

    poison = AutoTokenizer.from_pretrained(joined.model)("Z")["input_ids"][0]
    rows = [
        good(0),
        {"id": "bad", "task": "math", "text": "Z?"},
        {"id": "long", "task": "generation", "text": "x" * 500},
    ]
    rows += [{"id": "fits", "task": "generation", "text": "Who?"}]
    config = joined.config(fake=f"{{poison: {poison}}}")
    done = joined.solve(
        "--config", config, "--input", joined.rows(rows), "--output", "out", "--set", "submission.format=matsuo"
    )
    assert done.returncode == 1, done.stderr
    by_id = {p["id"]: p for p in joined.read("predictions.jsonl")}
    assert list(by_id) == [0, "bad", "long", "fits"]
    assert by_id["bad"]["error"]["type"] == "EngineError"
    assert by_id["long"]["error"]["type"] == "TooLongError"
    assert "set cut: tail, head or middle" in by_id["long"]["error"]["message"]
    assert by_id[0]["error"] is None
    assert [(e["id"], e["line"]) for e in joined.read("errors.jsonl")] == [("bad", 2), ("long", 3)]
    submission = json.loads((joined.folder / "out/submission.json").read_text())
    assert [s["id"] for s in submission] == [0, "bad", "long", "fits"]
    assert submission[1]["answer"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nowhere.jsonl"], r"no file or folder matches 'nowhere.jsonl'"),
        (["--input", "empty.jsonl"], r"empty\.jsonl.*no rows"),
        (["--input", "binary.jsonl"], r"binary\.jsonl"),
        (["--input", "bad.jsonl"], r"no usable"),
        (["--input", "sums.jsonl"], r"nobody answers 1 summarization rows: add members under tasks.summarization"),
        (["--input", "ok.jsonl", "--set", "tasks.math.memers=[]"], r"unknown key 'memers'; did you mean 'members'"),
        (["--input", "ok.jsonl", "--set", "models.tiny.source.path=/nowhere"], r"/nowhere"),
        (["--input", "ok.jsonl", "--task", "maths"], r"unknown task 'maths'; did you mean 'math'"),
        (
            ["--input", "ok.jsonl", "--output", "ok.jsonl/out"],
            r"output folder ok.jsonl/out: .*give another with --output",
        ),
        (["--input", "ok.jsonl", "--set", "store.path=ok.jsonl/s"], r"store ok.jsonl/s: .*--set store.path=DIR"),
        (["--input", "ok.jsonl", "--gold", "nogold.jsonl"], r"no row has a gold answer"),
        (["--input", "ok.jsonl", "--set", "tasks.math.metrics=[acuracy]"], r"unknown metric 'acuracy'"),
    ],
)
def test_unusable_input_or_config_ends_with_status_2_and_one_line(sandbox: Sandbox, arguments, message):
    sandbox.rows([{"id": 1, "task": "math", "text": "x"}], "ok.jsonl")
    sandbox.rows([{"id": 1, "task": "math", "text": "x"}], "nogold.jsonl")
    sandbox.rows([], "empty.jsonl")
    sandbox.rows([{"id": 1}], "bad.jsonl")
    sandbox.rows([{"id": 1, "task": "summarization", "text": "x"}], "sums.jsonl")
    (sandbox.folder / "binary.jsonl").write_bytes(bytes(range(256)) * 10)
    done = sandbox.solve("--config", sandbox.config(), "--output", "out", *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert re.search(message, line)
    assert "Traceback" not in done.stderr


def test_a_dry_run_prints_the_plan_and_starts_nothing(sandbox: Sandbox):
    rows = sandbox.rows([good(i) for i in range(10)])
    done = sandbox.solve("--config", sandbox.config(), "--input", rows, "--output", "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"multiple_choice\W+8\W+0\W+8\W+tiny/choice\W+letter", done.stdout)
    assert "to load" in done.stdout
    assert not list((sandbox.folder / "out").iterdir())


def test_one_run_at_a_time_writes_to_a_folder(sandbox: Sandbox):
    from filelock import FileLock

    (sandbox.folder / "run #3").mkdir()
    rows = sandbox.rows([good(0)])
    with FileLock(sandbox.folder / "run #3/.lock"):
        done = sandbox.solve("--config", sandbox.config(), "--input", rows, "--output", "run #3")
    assert done.returncode == 2
    assert "another run is writing to run #3" in done.stderr


def test_help_teaches(sandbox: Sandbox):
    done = sandbox.solve("--help")
    assert done.returncode == 0
    assert "exit status: 0 all answered" in done.stdout


def test_one_tasks_score_is_read_off_an_overlay(joined: Sandbox):
    """Matsuo's habit: only one task is answered, the rest comes from a baseline's submission, scores are relative."""
    rows = [good(i) for i in range(10)]  # two of them math, of which the scripted engine knows one
    baseline = [{"id": row["id"], "answer": 0 if row["task"] == "multiple_choice" else "8"} for row in rows]
    overlay = joined.rows(list(reversed(baseline)), "baseline.jsonl")
    arguments = ("--config", joined.config(), "--input", joined.rows(rows), "--output", "out", "--task", "math")
    done = joined.solve(*arguments, "--overlay", overlay, "--baseline", overlay, "--bell")
    assert done.returncode == 0, done.stderr
    submitted = joined.read("submission.json")
    assert [row["id"] for row in submitted] == [row["id"] for row in reversed(baseline)]
    ours = {row["id"]: row["answer"] for row in submitted}
    assert ours == {row["id"]: row["answer"] for row in baseline} | {"m4": "7", "m9": "7"}
    # Gold is 8 for m4 and 7 for m9: one right of two, as the baseline has.
    relative = json.loads((joined.folder / "out/manifest.json").read_text())["relative"]
    assert relative["total"] == 1.0
    assert "relative to the baseline 1.00000 = numeric_match 0.50000/0.50000" in done.stdout
    assert done.stderr.endswith("\a")
    other = joined.rows([{"id": "x", "answer": 1}], "other.jsonl")
    refused = joined.solve(*arguments, "--overlay", other)
    assert refused.returncode == 2
    assert "has no answer to any of the questions" in refused.stderr


@pytest.mark.parametrize(
    ("gold", "message"),
    [({"id": "m4", "task": "multiple_choice", "text": "x", "choices": ["a", "b"], "answer": 1}, "'m4' is of another"),
     (good(0) | {"choices": list("abcdefg"), "answer": 6}, "id 0 is of another")],
)  # fmt: skip
def test_gold_of_another_question_is_refused_before_anything_starts(sandbox: Sandbox, gold: dict, message: str):
    arguments = ("--config", sandbox.config(), "--input", sandbox.rows([good(i) for i in range(5)]), "--output", "out")
    done = sandbox.solve(*arguments, "--gold", sandbox.rows([gold], "gold.jsonl"), "--dry-run")
    assert done.returncode == 2
    assert message in done.stderr


ADAPTIVE = """
models:
  tiny: {source: {path: MODEL}, context_length: 400, engine: {device: cpu, fake: {}}}
templates:
  choice:
    question: "Q {{ text }}{% for c in choices %} {{ c.label }}={{ c.text }}{% endfor %} A"
    answer: "{{ answer }}"
tasks:
  multiple_choice:
    combine: mean_prob
    members: [{model: tiny, template: choice, scoring: {method: letter, orders: adaptive}}]
    adaptive: {max_disagreement: 0.05}
ray: {stage_actors: 2}
store: {path: STORE}
"""


def test_adaptive_votes_are_certified_cheaper_and_replayed(joined: Sandbox):
    # 59 tested questions without a disagreement certify 5% at 95%, after 100 that fit
    path = joined.folder / "adaptive.yaml"
    path.write_text(ADAPTIVE.replace("MODEL", str(joined.model)).replace("STORE", str(joined.folder / "store")))
    rows = [
        {"id": i, "task": "multiple_choice", "text": f"Which {i}?", "choices": [f"o{j} {i}" for j in range(2 + i % 3)],
         "answer": 0}
        for i in range(260)
    ]  # fmt: skip
    arguments = ["--config", path, "--input", joined.rows(rows), "--output", "out"]
    first = joined.solve(*arguments)
    assert first.returncode == 0, first.stderr
    assert "calibrating the votes on a sample" in first.stderr
    manifest = json.loads((joined.folder / "out/manifest.json").read_text())
    votes = manifest["votes"]["multiple_choice"]
    assert votes["certificate"]["guarantee"]
    assert (votes["certificate"]["fit"], votes["certificate"]["test"]) == (100, 59)
    assert votes["reference_orders"] == sum([2, 6, 24][i % 3] for i in range(260))
    predictions = joined.read("predictions.jsonl")
    assert votes["orders"] == sum(p["orders_used"] for p in predictions) < votes["reference_orders"]
    assert all(0 <= p["doubt"] < 1 for p in predictions)
    promised = "at most 5.00% of different questions decided other than by all orders, with 95% confidence"
    assert promised in " ".join(first.stdout.split())

    before = [(joined.folder / "out" / name).read_bytes() for name in ("predictions.jsonl", "grades.json")]
    again = joined.solve(*arguments)
    assert "260 answered from the store, 0 to compute" in again.stderr
    assert [(joined.folder / "out" / name).read_bytes() for name in ("predictions.jsonl", "grades.json")] == before

    full = joined.solve(*arguments, "--set", "tasks.multiple_choice.members.0.scoring.orders=full", "--output", "full")
    assert full.returncode == 0, full.stderr
    everything = joined.read("predictions.jsonl", "full")
    other = sum(a["prediction"] != b["prediction"] for a, b in zip(predictions, everything, strict=True))
    assert other <= 13  # 5% of 260
    # The input in another order and what the store has by now change nothing.
    backwards = joined.solve("--config", path, "--input", joined.rows(rows[::-1], "back.jsonl"), "--output", "back")
    assert backwards.returncode == 0
    assert {p["id"]: p for p in joined.read("predictions.jsonl", "back")} == {p["id"]: p for p in predictions}


def test_too_few_questions_promise_nothing_and_say_so(joined: Sandbox):
    path = joined.folder / "adaptive.yaml"
    path.write_text(ADAPTIVE.replace("MODEL", str(joined.model)).replace("STORE", str(joined.folder / "store")))
    run = joined.solve("--config", path, "--input", joined.rows([good(i) for i in range(4)]), "--output", "out")
    assert run.returncode == 0, run.stderr
    assert "no guarantee of at most 5.00% of different questions" in " ".join(run.stdout.split())
    assert "4 questions are too few to certify it" in " ".join(run.stdout.split())
    capped = joined.solve("--config", path, "--input", joined.folder / "in.jsonl", "--output", "capped",
                           "--set", "tasks.multiple_choice.adaptive.budget=5")  # fmt: skip
    assert capped.returncode == 0, capped.stderr
    assert all(p["orders_used"] <= 5 for p in joined.read("predictions.jsonl", "capped"))


def test_of_few_questions_all_are_the_sample(joined: Sandbox):
    path = joined.folder / "pride.yaml"
    text = ADAPTIVE.replace("orders: adaptive", "debias: pride")
    path.write_text(text.replace("MODEL", str(joined.model)).replace("STORE", str(joined.folder / "store")))
    rows = [{"id": i, "task": "multiple_choice", "text": f"Which {i}?", "choices": ["x", "y", "z"]} for i in range(12)]
    run = joined.solve("--config", path, "--input", joined.rows(rows), "--output", "out")
    assert run.returncode == 0, run.stderr
    assert [line.split("] ")[1] for line in run.stderr.splitlines() if "] answering" in line] == [
        "answering 12 multiple_choice"
    ]
    assert {p["orders_used"] for p in joined.read("predictions.jsonl")} == {3}


def test_pride_asks_a_sample_in_cycles_and_keeps_the_prior(joined: Sandbox):
    path = joined.folder / "pride.yaml"
    text = ADAPTIVE.replace("orders: adaptive", "debias: pride, prior_share: 0.1").replace("mean_prob", "mean_logprob")
    path.write_text(text.replace("MODEL", str(joined.model)).replace("STORE", str(joined.folder / "store")))
    rows = [
        {"id": i, "task": "multiple_choice", "text": f"Which {i}?", "choices": [f"o{j} {i}" for j in range(4)]}
        for i in range(200)
    ]  # fmt: skip
    run = joined.solve("--config", path, "--input", joined.rows(rows), "--output", "out")
    assert run.returncode == 0, run.stderr
    orders = [p["orders_used"] for p in joined.read("predictions.jsonl")]
    assert (orders.count(4), orders.count(1)) == (20, 180)
    (prior,) = (joined.folder / "store/priors").glob("*.json")
    assert sum(json.loads(prior.read_text())["priors"]["4"]) == pytest.approx(1)
    # The kept prior needs no sample: with it everything is there already.
    named = ["--set", f"tasks.multiple_choice.members.0.scoring.prior={prior}"]
    again = joined.solve("--config", path, "--input", joined.folder / "in.jsonl", "--output", "kept", *named)
    assert again.returncode == 0, again.stderr
    assert "200 answered from the store, 0 to compute" in again.stderr
    assert [p["orders_used"] for p in joined.read("predictions.jsonl", "kept")] == [1] * 200
