"""A million generated rows through the fake engine, killed twice on the way: seconds, memory, nothing lost.

python benchmarks/million.py --rows 1000000 --cpus 2 --folder /tmp/million

The engine is scripted, so what is measured is everything around it: reading, prompts and their tokenization, Ray,
votes, the store, and the replay that writes the results.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    "river",
    "stone",
    "morning",
    "letter",
    "garden",
    "winter",
    "music",
    "window",
    "harbour",
    "candle",
    "orange",
    "silver",
    "market",
    "bridge",
    "paper",
    "forest",
    "engine",
    "summer",
    "island",
    "mirror",
    "village",
    "carpet",
    "thunder",
    "basket",
    "pencil",
    "valley",
    "lantern",
    "copper",
    "meadow",
    "anchor",
]
CONFIG = """
tasks:
  multiple_choice: {members: [{model: smollm2, template: letters, scoring: {method: letter}}]}
  math: {members: [{model: smollm2, template: short_answer, sampling: {max_tokens: 20}}]}
models: {smollm2: {engine: {fake: {}}}}
ray: {stage_actors: 2}
"""


def write_rows(path: Path, rows: int) -> None:
    """Nine in ten are multiple choice with four options, one in ten is math."""
    draw = random.Random(0)
    with path.open("w") as f:
        for i in range(rows):
            row = {"id": i, "text": f"{' '.join(draw.choices(WORDS, k=20))} {i}?", "group": f"g{i % 7}"}
            if i % 10:
                options = [" ".join(draw.choices(WORDS, k=3)) for _ in range(4)]
                row |= {"task": "multiple_choice", "choices": options, "answer": draw.randrange(4)}
            else:
                row |= {"task": "math", "answer": "7"}
            f.write(json.dumps(row) + "\n")


def run(folder: Path, cpus: int, kill_after: float | None) -> tuple[float, float, int]:
    """Seconds, the driver's largest resident memory in GiB, and the exit status; -9 where it was killed."""
    command = ["taskset", "-c", ",".join(map(str, range(cpus))), sys.executable, str(ROOT / "pipelines/solve.py")]
    command += ["--config", str(folder / "run.yaml"), "--input", str(folder / "in.jsonl")]
    command += ["--output", str(folder / "out"), "--set", f"store.path={folder / 'store'}"]
    started, peak = time.monotonic(), 0
    with open(folder / "log", "a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, driver.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        if kill_after is not None and time.monotonic() - started > kill_after:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.2)
    return time.monotonic() - started, peak / 2**30, process.wait()


def stored(folder: Path) -> int:
    """Rows in the store."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in (folder / "store").rglob("*.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/quorum-million"))
    parser.add_argument("--kill", type=float, nargs="*", default=[200, 250], help="seconds after which a run is killed")
    options = parser.parse_args()
    folder = options.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_rows(folder / "in.jsonl", options.rows)
    (folder / "run.yaml").write_text(CONFIG)
    total = 0.0
    for number, kill_after in enumerate([*options.kill, None]):
        seconds, gib, status = run(folder, options.cpus, kill_after)
        total += seconds
        print(f"run {number}: {seconds:.0f} s, driver {gib:.2f} GiB, status {status}, {stored(folder):,} rows stored")
        time.sleep(3)  # Ray notices that its driver is gone
    print(f"all runs together: {total:.0f} s")
    seconds, gib, status = run(folder, options.cpus, None)
    facts = json.loads((folder / "out/manifest.json").read_text())
    with open(folder / "out/predictions.jsonl") as f:
        lines = sum(1 for _ in f)
    print(
        f"replay: {seconds:.0f} s, driver {gib:.2f} GiB, status {status}; {lines:,} predictions, {facts['questions']}"
    )


if __name__ == "__main__":
    main()
