"""Runs of the demo with the real model, as a person would start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from ensemble.config import ROOT


def command(run: Path, store: Path, *more: object) -> list[str]:
    script = [sys.executable, str(ROOT / "pipelines/solve.py"), "--config", "configs/demo.yaml"]
    return [*script, "--output", str(run), "--set", f"store.path={store}", *map(str, more)]


def env() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"}


def solve(run: Path, store: Path, *more: object) -> dict:
    """The run's manifest."""
    done = subprocess.run(command(run, store, *more), capture_output=True, text=True, cwd=ROOT, env=env(), timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((run / "manifest.json").read_text())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored_rows(store: Path) -> int:
    """Rows of all complete segments: in the demo one for each question that was answered."""
    return sum(pq.ParquetFile(path).metadata.num_rows for path in store.glob("s*/*/[!.]*.parquet"))


def decisions_agree(ours: list[dict], theirs: list[dict]) -> int:
    """Asserts that lines of predictions.jsonl choose the same options, but for near ties; how many were compared."""
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    sure = [
        (a, b)
        for a, b in zip(ours, theirs, strict=True)
        if a["task"] == "multiple_choice" and not (a["near_tie"] or b["near_tie"])
    ]
    assert [(a["id"], a["prediction"]) for a, _ in sure] == [(b["id"], b["prediction"]) for _, b in sure]
    return len(sure)
