"""Deadline mode: complete early, inside the time, and better with more of it."""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest

from ensemble.load import load_config
from ensemble.plan import make_plan
from ensemble.read import Selection, iter_blocks, read_questions
from ensemble.records import Score
from ensemble.store import StoreWriter, open_store
from pipelines.deadline import Deadline, by_promise, seconds
from tests.conftest import identity
from tests.simulation import prepare, simulate

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
  multiple_choice: {members: [{model: tiny, template: choice, scoring: {method: letter, orders: cyclic}}]}
  math:
    members: [{model: tiny, template: open, sampling: {max_tokens: 20, samples: 3, temperature: 0.7}}]
ray: {stage_actors: 1, questions_in_flight: 8}
"""


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("45s", 45), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("10m5s", 605)]
)
def test_time_spans(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "5d", "m"])
def test_no_time_spans(text):
    with pytest.raises(ArgumentTypeError, match="write 2h, 45m"):
        seconds(text)


def test_asking_stops_early_enough_to_write_the_results():
    assert Deadline(100, ends=1100.0, writing=10.0).until == 1100 - 15 - 12
    # 1,000 summaries of which each takes 4 ms to write
    assert Deadline.of(60, 1000.0, {"summarization": 1000}).until == pytest.approx(1060 - 1.5 * 4 - 12)


def half_answered(tmp_path, tokenizer, shares):
    """Plan, store and what was read: of each question, by id, the probabilities of its options in one order; of one
    more nothing."""
    (tmp_path / "run.yaml").write_text(CONFIG.replace("MODEL", str(tokenizer)).replace("FAKE", "{}"))
    config = load_config(tmp_path / "run.yaml")
    rows = [
        {"id": name, "task": "multiple_choice", "text": name, "choices": list("abc"[: len(share)])}
        for name, share in shares.items()
    ]
    rows.append({"id": "nobody answered this", "task": "multiple_choice", "text": "?", "choices": ["a", "b"]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_questions(str(tmp_path / "in.jsonl"), tmp_path / "questions", Selection(), print)
    plan = make_plan(config, ["multiple_choice"])
    store = open_store(tmp_path / "store")
    writer = StoreWriter(store, 100)
    for question in [q for block in iter_blocks(read.blocks) for q in block][: len(shares)]:
        table = np.log([shares[str(question.id)]]).astype(np.float32)
        n = len(question.choices)
        writer.add(plan.tasks["multiple_choice"][0].key, question.hash, Score(identity(n), table, np.ones(n, np.int32)))
    writer.flush()
    return plan, store, read


def test_the_most_doubtful_and_cheapest_questions_come_first(tmp_path, word_tokenizer):
    shares = {"sure": (0.9, 0.05, 0.05), "torn": (0.4, 0.35, 0.25), "half": (0.6, 0.2, 0.2), "pair": (0.6, 0.4)}
    plan, store, read = half_answered(tmp_path, word_tokenizer, shares)
    (item,) = by_promise(plan, store, read.blocks, stages=1)
    ((block, order, *_),) = item.parts
    # doubt over prompts: pair .4/1, torn .6/2, half .4/2, sure .1/2
    assert (block, order) == (read.blocks[0], [3, 1, 2, 0])
    assert item.tasks == {"multiple_choice": 4}


@pytest.mark.parametrize(("stages", "sizes"), [(2, [16] * 6), (12, [8] * 12)])
def test_what_is_promising_is_shared_by_all_stage_actors(tmp_path, word_tokenizer, stages, sizes):
    shares = {f"q{i}": (0.9, 0.1 - i / 1000, i / 1000) for i in range(1, 97)}
    plan, store, read = half_answered(tmp_path, word_tokenizer, shares)
    items = by_promise(plan, store, read.blocks, stages)
    assert [item.tasks.total() for item in items] == sizes
    assert sorted(row for item in items for part in item.parts for row in part.rows) == list(range(96))


def test_a_question_that_runs_out_of_time_has_no_error_whatever_the_clock_says_then(tmp_path):
    work = prepare(tmp_path, [{"id": i, "task": "generation", "text": f"Say {i}"} for i in range(5)])
    # Each takes 20 to 41 s of the loop's time; the other clock has hardly moved when time is up.
    run = simulate(work, [0.05], until=time.time() + 10)
    assert (run.computed, run.errors) == (5, {})
    assert 9 < run.seconds < 10.1


def start(address, folder, config, name, *more):
    command = [sys.executable, str(Path(__file__).parents[1] / "pipelines/solve.py"), "--config", str(config)]
    command += ["--input", str(folder / "in.jsonl"), "--output", str(folder / name), *more]
    command += ["--set", f"store.path={folder / f'store-{name}'}"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"QUORUM_HOME": str(folder / "q"), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": address}
    with open(folder / f"{name}.log", "w") as log:
        return subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def test_more_time_is_never_worse(tmp_path, word_tokenizer, cluster):
    rows = [
        {"id": i, "task": "multiple_choice", "text": f"Which {i}?", "choices": [f"{c} of {i}" for c in "abcd"]}
        for i in range(60)
    ]
    rows += [{"id": f"m{i}", "task": "math", "text": f"How much is {i}?"} for i in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = CONFIG.replace("MODEL", str(word_tokenizer))
    (tmp_path / "fast.yaml").write_text(texts.replace("FAKE", "{text: [It is 7, It is 8]}"))
    (tmp_path / "slow.yaml").write_text(texts.replace("FAKE", "{text: [It is 7, It is 8], seconds: 1.0}"))
    # The gold is planted: what the whole plan answers.
    whole = start(cluster, tmp_path, tmp_path / "fast.yaml", "whole")
    assert whole.wait(120) == 0, (tmp_path / "whole.log").read_text()
    answers = [json.loads(line) for line in (tmp_path / "whole/submission.json").read_text().splitlines()]
    gold = [row | {"answer": answer["answer"]} for row, answer in zip(rows, answers, strict=True)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))

    limits = (40, 48, 56, 64, 90)
    options = ("--gold", str(tmp_path / "gold.jsonl"), "--deadline")
    begun = time.monotonic()
    runs = {s: start(cluster, tmp_path, tmp_path / "slow.yaml", f"d{s}", *options, f"{s}s") for s in limits}
    took = {}
    while len(took) < len(runs) and time.monotonic() - begun < 150:
        took |= {s: time.monotonic() - begun for s, run in runs.items() if s not in took and run.poll() is not None}
        time.sleep(0.1)
    scores, reached = [], []
    for limit, run in runs.items():
        output = (tmp_path / f"d{limit}.log").read_text()
        facts = json.loads((tmp_path / f"d{limit}/manifest.json").read_text())["deadline"]
        assert took[limit] <= limit, output
        submitted = [json.loads(line) for line in (tmp_path / f"d{limit}/submission.json").read_text().splitlines()]
        assert [row["id"] for row in submitted] == [row["id"] for row in rows]
        assert all(row["answer"] is not None for row in submitted)
        errors = [json.loads(line)["type"] for line in (tmp_path / f"d{limit}/errors.jsonl").read_text().splitlines()]
        assert set(errors) <= {"DeadlineError"}, (tmp_path / f"d{limit}/errors.jsonl").read_text()
        assert facts["answered_in_full"] + facts["answered_in_part"] + facts["not_reached"] == len(rows)
        assert run.returncode == (1 if facts["not_reached"] else 0), output
        grades = json.loads((tmp_path / f"d{limit}/grades.json").read_text())
        scores.append([grades["multiple_choice"]["accuracy"]["mean"], grades["math"]["numeric_match"]["mean"]])
        reached.append(facts["answered_in_full"])
    assert np.all(np.diff(scores, axis=0) >= 0), scores
    assert reached == sorted(reached)
    assert reached[0] < len(rows)  # the shortest had to leave something out
    assert reached[-1] == len(rows)  # the longest had time for everything
    assert scores[-1] == [1.0, 1.0]
    assert scores[0] < scores[-1]
