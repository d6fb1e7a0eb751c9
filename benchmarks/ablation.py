"""How long hundreds of variants take to replay and compare, from stored scores: no model is touched.

python benchmarks/ablation.py --questions 5000 --cpus 2

Simulated scores (tests/scorers.py: letter priors, margins, order noise) of three models in all 24 orders of four
options are put into a store; then ablate.py runs over a grid of about 500 variants, pinned to some cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np

from ensemble.finest import finest
from ensemble.grid import expand
from ensemble.load import load_ablation
from ensemble.orders import make_orders
from ensemble.plan import make_plan
from ensemble.read import Selection, iter_blocks, read_questions
from ensemble.records import PromptFacts, Score
from ensemble.store import StoreWriter, open_store
from pipelines.ablation import run_config
from tests.scorers import Scorer, simulate

MODELS = {"one": 0.60, "two": 0.70, "three": 0.80}  # accuracy
CONFIG = """
input: {folder}/questions.jsonl
output: {folder}/board
budget: 0
models:
{models}
grids:
  - model: [one, two, three]
    template: [letters]
    orders: [identity, cyclic, "latin:2", "latin:3", full]
    debias: [none, pride]
    combine: [mean_logprob, mean_prob, majority]
    temperature: [0.5, 1.0, 2.0]
  - model: [one, two, three]
    template: [letters]
    orders: [adaptive]
    combine: [mean_prob, majority]
    max_disagreement: [0.005, 0.01, 0.02, 0.05]
  - members:
{members}
    orders: [identity, cyclic, "latin:2", full]
    combine: [mean_logprob, mean_prob, majority]
    debias: [none, pride]
    weights: [[1, 1, 1], [1, 1, 2], [1, 2, 2], [1, 2, 3], [1, 2, 4], [1, 3, 3], [1, 3, 6], [1, 4, 8], [2, 3, 4]]
store: {{path: {folder}/store}}
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--questions", type=int, default=5000)
    p.add_argument("--cpus", type=int, default=2, help="cores that ablate.py may use")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.questions)
        for run in ("first run", "again"):
            started = time.monotonic()
            env = os.environ | {"OMP_NUM_THREADS": str(options.cpus), "OPENBLAS_NUM_THREADS": str(options.cpus)}
            subprocess.run(
                [sys.executable, "pipelines/ablate.py", "--config", str(folder / "ablate.yaml")],
                cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=env,
                preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cpus]),
            )  # fmt: skip
            seconds = time.monotonic() - started
            steps = json.loads((folder / "board" / "manifest.json").read_text())["seconds"]
            board = json.loads((folder / "board" / "leaderboard.json").read_text())
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            size = (folder / "board" / "leaderboard.html").stat().st_size / 1e6
            print(
                f"{run}: {len(board['variants'])} variants, {options.questions} questions x 24 orders x 3 models: "
                f"{seconds:.1f} s in all, {peak:.2f} GiB, page {size:.1f} MB; {steps}"
            )


def prepare(folder: Path, n: int) -> None:
    """Questions, the config, and a store with everything that its grid asks for."""
    # One seed: the same gold and the same luck, as models that learnt from the same texts have.
    said = [simulate(Scorer(accuracy), n, 4, "full", seed=0) for accuracy in MODELS.values()]
    words = np.random.default_rng(0).integers(0, 10**6, size=(n, 5))
    with (folder / "questions.jsonl").open("w") as f:
        for i, row in enumerate(words.tolist()):
            choices = [f"option {i}-{k}" for k in row[1:]]
            question = {"id": i, "task": "multiple_choice", "text": f"Question {i} about {row[0]}?", "choices": choices}
            f.write(json.dumps(question | {"answer": int(said[0].gold[i]), "group": f"subject {i % 20}"}) + "\n")
    # Three models of one source that differ in what the store's key has: nothing is ever loaded.
    models = "\n".join(
        f"  {name}: {{source: {{path: {folder}/model}}, context_length: {1024 + i}, "
        "engine: {device: cpu, hardware: simulated}}"
        for i, name in enumerate(MODELS)
    )
    members = "\n".join(f"      - {{model: {name}, template: letters, scoring: {{method: letter}}}}" for name in MODELS)
    (folder / "model").mkdir()
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / "model" / file).write_text("{}")
    (folder / "ablate.yaml").write_text(CONFIG.format(folder=folder, models=models, members=members))
    config = load_ablation(folder / "ablate.yaml")
    expanded = expand(config)
    read = read_questions(str(config.input), folder / "blocks", Selection(), print)
    members_asked = finest(config, expanded)
    plan = make_plan(run_config(config, expanded, members_asked), list(members_asked), blocks=read.blocks)
    store = open_store(folder / "store")
    questions = [q for block in iter_blocks(read.blocks) for q in block]
    orders = make_orders("full", 4, config.seed)
    for planned, of_model in zip(plan.tasks["multiple_choice"], said, strict=True):
        writer = StoreWriter(store, 3600)
        for question, table in zip(questions, of_model.logprobs, strict=True):
            score = Score(orders, table.astype(np.float32), np.ones(4, np.int32), None, PromptFacts(100, "0" * 16))
            writer.add(planned.key, question.hash, score)
        writer.flush()


if __name__ == "__main__":
    main()
