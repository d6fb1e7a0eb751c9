"""How the time of a run falls with the number of engines: the same work on 1, 2, 4 .. of engines that start once.

python benchmarks/scaling.py --model smollm2 --engines 4 --questions 4000 --folder /tmp/scaling   # on 4 GPUs
python benchmarks/scaling.py --model 7b.yaml --engines 4 --questions 1000 --times 25 --folder /tmp/scaling

Two kinds of work: choices, four-option questions in all 24 orders by letters (as benchmarks/speed.py asks them), and
the mixed competition of benchmarks/competition.py (choices in cyclic orders, long summaries, generation), --times over.
Each run is `pipelines/solve.py`'s own, in this process, from an empty store to files written, only that its engines are
there already: it waits as long as an engine's loading takes at least, in which stage actors start. seconds: answering,
without starts and the preflight; efficiency: of one engine's seconds, divided by engines x seconds. GPUs of one kind
differ by some percent: with --each the work of one engine is done by each of them in turn, and its seconds are those of
their mean speed.
"""

import argparse
import json
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import prompts_24
from competition import rows

from ensemble.load import load_config
from pipelines import cli, cluster, infer, run
from pipelines.pool import EngineSpec, start_engines

LOADING_SECONDS = 25.0  # what no engine on a GPU loads faster than; stage actors are ready sooner
COLUMNS = ("work", "engines", "seconds", "questions/s", "efficiency", "prompts", "tokens cached", "whole")


def write_config(path: Path, options: argparse.Namespace, orders: str) -> None:
    scoring = {"method": "letter", "orders": orders}
    tasks = {
        "multiple_choice": {"members": [{"model": options.model, "template": "letters", "scoring": scoring}]},
        "summarization": {
            "members": [{"model": options.model, "template": "summary", "sampling": {"max_tokens": 128}}]
        },
        "generation": {
            "members": [{"model": options.model, "template": "short_answer", "sampling": {"max_tokens": 128}}]
        },
    }
    data = {"tasks": tasks, "store": {"path": str(path.parent / "store")}, "ray": options.ray}
    path.write_text(yaml.safe_dump(data), "utf-8")


def write_work(options: argparse.Namespace, counts: list[int]) -> None:
    """For each count of engines rows of its own, alike: those of the run before are in the engines' prefix caches."""
    folder = options.folder
    prompts_24.write_questions(folder / "all.jsonl", options.questions * len(counts), options.passage_words)
    mixed = [json.dumps(row) + "\n" for row in rows(options.times * len(counts))]
    with (folder / "all.jsonl").open("r", encoding="utf-8") as choices:
        for i, n in enumerate(counts):
            (folder / f"choices-{n}.jsonl").write_text("".join(islice(choices, options.questions)), "utf-8")
            size = len(mixed) // len(counts)
            (folder / f"mixed-{n}.jsonl").write_text("".join(mixed[i * size : (i + 1) * size]), "utf-8")


def start(options: argparse.Namespace, config_file: Path) -> list[Any]:
    """All engines, ready."""
    config = load_config(config_file)
    cluster.connect(config.ray)
    device = "cpu" if options.cpu else "cuda"
    spec = EngineSpec(options.model, config.models[options.model], device, str(ROOT), config.ray.stall_seconds)
    nodes = cluster.gpu_nodes()
    actors = start_engines([spec], {options.model: options.engines}, nodes)[options.model]
    for starting in [actor.start.remote() for actor in actors]:  # all at once
        cluster.wait_for(starting, 600)
    return actors


def solve(
    options: argparse.Namespace, config: Path, rows_file: Path, actors: list[Any], output: Path
) -> dict[str, Any]:
    """The manifest of a run with these engines."""
    infer.start_engines = lambda specs, engines, nodes: {options.model: actors}
    arguments = ["--config", str(config), "--input", str(rows_file), "--output", str(output), "--fresh"]
    run.solve(cli.solve_parser("", "").parse_args(arguments), time.time())
    return json.loads((output / "manifest.json").read_text("utf-8"))  # type: ignore[no-any-return]


def main() -> None:
    options = parse()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    counts = [int(n) for n in options.counts.split(",")]
    write_work(options, counts)
    write_config(folder / "choices.yaml", options, "full")
    write_config(folder / "mixed.yaml", options, "cyclic")
    began = time.monotonic()
    actors = start(options, folder / "choices.yaml")
    print(f"{options.engines} engines ready in {time.monotonic() - began:.1f} s", flush=True)
    keep_open()
    found: list[dict[str, Any]] = []
    print("| " + " | ".join(COLUMNS) + " |\n| " + " | ".join("---" for _ in COLUMNS) + " |", flush=True)
    for work in options.works.split(","):
        one = None
        for n in counts:
            chosen = [[actor] for actor in actors] if options.each and n == 1 else [actors[:n]]
            spent = []
            for i, some in enumerate(chosen):
                config, questions = folder / f"{work}.yaml", folder / f"{work}-{n}.jsonl"
                facts = solve(options, config, questions, some, folder / f"{work}-{n}-{i}")
                spent.append(facts["seconds"]["inference"]["solve"])
            seconds = statistics.harmonic_mean(spent)
            one = one or (n, seconds)
            row = figures(facts, work, n, seconds, one)
            found.append(
                row | {"spent": spent, "more": {key: facts.get(key) for key in ("seconds", "usage", "idle", "engines")}}
            )
            print("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |", flush=True)
            (options.out or folder / "scaling.json").write_text(json.dumps(found), "utf-8")


def figures(facts: dict[str, Any], work: str, n: int, seconds: float, one: tuple[int, float]) -> dict[str, Any]:
    counts = [member for task in facts["usage"].values() for member in task["members"].values()]
    prompts, cached = (sum(c[key] for c in counts) for key in ("prompt_tokens", "cached_tokens"))
    return {
        "work": work,
        "engines": n,
        "seconds": round(seconds, 2),
        "questions/s": round(facts["questions"]["total"] / seconds, 1),
        "efficiency": round(one[0] * one[1] / (n * seconds), 3),
        "prompts": prompts,
        "tokens cached": f"{cached / prompts:.1%}",
        "whole": round(sum(v for v in facts["seconds"].values() if isinstance(v, float)), 1),
    }


def keep_open() -> None:
    """Runs find the cluster connected and leave it so."""
    import ray

    infer.connect = lambda config: None
    infer._close = lambda actors, wait: None
    await_engines = infer._await_engines

    def loaded(*given: Any) -> bool:
        time.sleep(LOADING_SECONDS)
        return await_engines(*given)

    infer._await_engines = loaded
    ray.shutdown = lambda *_, **__: None  # type: ignore[assignment]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a file of configs/models, or a path to one")
    parser.add_argument("--engines", type=int, default=4, help="as many as GPUs")
    parser.add_argument("--counts", default="1,4,2", help="of engines, in this sequence; the first is compared with")
    parser.add_argument("--each", action="store_true", help="one engine's time is taken of each of them")
    parser.add_argument("--works", default="choices,mixed")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--passage-words", type=int, default=290, help="290: prompts of about 365 tokens")
    parser.add_argument("--times", type=int, default=50, help="of the mixed competition")
    parser.add_argument("--ray", type=yaml.safe_load, default={}, help="of Quorum's config: '{stage_actors: 4}'")
    parser.add_argument("--cpu", action="store_true", help="engines on the CPU, to try this out")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="figures; left out: FOLDER/scaling.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
