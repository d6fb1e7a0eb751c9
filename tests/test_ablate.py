"""The ablation pipeline as a user runs it, with the scripted engine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ensemble.config import ROOT

pytestmark = pytest.mark.slow

CONFIG = """
input: in.jsonl
output: out
models:
  tiny: {source: {path: MODEL}, context_length: 400, engine: {device: cpu, fake: {}}}
templates:
  choice:
    question: "Q {{ text }}{% for c in choices %} {{ c.label }}={{ c.text }}{% endfor %} A"
    answer: "{{ answer }}"
  open: {question: "Q {{ text }} A"}
grids:
  - model: [tiny]
    template: [choice]
    orders: [identity, cyclic, "latin:2", full, adaptive]
    debias: [none, pride]
    combine: [mean_logprob, mean_prob, majority]
  - model: [tiny]
    template: [open]
    scoring: [cloze]
    normalisation: [char, pmi]
  - members:
      - {model: tiny, template: choice, scoring: {method: letter, orders: cyclic}}
      - {model: tiny, template: open, scoring: {method: cloze}}
    weights: [[1, 1], [3, 1]]
  - task: math
    model: [tiny]
    template: [open]
    temperature: [0, 0.7]
    n_samples: [1, 3]
store: {path: store}
ray: {stage_actors: 1}
"""


def row(i: int) -> dict:
    if i % 6 == 5:
        return {"id": i, "task": "math", "text": f"How much is {i}?", "answer": "7"}
    choices = [f"option {j} of {i}" for j in range(2 + i % 4)]
    return {
        "id": i,
        "task": "multiple_choice",
        "text": f"Which {i}?",
        "choices": choices,
        "answer": 1,
        "group": "gh"[i % 2],
    }


class Sandbox:
    def __init__(self, folder: Path, model: Path, cluster: str) -> None:
        self.folder, self.cluster = folder, cluster
        (folder / "home").mkdir()
        self.write(CONFIG.replace("MODEL", str(model)))
        self.rows([row(i) for i in range(60)])

    def write(self, config: str) -> None:
        (self.folder / "ablate.yaml").write_text(config)

    def change(self, **keys: object) -> None:
        data = yaml.safe_load((self.folder / "ablate.yaml").read_text())
        self.write(yaml.safe_dump(data | keys))

    def rows(self, rows: list[dict]) -> None:
        (self.folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def run(self, *arguments: object, pipeline: str = "ablate", config: str = "ablate.yaml"):
        fixed = {"HOME": str(self.folder / "home"), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.cluster}
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | fixed
        command = [sys.executable, str(ROOT / f"pipelines/{pipeline}.py"), "--config", config, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=self.folder, timeout=200)

    def board(self) -> dict:
        return json.loads((self.folder / "out/leaderboard.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, word_tokenizer: Path, cluster: str) -> Sandbox:
    box = Sandbox(tmp_path_factory.mktemp("ablate"), word_tokenizer, cluster)
    run = box.run()
    assert run.returncode == 0, run.stderr
    return box


@pytest.fixture
def fresh(tmp_path: Path, word_tokenizer: Path, cluster: str) -> Sandbox:
    return Sandbox(tmp_path, word_tokenizer, cluster)


def test_every_variant_is_compared_on_the_same_questions(done: Sandbox):
    board = done.board()
    choice = [v for v in board["variants"] if v["task"] == "multiple_choice"]
    # identity with one combiner (one order), the rest with three; adaptive without mean_logprob; pride doubles the
    # first four: 1 + 3 * 3 + 4 * 3 + 2, and cloze 2, ensembles 2
    assert len(choice) == 1 + 9 + 12 + 2 + 2 + 2
    assert {v["score"]["n"] for v in choice} == {50}
    assert {v["score"]["n"] for v in board["variants"] if v["task"] == "math"} == {10}
    # 50 questions are too few for 1%
    assert [v["adaptive"]["guarantee"] for v in choice if v["adaptive"]] == [False, False]
    assert set(choice[0]["groups"]) == {"g", "h"}
    first = board["tasks"]["multiple_choice"]["reference"]
    assert [v["id"] for v in board["variants"] if v["against_reference"] is None and v["task"] != "math"] == [first]
    full = next(v for v in choice if v["axes"].get("orders") == "full" and v["axes"]["combine"] == "mean_prob")
    assert full["cost"]["orders"] == pytest.approx(sum([2, 6, 24, 120][i % 4] for i in range(60) if i % 6 != 5) / 50)


def test_a_second_run_with_more_variants_touches_no_model(done: Sandbox):
    board = done.board()
    grids = yaml.safe_load((done.folder / "ablate.yaml").read_text())["grids"]
    grids[0] |= {"orders": ["identity", "sampled:5", "latin:3", "full"], "temperature": [0.5, 1.0, 2.0]}
    (done.folder / "more.yaml").write_text((done.folder / "ablate.yaml").read_text())
    data = yaml.safe_load((done.folder / "more.yaml").read_text()) | {"grids": grids, "output": "more", "budget": 0}
    data["models"]["tiny"]["engine"]["fake"] = {"seconds": 1000}  # whoever asks it waits
    (done.folder / "more.yaml").write_text(yaml.safe_dump(data))
    run = done.run(config="more.yaml")
    assert run.returncode == 0, run.stderr
    assert "0 prompts for 0 questions are not in the store" in run.stderr
    assert "starting Ray" not in run.stderr
    more = json.loads((done.folder / "more/leaderboard.json").read_text())
    assert len(more["variants"]) > len(board["variants"]) + 20
    cloze = {v["name"]: v["score"] for v in board["variants"] if "cloze" in v["name"]}
    assert cloze.items() <= {v["name"]: v["score"] for v in more["variants"]}.items()


def test_solve_takes_the_routes_and_decides_alike(done: Sandbox):
    routes = yaml.safe_load((done.folder / "out/routes.yaml").read_text())
    board = done.board()
    for task in ("multiple_choice", "math"):
        best = next(v for v in board["variants"] if v["id"] == board["tasks"][task]["best"])
        assert best["score"]["mean"] == max(v["score"]["mean"] for v in board["variants"] if v["task"] == task)
        assert routes["tasks"][task]["description"].startswith(best["name"])
        assert "chosen on one half and scored on the other" in routes["tasks"][task]["description"]
    run = done.run(pipeline="solve", config="out/routes.yaml")
    assert run.returncode == 0, run.stderr
    assert "starting Ray" not in run.stderr
    grades = json.loads((done.folder / "out/routes/grades.json").read_text())
    for task, metric in (("multiple_choice", "accuracy"), ("math", "numeric_match")):
        best = next(v for v in board["variants"] if v["id"] == board["tasks"][task]["best"])
        assert grades[task][metric]["mean"] == pytest.approx(best["score"]["mean"], abs=1e-6)


def test_each_variant_alone_is_what_solve_gives(done: Sandbox):
    for orders, combine in (("full", "majority"), ("adaptive", "mean_prob"), ("latin:2", "mean_logprob")):
        plan = {
            "combine": combine,
            "members": [{"model": "tiny", "template": "choice", "scoring": {"method": "letter", "orders": orders}}],
        }
        data = yaml.safe_load((done.folder / "ablate.yaml").read_text())
        data = {k: data[k] for k in ("input", "models", "templates", "store")} | {"tasks": {"multiple_choice": plan}}
        (done.folder / "one.yaml").write_text(yaml.safe_dump(data))
        run = done.run("--task", "multiple_choice", "--output", "one", pipeline="solve", config="one.yaml")
        assert run.returncode == 0, run.stderr
        assert "starting Ray" not in run.stderr
        accuracy = json.loads((done.folder / "one/grades.json").read_text())["multiple_choice"]["accuracy"]
        axes = {"orders": orders, "combine": combine, "debias": "none"}
        (same,) = [
            v for v in done.board()["variants"] if v["axes"].items() >= axes.items() and "weights" not in v["axes"]
        ]
        assert accuracy["mean"] == pytest.approx(same["score"]["mean"], abs=1e-6)


def test_another_models_samples_join_the_votes(done: Sandbox):
    """As a peer's file the run's own samples: the same answers as a variant, and as a member of an ensemble."""
    run = done.run("--task", "multiple_choice", "--output", "mine", "--set", "submission.format=lm_eval",
                   pipeline="solve", config="out/routes.yaml")  # fmt: skip
    assert run.returncode == 0, run.stderr
    data = yaml.safe_load((done.folder / "ablate.yaml").read_text())
    own = {"model": "tiny", "template": "open", "scoring": {"method": "cloze"}}
    theirs = {"samples": "mine/submission.json", "scoring": {"method": "letter"}}
    grids = [{"samples": ["mine/submission.json"]}, {"members": [own, theirs], "weights": [[1, 1], [1, 1000]]}]
    (done.folder / "theirs.yaml").write_text(yaml.safe_dump(data | {"grids": grids, "output": "theirs", "budget": 0}))
    run = done.run("--task", "multiple_choice", config="theirs.yaml")
    assert run.returncode == 0, run.stderr
    alone, _, outvoted = json.loads((done.folder / "theirs/leaderboard.json").read_text())["variants"]
    accuracy = json.loads((done.folder / "mine/grades.json").read_text())["multiple_choice"]["accuracy"]["mean"]
    assert alone["score"]["mean"] == outvoted["score"]["mean"] == pytest.approx(accuracy, abs=1e-6)
    assert alone["cost"]["orders"] == 0


def test_a_dry_run_says_what_would_be_asked_and_asks_nothing(fresh: Sandbox):
    run = fresh.run("--dry-run")
    assert run.returncode == 0, run.stderr
    assert "prompts for 60 questions are not in the store" in run.stderr
    assert not (fresh.folder / "out/leaderboard.json").exists()
    assert not list((fresh.folder / "store").glob("scores/*"))


def test_a_share_thins_every_group(done: Sandbox):
    run = done.run("--limit", "0.5", "--task", "multiple_choice", "--output", "half")
    assert run.returncode == 0, run.stderr
    (summary,) = json.loads((done.folder / "half/leaderboard.json").read_text())["tasks"].values()
    assert summary["questions"] == 25
    groups = json.loads((done.folder / "half/leaderboard.json").read_text())["variants"][0]["groups"]
    assert (groups["g"]["n"], groups["h"]["n"]) == (15, 10)  # of 30 and 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": []}, "grids"),
        ({"grids": [{"model": ["tiny"], "template": ["choice"], "orders": []}]}, "grids.0.orders"),
        ({"grids": [{"orders": ["cyclic"]}]}, "an empty grid: give model and template"),
        ({"grids": [{"model": ["tiny"], "template": ["choice"], "orders": ["adaptive"]}]}, "needs combine: mean_prob"),
        ({"grids": [{"model": ["tiny"], "template": ["choice"], "orders": ["cylic"]}]}, "did you mean 'cyclic'"),
        ({"grids": [{"modle": ["tiny"], "template": ["choice"]}]}, "did you mean 'model'"),
        (
            {"grids": [{"model": ["tiny"], "template": ["choice"], "orders": ["full"], "max_disagreement": [0.0]}]},
            "grids.0.max_disagreement.0",
        ),
        (
            {
                "grids": [
                    {
                        "members": [
                            {"model": "tiny", "template": "choice", "scoring": {"method": "letter"}},
                            {"model": "tiny", "template": "open", "scoring": {"method": "generate"}},
                        ]
                    }
                ]
            },
            "generate gives no log-probabilities to average",
        ),
        ({"grids": [{"members": [{"model": "tiny", "template": "choice"}]}]}, "needs scoring"),
        (
            {
                "grids": [
                    {
                        "members": [{"model": "tiny", "template": "choice", "scoring": {"method": "letter"}}],
                        "shots": [0, 5],
                    }
                ]
            },
            "shots: members say this themselves",
        ),
        ({"budget": 100}, "the grids need"),
        ({"reference": {"multiple_choice": "best one"}}, "unknown variant 'best one'"),
        (
            {"grids": [{"task": "generation", "model": ["tiny"], "template": ["open"]}]},
            "a grid is of generation, and the input has only multiple_choice, math",
        ),
        ({"metric": {"multiple_choice": "rouge1"}}, "does not fit task multiple_choice"),
    ],
)
def test_unusable_grids_end_before_anything_starts(fresh: Sandbox, change: dict, message: str):
    fresh.change(**change)
    run = fresh.run()
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert "starting Ray" not in run.stderr


def test_a_task_without_a_grid_is_left_aside_and_one_question_is_enough(fresh: Sandbox):
    fresh.change(grids=[{"model": ["tiny"], "template": ["choice"], "orders": ["identity", "cyclic"]}])
    fresh.rows([row(0), row(5)])
    run = fresh.run()
    assert run.returncode == 0, run.stderr
    assert "left aside, for no grid is of their task: 1 math" in run.stderr
    assert fresh.board()["tasks"]["multiple_choice"]["cross_fitted"] is None
    assert "With one question nobody can say" in (fresh.folder / "out/leaderboard.html").read_text()
    gold = [row(0) | {"answer": 1, "choices": list("abcdefg")} | {"answer": 6}]
    (fresh.folder / "gold.jsonl").write_text(json.dumps(gold[0]) + "\n")
    other = fresh.run("--gold", "gold.jsonl")
    assert other.returncode == 2
    assert "gold for id 0 is of another question" in other.stderr


def test_a_dry_run_of_a_fresh_one_removes_nothing(fresh: Sandbox):
    kept = fresh.folder / "out/fresh-store/kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert fresh.run("--fresh", "--dry-run").returncode == 0
    assert fresh.run("--fresh", "--set", "budget=1").returncode == 2
    assert kept.exists()


def test_full_orders_of_six_options_are_refused_with_their_cost(fresh: Sandbox):
    fresh.rows([{"id": 1, "task": "multiple_choice", "text": "x", "choices": list("abcdef"), "answer": 0}])
    run = fresh.run("--task", "multiple_choice")
    assert run.returncode == 2
    assert "720 prompts for each of 1 questions with 6 options" in run.stderr


@pytest.mark.parametrize("choices", [["a"], [f"o{i}" for i in range(30)], ["a", "b", "a"]])
def test_bad_options_are_rows_of_errors(fresh: Sandbox, choices: list[str]):
    bad = {"id": "bad", "task": "multiple_choice", "text": "x", "choices": choices, "answer": 0}
    fresh.rows([bad, *(row(i) for i in range(12))])
    run = fresh.run("--dry-run")
    assert run.returncode == 0
    assert "in.jsonl:1: choices" in run.stderr


def test_a_prior_of_another_template_is_refused(done: Sandbox):
    shutil.copytree(done.folder / "store", done.folder / "priors-store", dirs_exist_ok=True)
    member = {"model": "tiny", "template": "choice", "scoring": {"method": "letter", "debias": "pride"}}
    data = yaml.safe_load((done.folder / "ablate.yaml").read_text())
    run = {k: data[k] for k in ("input", "models", "templates")} | {"store": {"path": "priors-store"}, "output": "p"}
    (done.folder / "p.yaml").write_text(yaml.safe_dump(run | {"tasks": {"multiple_choice": {"members": [member]}}}))
    estimated = done.run("--task", "multiple_choice", pipeline="solve", config="p.yaml")
    assert estimated.returncode == 0, estimated.stderr
    (prior,) = (done.folder / "priors-store/priors").glob("*.json")
    scoring = member["scoring"] | {"prior": str(prior)}
    grids = [{"members": [member | {"scoring": scoring}]}]
    (done.folder / "q.yaml").write_text(yaml.safe_dump(data | {"grids": grids, "output": "q"}))
    same = done.run("--task", "multiple_choice", config="q.yaml")
    assert same.returncode == 0, same.stderr
    grids = [{"members": [member | {"scoring": scoring, "template": "open"}]}]
    (done.folder / "q.yaml").write_text(yaml.safe_dump(data | {"grids": grids, "output": "q"}))
    other = done.run("--task", "multiple_choice", config="q.yaml")
    assert other.returncode == 2
    assert "with another model or template than tiny/open" in other.stderr
    grids = [{"members": [member | {"scoring": scoring}]}, *grids]  # also behind one that it fits
    (done.folder / "q.yaml").write_text(yaml.safe_dump(data | {"grids": grids, "output": "q"}))
    other = done.run("--task", "multiple_choice", config="q.yaml")
    assert other.returncode == 2
    assert "with another model or template than tiny/open" in other.stderr
