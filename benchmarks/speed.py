"""Choice scoring in all option orders, side by side: bare vLLM, Quorum, ray.data.llm, transformers; one command.

python benchmarks/speed.py --model smollm2 --questions 500 --contenders bare,quorum,ray_data_llm --folder /tmp/speed
python benchmarks/speed.py --model 7b.yaml --contenders bare --sweep 8192:256 16384:512 --gpus 0,1 --folder /tmp/sweep

The same model, token ids and engine settings for all, each in a process of its own, one after the other; with --gpus
side by side, one on each. A number behind a colon is bare's most outstanding prompts (else all) or ray.data.llm's rows
in a batch: bare:2048, ray_data_llm:32. Prints a table; FOLDER/speed.json has the figures as soon as each is there.

ready: seconds from a contender's start until its engine takes prompts; the first to start compiles for all. orders/s:
prompts over the time from the first that was sent to the last reply; middle: the same without the first and last tenth
of the replies; against: of the first contender's. cached: share of the prompt tokens that came from the prefix cache;
of trie: of what vLLM's blocks could save at most if the prompts came one after another. whole: seconds from start to
exit, files written. same: questions decided as by the first contender.
"""

import argparse
import contextlib
import itertools
import json
import os
import queue
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gpus
import prompts_24
from contenders import CONTENDERS

from ensemble import models
from ensemble.config import RunConfig
from ensemble.engine import engine_args, engine_env
from ensemble.load import load_config

# Where neither the model's file nor the chip's preset says it: vLLM's classes would choose differently.
BATCH = {"max_num_batched_tokens": 8192, "max_num_seqs": 256}
COLUMNS = ("case", "gpu", "ready", "orders/s", "middle", "against", "cached", "of trie", "whole", "same", "status")


REPEATED = 100  # of so many questions Quorum asks one twice


class Case(NamedTuple):
    """number: outstanding prompts or rows of a batch, 0: all, or 64."""

    name: str
    contender: str
    number: int
    engine: dict[str, Any]


def run_config(options: argparse.Namespace, engine: dict[str, Any], folder: Path) -> RunConfig:
    """Writes folder/run.yaml, which `solve.py` takes, and reads it."""
    member = {
        "model": options.model,
        "template": "letters",
        "scoring": {"method": "letter", "orders": options.orders},
        "cut": "forbid",
    }
    data = {
        "tasks": {"multiple_choice": {"members": [member]}},
        "models": {options.model: {"engine": engine}},
        "store": {"path": str(folder / "store")},
        "ray": options.ray,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data), "utf-8")
    return load_config(path)


class Bench:
    """The inputs that all cases share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.questions, self.prompts_file = self.folder / "questions.jsonl", self.folder / "prompts.parquet"
        prompts_24.write_questions(self.questions, options.questions, options.passage_words)
        config = run_config(options, options.engine, self.folder)
        model = config.models[options.model]
        self.device = models.device(model.engine.device)
        started = time.monotonic()
        self.model = models.prepare(options.model, model, print)
        models.fingerprint(model)  # hashes the files, once: a run looks it up
        print(f"model: {self.model}, checked in {time.monotonic() - started:.1f} s")
        named = engine_args(model, self.model, self.device)
        options.engine |= {key: value for key, value in BATCH.items() if key not in named}
        prompts = prompts_24.render(config, self.model, self.questions)
        prompts_24.save(self.prompts_file, prompts)
        block = 16 if self.device == "cuda" else model.engine.block_size or 128
        lengths = [len(ids) for ids in prompts.ids]
        self.orders, self.tokens = prompts.orders, sum(lengths)
        self.trie = prompts_24.savable(prompts.ids, block)
        asked = [ids for i, ids in enumerate(prompts.ids) for _ in range(2 if i // self.orders % REPEATED == 0 else 1)]
        self.asked_tokens, self.asked_trie = sum(map(len, asked)), prompts_24.savable(asked, block)
        some = prompts.ids[: 100 * self.orders]  # enough: questions share next to nothing
        self.facts = {
            "prompts": len(lengths),
            "prompt_tokens": self.tokens,
            "tokens_each": round(float(np.mean(lengths)), 1),
            "block": block,
            "trie_blocks": round(self.trie / self.tokens, 4),
            "trie_tokens": round(prompts_24.savable(some, 1) / sum(map(len, some)), 4),
        }

    def run(self, case: Case, gpu: str | None) -> dict[str, Any]:
        folder = self.folder / case.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        config = run_config(self.options, case.engine, folder)
        env = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        env |= {"RAY_TMPDIR": f"/tmp/ray-{env.get('CUDA_VISIBLE_DEVICES') or 'all'}"}
        if case.contender == "quorum":
            command = [str(ROOT / "pipelines/solve.py"), "--config", str(folder / "run.yaml"), "--fresh"]
            command += ["--input", str(self.questions), "--output", str(folder / "out")]
        else:
            self._write_work(case, config, folder)
            command = [str(ROOT / "benchmarks/contenders.py"), case.contender, str(folder)]
        started = time.time()
        code = run_process([sys.executable, *command], folder / "log", env, self.options.timeout)
        row: dict[str, Any] = {"case": case.name, "contender": case.contender, "gpu": gpu, "status": code}
        row |= {"whole": time.time() - started, "engine": case.engine}
        if case.contender == "quorum" and code == 0:
            row |= quorum_figures(folder / "out", self.options.questions, self.orders)
        elif (folder / "result.json").exists():
            row |= json.loads((folder / "result.json").read_text("utf-8"))
            row["ready"] -= started
        return row

    def _write_work(self, case: Case, config: RunConfig, folder: Path) -> None:
        model, options = config.models[self.options.model], self.options
        work = {
            "engine_args": engine_args(model, self.model, self.device) | {"disable_log_stats": True},
            "env": engine_env(model.engine, self.device),
            "device": self.device,
            "prompts": str(self.prompts_file),
            "in_flight": case.number,
            "ray_batch": case.number or 64,
            "transformers_orders": options.transformers_orders,
            "transformers_batch": options.transformers_batch,
            "verbose": options.verbose,
        }
        (folder / "work.json").write_text(json.dumps(work), "utf-8")

    def decisions(self, case: str, contender: str) -> np.ndarray | None:
        """Per question the chosen option; of what the case answered."""
        folder = self.folder / case
        if contender == "quorum":
            path = folder / "out/predictions.jsonl"
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            return np.array([json.loads(line)["prediction"] for line in lines]) if lines else None
        if not (folder / "logprobs.npy").exists():
            return None
        found = np.load(folder / "logprobs.npy")
        return prompts_24.decisions(found[: len(found) // self.orders * self.orders], self.orders)


def run_process(command: list[str], log: Path, env: dict[str, str], seconds: float) -> int:
    """Its exit status, -1 where it took too long; then its children are ended too."""
    with log.open("w") as f:
        process = psutil.Popen(command, stdout=f, stderr=f, env=env, cwd=ROOT)
    try:
        return int(process.wait(seconds))
    except psutil.TimeoutExpired:
        for child in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        return -1


def quorum_figures(out: Path, questions: int, orders: int) -> dict[str, Any]:
    """From manifest.json. The first question is asked before the clock runs, and repeats (1%) are not counted."""
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    usage, inference = manifest["usage"]["multiple_choice"], manifest["seconds"]["inference"]
    (counts,) = usage["members"].values()
    asked = (questions - 1) * orders
    return {
        "ready": manifest["seconds"].get("plan", 0) + inference["connect"] + inference["engines"],
        "orders": asked,
        "seconds": usage["seconds"],
        "per_second": asked / usage["seconds"],
        "middle_per_second": None,
        "cached_tokens": counts["cached_tokens"],
        "prompt_tokens": counts["prompt_tokens"],
        "manifest_seconds": manifest["seconds"],
        "engines": manifest.get("engines"),
    }


def table(bench: Bench, rows: list[dict[str, Any]]) -> str:
    """Markdown."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    first = rows[0] if rows else {}
    base = bench.decisions(first["case"], first["contender"]) if rows else None
    for row in rows:
        share = of_trie = against = None
        if "cached_tokens" in row and row["contender"] != "transformers":
            sent = row.get("prompt_tokens", bench.tokens)
            share = row["cached_tokens"] / sent
            savable = {bench.tokens: bench.trie, bench.asked_tokens: bench.asked_trie}.get(sent)
            of_trie = row["cached_tokens"] / savable if savable else None
        if "per_second" in row and "per_second" in first:
            against = row["per_second"] / first["per_second"]
        chosen = bench.decisions(row["case"], row["contender"])
        same = None if base is None or chosen is None else float(np.mean(base[: len(chosen)] == chosen[: len(base)]))
        cells = [row["case"], row["gpu"] or "-", shown(row.get("ready"), ".1f"), shown(row.get("per_second"), ",.1f")]
        cells += [shown(row.get("middle_per_second"), ",.1f"), shown(against, ".3f"), shown(share, ".4f")]
        cells += [shown(of_trie, ".4f"), shown(row["whole"], ".1f"), shown(same, ".3f"), str(row["status"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cases_of(options: argparse.Namespace) -> list[Case]:
    settings: list[tuple[str, dict[str, Any]]] = [("", {})]
    if options.sweep:
        pairs = [[int(x) for x in text.split(":")] for text in options.sweep]
        settings = [(f"-{a}-{b}", dict(zip(BATCH, (a, b), strict=True))) for a, b in pairs]
    cases: list[Case] = []
    named: Counter[str] = Counter()
    for (suffix, engine), text in itertools.product(settings, options.contenders):
        contender, _, number = text.partition(":")
        name = text.replace(":", "-") + suffix
        named[name] += 1
        name += f"-again{named[name]}" if named[name] > 1 else ""
        cases.append(Case(name, contender, int(number or 0), options.engine | engine))
    return cases


def main() -> None:
    options = parse()
    if options.gpu_memory_gib:
        options.engine["gpu_memory_utilization"] = round(options.gpu_memory_gib / gpus.total_gib(), 4)
    bench = Bench(options)
    print(json.dumps(bench.facts))
    waiting: queue.Queue[tuple[int, Case]] = queue.Queue()
    cases = cases_of(options)
    for numbered in enumerate(cases):
        waiting.put(numbered)
    found: dict[int, dict[str, Any]] = {}
    lock = threading.Lock()

    def work(gpu: str | None) -> None:
        while True:
            try:
                i, case = waiting.get_nowait()
            except queue.Empty:
                return
            if bench.device == "cuda":
                gpus.wait_until_free(gpu)
            row = bench.run(case, gpu)
            with lock:
                found[i] = row
                rows = [found[key] for key in sorted(found)]
                data = {"facts": bench.facts, "engine": options.engine, "command": sys.argv, "cases": rows}
                options.out.write_text(json.dumps(data, indent=1), "utf-8")
                print(table(bench, rows[-1:] if len(rows) < len(cases) else rows), flush=True)

    threads = [threading.Thread(target=work, args=(gpu,)) for gpu in options.gpus or [None]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a file of configs/models, or a path to one")
    parser.add_argument("--engine", nargs="*", default=[], metavar="KEY=VALUE", help="engine settings of the model")
    parser.add_argument("--gpu-memory-gib", type=float, help="use no more than this of a GPU (24: as an L4 has)")
    parser.add_argument("--ray", type=yaml.safe_load, default={}, help="of Quorum's config: '{stage_actors: 4}'")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--orders", default="full", help="as in a run config")
    parser.add_argument("--passage-words", type=int, default=290, help="290: prompts of about 365 tokens")
    parser.add_argument("--contenders", default="bare,quorum,ray_data_llm", help=f"of quorum, {', '.join(CONTENDERS)}")
    parser.add_argument("--sweep", nargs="*", metavar="TOKENS:SEQS", help="max_num_batched_tokens and max_num_seqs")
    parser.add_argument("--gpus", help="such as 0,1: as many cases at a time, one on each")
    parser.add_argument("--transformers-orders", type=int, default=2400)
    parser.add_argument("--transformers-batch", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=560, help="seconds for one contender")
    parser.add_argument("--verbose", action="store_true", help="the workers' output in ray.data.llm's log too")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="figures; left out: FOLDER/speed.json")
    options = parser.parse_args()
    options.engine = {key: yaml.safe_load(value) for key, value in (x.split("=", 1) for x in options.engine)}
    options.contenders = options.contenders.split(",")
    options.gpus = options.gpus.split(",") if options.gpus else None
    options.folder = options.folder.absolute()
    options.out = options.out or options.folder / "speed.json"
    if unknown := {x.partition(":")[0] for x in options.contenders} - {"quorum", *CONTENDERS}:
        parser.error(f"unknown contenders {unknown}: choose of quorum, {', '.join(CONTENDERS)}")
    return options


if __name__ == "__main__":
    main()
