"""How `make test` spreads tests over cores, and what several files share: a tiny tokenizer, questions, real data."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from ensemble.orders import make_orders
from ensemble.questions import content_hash
from ensemble.records import Order, Question, Task
from ensemble.tokens import load_tokenizer

# A deadline for each example would test the machine's speed (the first call imports libraries).
settings.register_profile("quorum", deadline=None)
settings.load_profile("quorum")

MOST_WORKERS = 8
CORES_OF_AN_ENGINE = 2
MOST_ENGINES = 2  # at a time: each takes 6 GB

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers for `-n auto`: one for each core, or with `-m real` one for each engine that has room."""
    cores = len(os.sched_getaffinity(0))
    if _of_engines(config):
        return max(1, min(cores // CORES_OF_AN_ENGINE, MOST_ENGINES))
    return min(cores, MOST_WORKERS)


def pytest_configure(config: pytest.Config) -> None:
    """With `-m real` each worker has cores of its own: vLLM takes all it is allowed, and two engines that share some
    wait for each other's threads, ten times as long."""
    worker = getattr(config, "workerinput", None)
    if worker and _of_engines(config):
        cores = sorted(os.sched_getaffinity(0))
        number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        os.sched_setaffinity(0, cores[number * len(cores) // count : (number + 1) * len(cores) // count])


def _of_engines(config: pytest.Config) -> bool:
    return config.option.markexpr == "real"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that no worker is alone with one in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data sets are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, run once from beginning to end; the run folder is `run`, the store `store`."""
    from tests.demo import solve

    folder = tmp_path_factory.mktemp("undisturbed")
    solve(folder / "run", folder / "store")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; files that use it skip where it is not installed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real (byte-level, one token a byte) tokenizer and a config, as a fake engine's model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def question(
    text: str = "What is two plus two?",
    choices: tuple[str, ...] = ("one", "two", "three", "four"),
    task: Task = "multiple_choice",
    row_index: int = 0,
    **fields: object,
) -> Question:
    """A question with the content hash that the reader would give it."""
    context = fields.get("context")
    assert context is None or isinstance(context, str)
    digest = content_hash(task, text, context, choices)
    return Question(row_index, "q.jsonl", row_index + 1, row_index, task, text, choices=choices, hash=digest, **fields)  # type: ignore[arg-type]


def identity(n: int) -> tuple[Order, ...]:
    return make_orders("identity", n, 0)


def cyclic(n: int) -> tuple[Order, ...]:
    return make_orders("cyclic", n, 0)


@pytest.fixture
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All gateways of a process have the same model: its tokenizer is read once."""
    monkeypatch.setattr("serve.gateway.load_tokenizer", _load_once)


@cache
def _load_once(*given: Any) -> Any:
    return load_tokenizer(*given)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray head for many runs, each of which is then a third sooner done than with a Ray of its own; 8
    logical CPUs whatever the machine has."""
    home = tmp_path_factory.mktemp("ray")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    env |= {"HOME": str(home), "QUORUM_HOME": str(home / "q"), "RAY_AUTH_MODE": "disabled"}
    ray = str(Path(sys.executable).with_name("ray"))
    # The head stays a child of this process, so that no other Ray of the machine is stopped with it.
    command = [ray, "start", "--head", f"--port={port}", "--num-cpus=8", "--include-dashboard=false", "--block"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    head = subprocess.Popen(command, env=env, **quiet)
    try:
        patience = time.monotonic() + 60
        while time.monotonic() < patience and not _listens(port):
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0
