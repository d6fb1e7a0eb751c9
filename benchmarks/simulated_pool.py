"""A mixed competition on eight simulated L4s: how near its time comes to what its compute alone would take.

python benchmarks/simulated_pool.py --times 2             # real time: a Ray cluster of eight nodes, pipelines/solve.py
python benchmarks/simulated_pool.py --times 50 --virtual  # virtual time: one process, without Ray
python benchmarks/simulated_pool.py --times 10 --virtual --speeds 1 1 1 1 1 1 1 0.5

In real time each node has one faked GPU and one scripted engine, which is as fast as an L4 may be with a 7B model in 4
bit (tests/simulation.py says what is assumed). What it takes longer than the ideal is the client's and Ray's cost on
this machine together with the schedule; in virtual time it is the schedule's alone. The line of each engine shows the
tenths of its compute that were used in each half second, * for all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.competition import rows
from tests import simulation

ENGINES = 8
START_SECONDS = 2.0  # of an engine


def virtual(folder: Path, times: int, orders: str, speeds: list[float]) -> None:
    work = simulation.prepare(folder, rows(times), orders)
    ideal = simulation.demand(work).seconds(speeds)
    started = time.monotonic()
    done = simulation.simulate(work, speeds)
    print(done.timeline())
    print(f"{done.computed} questions, {len(done.errors)} errors, simulated in {time.monotonic() - started:.0f} s")
    print(f"{done.seconds:.2f} s, ideal {ideal:.2f} s: {done.seconds / ideal:.3f} of it")


def real(folder: Path, times: int, orders: str) -> int:
    """Exit status of solve.py."""
    from ray.cluster_utils import Cluster

    work = simulation.prepare(folder, rows(times), orders)
    config = simulation.config(orders, start_seconds=START_SECONDS) | {"store": {"path": str(folder / "real-store")}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 1})
    for _ in range(ENGINES - 1):
        cluster.add_node(num_cpus=1, num_gpus=1)
    command = [sys.executable, "pipelines/solve.py", "--config", str(folder / "run.yaml")]
    command += ["--input", str(folder / "rows.jsonl"), "--output", str(folder / "out")]
    try:
        status = subprocess.run(command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": cluster.address}).returncode
    finally:
        cluster.shutdown()
    if status == 0:
        _show(json.loads((folder / "out/manifest.json").read_text()), simulation.demand(work))
    return status


def _show(facts: dict[str, Any], wanted: simulation.Demand) -> None:
    """The time from the first message to the last reply, and what each engine did in it."""
    seconds = facts["seconds"]["inference"]["solve"]
    speed = simulation.L4
    for engine in facts["engines"]:
        computed = (engine["prompt_tokens"] - engine["cached_tokens"]) / speed["prefill_tokens_per_second"]
        computed += engine["output_tokens"] / speed["decode_tokens_per_second"]
        print(
            f"engine {engine['replica']}: {engine['requests']} prompts, compute used {computed / seconds:.0%}, "
            f"messages at work {engine['seconds']['busy'] / seconds:.0%} of the time"
        )
    ideal = wanted.seconds([1.0] * ENGINES)
    print(f"{seconds:.2f} s, ideal {ideal:.2f} s: {seconds / ideal:.3f} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2, help="of the competition of 140 questions")
    parser.add_argument("--orders", default="cyclic", help="of the options, as scoring.orders")
    parser.add_argument("--virtual", action="store_true")
    parser.add_argument("--speeds", type=float, nargs="+", default=[1.0] * ENGINES, help="of each engine (virtual)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.virtual:
            virtual(Path(name), options.times, options.orders, options.speeds)
        else:
            sys.exit(real(Path(name), options.times, options.orders))


if __name__ == "__main__":
    main()
