"""Samples both ways with lm-evaluation-harness 0.4.13; needs an environment with lm-eval and Quorum's packages.

Make a peer's file: the harness asks a model (its backend `hf`, on this machine's CPU) the multiple-choice questions of
a file, by the prompts of configs/templates/cloze.yaml or letters.yaml, and writes DIR/MODEL/samples_*.jsonl:

python benchmarks/lm_eval_samples.py peer --model FOLDER --input FILE --output DIR [--letters] [--limit N]

Have the harness read ours: a run's submission.json (submission.format=lm_eval) goes, under the name that its tools look
for, through its search for files, through `datasets`, which the hub's viewer uses, and through its own task: `acc`
computed anew from the log-likelihoods and the mean over all must be those of the run. Exit status 1 where they are not:

python benchmarks/lm_eval_samples.py check RUN_FOLDER
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ensemble.questions import LETTERS, parse_question
from ensemble.read import find_inputs
from ensemble.rows import iter_rows

PASSAGE = "{% if context %}{{ context }}\n{% endif %}Question: {{ text }}\nAnswer:"
LISTED = (
    "{% if context %}Passage: {{ context }}\n{% endif %}Question: {{ text }}\n"
    "{% for choice in choices %}{{ 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[loop.index0] }}. {{ choice }}\n{% endfor %}Answer:"
)
NAME, DATE = "quorum", "2026-01-01T00-00-00.000000"


def task_config(docs: list[dict[str, Any]], letters: bool = False) -> dict[str, Any]:
    """The harness's task over documents with text, context, choices (texts) and answer (index)."""
    from datasets import Dataset

    return {
        "task": f"{NAME}_letters" if letters else NAME,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": LISTED if letters else PASSAGE,
        "doc_to_choice": (lambda doc: list(LETTERS[: len(doc["choices"])])) if letters else "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": x, "aggregation": "mean", "higher_is_better": True} for x in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }


def documents(spec: str, limit: int | None) -> list[dict[str, Any]]:
    """The multiple-choice questions with gold of the files that `spec` names."""
    rows = [(path, line, row) for path in find_inputs(spec) for line, row in iter_rows(path)]
    questions = [parse_question(row, i, str(path), line) for i, (path, line, row) in enumerate(rows)]
    return [
        {"id": q.id, "text": q.text, "context": q.context, "choices": list(q.choices), "answer": q.gold}
        for q in questions
        if q.task == "multiple_choice" and q.gold is not None
    ][:limit]


def peer(options: argparse.Namespace) -> int:
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(options.output))
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(options.model), "dtype": "float32"},
        tasks=[task_config(documents(options.input, options.limit), options.letters)],
        device="cpu",
        batch_size=8,
        log_samples=True,
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    for name, rows in samples.items():
        tracker.save_results_samples(name, rows)
    print(*sorted(Path(options.output).rglob("samples_*.jsonl")), sep="\n")
    return 0


def check(options: argparse.Namespace) -> int:
    grades = json.loads((options.run / "grades.json").read_text("utf-8"))["multiple_choice"]["accuracy"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, NAME, f"samples_{NAME}_{DATE}.jsonl")
        path.parent.mkdir()
        with (options.run / "submission.json").open(encoding="utf-8") as f:
            rows = [line for line in f if '"acc"' in line and "acc" in json.loads(line)]
        path.write_text("".join(rows), "utf-8")
        samples = read_by_the_harness(Path(folder))
    metrics = computed_by_the_harness(samples)
    print(f"grades.json: accuracy {grades['mean']:.6f} of {grades['n']} questions")
    return 0 if round(metrics["acc,none"], 6) == round(grades["mean"], 6) and len(samples) == grades["n"] else 1


def read_by_the_harness(folder: Path) -> list[dict[str, Any]]:
    """The rows of the samples file in the folder, found by the harness's functions for it and read by `datasets`."""
    from datasets import load_dataset
    from lm_eval import utils

    (name,) = utils.get_sample_results_filenames([str(path) for path in folder.rglob("*")])
    found = Path(name).name
    print(f"found {found}: task {utils.get_file_task_name(found)}, of {utils.get_file_datetime(found)}")
    loaded = load_dataset("json", data_files=name, split="train", cache_dir=str(folder / "cache"))
    print(f"datasets: {len(loaded)} rows, columns {', '.join(loaded.column_names)}")
    with Path(name).open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def computed_by_the_harness(samples: list[dict[str, Any]]) -> dict[str, float]:
    """acc and acc_stderr from the log-likelihoods alone, by the harness's task and aggregation; tells what differs."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator_utils import _compute_task_aggregations

    docs = [
        {"text": s["doc"]["text"], "context": s["doc"].get("context"), "choices": texts(s), "answer": int(s["target"])}
        for s in samples
    ]
    task = ConfigurableTask(config=task_config(docs))
    values = []
    for sample, doc in zip(samples, docs, strict=True):
        pairs = [(float(value), greedy == "True") for value, greedy in sample["filtered_resps"]]
        values.append(task.process_results(doc, pairs)["acc"])
        if values[-1] != sample["acc"]:
            print(f"doc_id {sample['doc_id']}: acc {sample['acc']}, the harness says {values[-1]} from {pairs}")
    metrics, n = _compute_task_aggregations(task, {("acc", "none"): values})
    print(f"the harness: acc {metrics['acc,none']:.6f} ± {metrics['acc_stderr,none']:.6f} of {n} questions")
    return metrics


def texts(sample: dict[str, Any]) -> list[str]:
    return [c["text"] if isinstance(c, dict) else c for c in sample["doc"]["choices"]]


def main() -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    ask = commands.add_parser("peer", help="let the harness ask a model")
    ask.add_argument("--model", type=Path, required=True, help="folder with config.json, tokenizer and weights")
    ask.add_argument("--input", required=True, help="questions in Quorum's form: file, glob or folder")
    ask.add_argument("--output", type=Path, required=True)
    ask.add_argument("--letters", action="store_true", help="list the options and ask for their letters")
    ask.add_argument("--limit", type=int, help="the first N questions")
    ask.set_defaults(call=peer)
    read = commands.add_parser("check", help="let the harness read a run's submission.json")
    read.add_argument("run", type=Path)
    read.set_defaults(call=check)
    options = parser.parse_args()
    status: int = options.call(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
