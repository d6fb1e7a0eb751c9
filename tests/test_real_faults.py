"""Real vLLM on CPU whose processes are killed in mid-run: the run ends by itself, with the same decisions."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ensemble.config import ROOT
from tests.demo import command, decisions_agree, env, lines, stored_rows

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

OPTIONS = ["--task", "multiple_choice", "--set", "store.flush_seconds=0.2"]
QUESTIONS = 34  # of the demo, multiple choice


def children(parent: int, of: str) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", of], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def alive(pid: int) -> bool:
    """Also a process that nobody has waited for yet is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], object], seconds: float, running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, "the run ended early"
        assert time.monotonic() < end
        time.sleep(0.05)


def engine(running: subprocess.Popen[bytes]) -> tuple[int, list[int]]:
    """The engine's actor, and vLLM's own processes."""
    (raylet,) = children(running.pid, "raylet/raylet")
    (actor,) = children(raylet, "ray::EngineActor")
    return actor, children(actor, "VLLM")


@pytest.fixture
def disturbed(tmp_path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of the demo under way; `run` and `store` are in the folder."""
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            command(tmp_path / "run", tmp_path / "store", *OPTIONS), cwd=ROOT, env=env(), stderr=log
        )
        yield running
        running.kill()
        running.wait()


def test_vllms_core_and_then_the_actor_are_killed_and_nothing_changes(tmp_path, undisturbed, disturbed):
    run, store, running = tmp_path / "run", tmp_path / "store", disturbed
    until(lambda: stored_rows(store) >= 4, 200, running)
    actor, (core,) = engine(running)
    os.kill(core, signal.SIGKILL)
    until(lambda: not alive(actor), 10, running)  # it sees that its core is gone, and ends for Ray to start it again

    before = stored_rows(store)
    until(lambda: stored_rows(store) >= before + 4, 200, running)
    actor, (core,) = engine(running)
    os.kill(actor, signal.SIGKILL)
    until(lambda: not alive(core), 5, running)  # it would hold a GPU's memory for ever

    assert running.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["questions"]["answered"] == manifest["questions"]["computed"] == QUESTIONS
    assert [life["restarted"] for life in manifest["engines"]] == [False, True, True]

    theirs = [row for row in lines(undisturbed / "run/predictions.jsonl") if row["task"] == "multiple_choice"]
    assert decisions_agree(lines(run / "predictions.jsonl"), theirs) > 20
