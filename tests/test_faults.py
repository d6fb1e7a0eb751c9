"""What GPUs, nodes, disks and people do to a run: through real Ray, with scripted engines that hang and die."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from ray.cluster_utils import Cluster

from ensemble.config import ROOT

pytestmark = pytest.mark.slow

FILES = ("predictions.jsonl", "grades.json", "submission.json", "errors.jsonl")
POISON = "Z"  # a character of no other question
QUESTIONS = 60


def row(i: int, text: str = "Which one?") -> dict[str, Any]:
    return {"id": i, "task": "multiple_choice", "text": f"{text} {i}", "choices": ["one", "two", "three"], "answer": 1}


ROWS = [row(i) for i in range(QUESTIONS)]


class Competition:
    """A folder with a config, questions, a store and a run."""

    def __init__(self, folder: Path, model: Path, address: str) -> None:
        from transformers import AutoTokenizer

        self.folder, self.model, self.address = folder, model, address
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self.poison = self.token(POISON)

    def write(self, fake: dict[str, Any], rows: list[dict[str, Any]] = ROWS, replicas: int = 2, **ray: Any) -> None:
        """fake: of the engines. ray: of the config. Each engine works on a few questions at a time."""
        engine = {"device": "cpu", "replicas": replicas, "fake": fake} | ray.pop("engine", {})
        store = {"path": "store", "flush_seconds": 0.2} | ray.pop("store", {})
        question = "Q {{ text }}{% for c in choices %} {{ c.label }}={{ c.text }}{% endfor %} A"
        member = {"model": "tiny", "template": "choice", "scoring": {"method": "letter", "orders": "cyclic"}}
        config = {
            "models": {"tiny": {"source": {"path": str(self.model)}, "context_length": 2000, "engine": engine}},
            "templates": {"choice": {"question": question, "answer": "{{ answer }}"}},
            "tasks": {"multiple_choice": {"members": [member]}},
            "ray": {"stage_actors": 2, "tokens_in_flight": 800} | ray,
            "store": store,
            "input": "in.jsonl",
            "output": "run",
        }
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config))
        (self.folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "pipelines/solve.py"), "--config", "run.yaml"]
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(command, stderr=log, stdout=log, cwd=self.folder, env=self.env())

    def env(self) -> dict[str, str]:
        fixed = {"QUORUM_HOME": str(self.folder / "home"), "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address}
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | fixed

    def solve(self, status: int = 0) -> dict[str, Any]:
        return self.end(self.start(), status)

    def end(self, running: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
        """The manifest."""
        running.wait(timeout=250)
        assert running.returncode == status, self.said()[-3000:]
        return json.loads((self.folder / "run/manifest.json").read_text())

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def stored(self) -> int:
        """Questions in all complete segments."""
        return sum(pq.ParquetFile(path).metadata.num_rows for path in self.folder.glob("store/s*/*/[!.]*.parquet"))

    def await_stored(self, n: int, running: subprocess.Popen[str]) -> None:
        while self.stored() < n:
            assert running.poll() is None, self.said()[-3000:]
            time.sleep(0.05)

    def token(self, character: str) -> int:
        """Its id; the tokenizer has one token per byte."""
        (token,) = self._tokenizer(character)["input_ids"]
        return token

    def files(self) -> dict[str, bytes]:
        return {name: (self.folder / "run" / name).read_bytes() for name in FILES}

    def predictions(self, run: str = "run") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / run / "predictions.jsonl").read_text().splitlines()]

    def failed(self) -> list[int]:
        return [p["id"] for p in self.predictions() if p["error"]]


def lines(files: dict[str, bytes], without: int) -> list[bytes]:
    """Of the predictions all but one question's."""
    return [line for i, line in enumerate(files["predictions.jsonl"].splitlines()) if i != without]


class Ray:
    """A cluster as on Kubernetes: a head without CPUs, and two nodes with a GPU (which is only said) each."""

    def __init__(self) -> None:
        self._cluster = Cluster()
        self._add(num_cpus=0, include_dashboard=False)
        self.address = self._cluster.address
        self.nodes = [self.add(), self.add()]

    def add(self) -> Any:
        return self._add(num_cpus=2, num_gpus=1)

    def _add(self, **resources: Any) -> Any:
        with warnings.catch_warnings():  # Ray leaves sockets to the garbage collector
            warnings.simplefilter("ignore", ResourceWarning)
            node = self._cluster.add_node(object_store_memory=80_000_000, **resources)
            gc.collect()
            return node

    def lose(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def engines(self) -> list[int]:
        """Process ids."""
        return [pid for node in self.nodes for pid in engines_of(node)]

    def shutdown(self) -> None:
        self._cluster.shutdown()


def engines_of(node: Any) -> list[int]:
    raylet = node.all_processes["raylet"][0].process.pid
    found = subprocess.run(["pgrep", "-P", str(raylet), "-f", "ray::EngineActor"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Ray()
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, word_tokenizer: Path, ray: Ray) -> dict[str, bytes]:
    """Files of a run without faults."""
    competition = Competition(tmp_path_factory.mktemp("undisturbed"), word_tokenizer, ray.address)
    competition.write({})
    competition.solve()
    return competition.files()


@pytest.fixture
def competition(tmp_path: Path, word_tokenizer: Path, ray: Ray) -> Competition:
    return Competition(tmp_path, word_tokenizer, ray.address)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_poison_question_is_an_error_row_and_the_other_engine_never_dies(competition, undisturbed, replicas):
    """As the out-of-memory death on one long input: here question 25 is 10 times as long as the others."""
    rows = [row(i, f"{'Which? ' * 50}{POISON}") if i == 25 else row(i) for i in range(QUESTIONS)]
    competition.write({"die_on": competition.poison, "seconds": 0.1}, rows, replicas, tokens_in_flight=4000)
    manifest = competition.solve(status=1)
    (error,) = [p["error"] for p in competition.predictions() if p["error"]]
    assert error["type"] == "PoisonError"
    assert "the engine died 3 times on this question, the last time alone with it" in error["message"]
    assert lines(competition.files(), without=25) == lines(undisturbed, without=25)
    lives = Counter(life["replica"] for life in manifest["engines"])
    assert sorted(lives.values())[: replicas - 1] == [1] * (replicas - 1)
    assert max(lives.values()) <= 4


def test_an_engine_that_is_killed_twice_changes_nothing(competition, undisturbed, ray):
    competition.write({"seconds": 1.0})
    running = competition.start()
    killed: list[int] = []
    for stored in (8, 24):
        competition.await_stored(stored, running)
        victim = next(pid for pid in ray.engines() if pid not in killed)
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
    manifest = competition.end(running)
    assert competition.files() == undisturbed
    assert sum(life["restarted"] for life in manifest["engines"]) == 2


def test_an_engine_that_hangs_is_restarted(competition, undisturbed):
    competition.write(
        {"hang_on": competition.token("7"), "once": str(competition.folder / "hung"), "seconds": 0.2}, stall_seconds=2.0
    )
    manifest = competition.solve()
    assert (competition.folder / "hung").exists()
    assert competition.files() == undisturbed
    assert any(life["restarted"] for life in manifest["engines"])


def test_a_question_on_which_engines_hang_is_an_error_row(competition, undisturbed):
    rows = [row(i, POISON) if i == 25 else row(i) for i in range(QUESTIONS)]
    competition.write({"hang_on": competition.poison}, rows, tokens_in_flight=4000, stall_seconds=1.0)
    competition.solve(status=1)
    assert competition.failed() == [25]
    assert lines(competition.files(), without=25) == lines(undisturbed, without=25)


def test_not_a_number_is_an_error_of_one_question_and_nobody_is_asked_twice(competition, undisturbed):
    rows = [row(i, POISON) if i == 25 else row(i) for i in range(QUESTIONS)]
    competition.write({"nan_on": competition.poison}, rows, 1, tokens_in_flight=4000)
    manifest = competition.solve(status=1)
    assert competition.failed() == [25]
    assert lines(competition.files(), without=25) == lines(undisturbed, without=25)
    (life,) = manifest["engines"]
    assert life["errors"] == 1
    # Three orders of 59 questions; the first one also for the preflight, and each time again to measure the drift.
    assert 3 * 60 <= life["requests"] <= 3 * 62


def test_a_killed_driver_takes_its_engines_along_and_the_next_run_goes_on(competition, undisturbed, ray):
    competition.write({"seconds": 1.0})
    running = competition.start()
    competition.await_stored(15, running)
    running.kill()
    running.wait()
    while ray.engines():
        time.sleep(0.1)
    kept = competition.stored()
    competition.write({})
    manifest = competition.solve()
    questions = manifest["questions"]
    assert (questions["from_store"], questions["computed"]) == (kept, QUESTIONS - kept)
    assert competition.stored() == QUESTIONS
    assert competition.files() == undisturbed


def test_a_lost_node_takes_an_engine_and_a_stage_actor_along(competition, undisturbed, ray):
    competition.write({"seconds": 1.0}, engine={"device": "cuda", "hardware": "L4"})
    running = competition.start()
    competition.await_stored(8, running)
    assert [len(engines_of(node)) for node in ray.nodes] == [1, 1]
    ray.lose(ray.nodes[0])
    competition.end(running)
    ray.nodes.append(ray.add())
    assert competition.files() == undisturbed


def test_ctrl_c_stores_what_was_computed_and_the_next_run_goes_on(competition, undisturbed, monkeypatch):
    competition.write({"seconds": 1.0}, store={"flush_seconds": 1000})  # nothing is stored before its end
    monkeypatch.setattr(competition, "address", "local")
    running = competition.start()
    while "answering" not in competition.said():
        assert running.poll() is None, competition.said()
        time.sleep(0.1)
    time.sleep(4)  # the run takes more than ten
    before = time.monotonic()
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    assert time.monotonic() - before < 10
    last = competition.said().splitlines()[-1]
    assert last == "stopped; what was computed is stored, and the same command goes on from there"
    assert "WARNING" not in competition.said()
    assert len(list(Path("/tmp/ray").glob(f"session_*_{running.pid}"))) == 1  # nobody has started another one
    stored = competition.stored()
    assert 8 <= stored < QUESTIONS
    questions = competition.solve()["questions"]
    assert (questions["from_store"], questions["computed"]) == (stored, QUESTIONS - stored)
    assert competition.files() == undisturbed


def test_a_full_disk_ends_the_run_with_its_cure_and_with_space_it_goes_on(competition, undisturbed):
    """The store is on a file system of 32 KiB, which is enlarged between the two runs."""
    competition.write({"seconds": 0.2}, store={"flush_seconds": 0.02})
    command = f"{sys.executable} {ROOT}/pipelines/solve.py --config run.yaml"
    script = f"""
        mount -t tmpfs -o size=32k tmpfs store || exit 77
        {command} > first 2>&1; status=$?
        cp -r run failed; cp -r store kept
        mount -o remount,size=64m store
        {command} > log 2>&1 && exit $status
    """
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    (competition.folder / "store").mkdir()
    done = subprocess.run(own, cwd=competition.folder, env=competition.env() | {"RAY_ADDRESS": "local"}, timeout=250)
    if done.returncode == 77:
        pytest.skip("nobody may mount a file system of his own here")
    assert done.returncode == 1, competition.said()[-3000:]
    failed = competition.predictions("failed")
    kept = [p["id"] for p in failed if not p["error"]]
    assert 0 < len(kept) < QUESTIONS
    (error,) = {(p["error"]["type"], p["error"]["message"]) for p in failed if p["error"]}
    assert error[0] == "StoreError"
    assert "No space left on device; free space or permissions, then run the same command again" in error[1]
    assert [path.name for path in competition.folder.glob("kept/s*/*/.*")] == []  # no half a segment takes up the space

    questions = json.loads((competition.folder / "run/manifest.json").read_text())["questions"]
    assert (questions["from_store"], questions["computed"]) == (len(kept), QUESTIONS - len(kept))
    assert competition.files() == undisturbed
