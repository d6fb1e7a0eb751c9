"""What engines do: the recorder, device seconds by cause, vLLM's scheduler, the live view and Ray's metrics."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ensemble.config import ROOT
from ensemble.idle import CAUSES, account, facts, histories, sentence
from ensemble.vitals import Recorder, Vitals
from pipelines import progress as progress_module
from pipelines.progress import Progress

NOTHING: dict[str, Any] = {
    "pid": 1, "node": "n", "status": "ready", "first": None, "last": None, "busy": 0.0, "requests": 0,
    "prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "errors": 0, "running": 0, "waiting": 0,
    "kv_usage": 0.0, "memory_gib": None,
}  # fmt: skip


def life(model: str, created: float, ready: float | None, at: float, replica: int = 0, **more: Any) -> Vitals:
    return Vitals(**NOTHING | {"gpus": 1} | more, model=model, replica=replica, created=created, ready=ready, at=at)


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


# ---- the recorder


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(clock: Clock) -> Recorder:
    return Recorder("m", 2, 0, clock)


def test_busy_is_the_union_of_overlapping_messages(recorder: Recorder, clock: Clock):
    # Messages of 10..16, 12..20 and 30..31 and a long one from 40 on, looked at 44: 10 + 1 + 4 seconds.
    clock.time = 1002
    recorder.started()
    clock.time = 1010
    one, two = recorder.working(3), recorder.working(4)
    one.__enter__()
    clock.time = 1012
    two.__enter__()
    assert recorder.snapshot().running == 7
    clock.time = 1016
    one.__exit__(None, None, None)
    clock.time = 1020
    two.__exit__(None, None, None)
    clock.time = 1025
    idle = recorder.snapshot()
    assert (idle.ready, idle.first, idle.last, idle.busy, idle.running) == (1002, 1010, 1020, 10, 0)
    clock.time = 1030
    third = recorder.working()
    third.__enter__()
    clock.time = 1031
    third.__exit__(ValueError, ValueError("lost"), None)
    clock.time = 1040
    with recorder.working():
        clock.time = 1044
        now = recorder.snapshot()
    assert (now.first, now.last, now.busy, now.at) == (1010, 1044, 15, 1044)


def test_counts_add_up(recorder: Recorder):
    recorder.add(300, 200, 0, 24)
    recorder.add(50, 0, 8)
    recorder.error()
    seen = recorder.snapshot()
    assert (seen.requests, seen.prompt_tokens, seen.cached_tokens, seen.output_tokens, seen.errors) == (
        25,
        350,
        200,
        8,
        1,
    )
    assert (seen.model, seen.replica, seen.gpus, seen.memory_gib, seen.status) == ("m", 2, 0, None, "loading")


def test_an_engine_stalls_only_over_work_and_new_work_is_no_sign_of_life(recorder: Recorder, clock: Clock):
    clock.time = 1500
    assert recorder.stalled() == 0
    with recorder.working():
        assert recorder.stalled() == 0  # however long ago it last did something
        clock.time = 1507
        assert recorder.stalled() == 7
        with recorder.working():
            clock.time = 1510
            assert recorder.stalled() == 10
            recorder.scheduled(2, 1, 0.5)
            clock.time = 1511
            assert recorder.stalled() == 1
        recorder.progress()
        assert recorder.stalled() == 0
        clock.time = 1514
        recorder.add(10, 0, 0)
        clock.time = 1516
        assert recorder.stalled() == 2
    assert recorder.stalled() == 0


def test_what_the_scheduler_said_last_is_shown(recorder: Recorder):
    recorder.scheduled(40, 3, 0.25)
    seen = recorder.snapshot()
    assert (seen.running, seen.waiting, seen.kv_usage) == (40, 3, 0.25)


@pytest.mark.parametrize(
    ("visible", "gpus", "gib"),
    [("3,1", 2, 40.0), ("3,1", 1, 30.0), ("GPU-b", 1, 5.0), (None, 2, 10.0), ("7", 1, None), ("2", 0, None)],
)
def test_memory_is_of_the_gpus_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, visible: str | None, gpus: int, gib: float | None
):
    """NVML knows all GPUs of the machine, by number or UUID: here GPU i uses 10 i GiB, GPU-b 5."""
    nvml = SimpleNamespace(
        NVMLError=KeyError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=[0, 10, 20, 30].__getitem__,
        nvmlDeviceGetHandleByUUID={"GPU-b": 5}.__getitem__,
        nvmlDeviceGetMemoryInfo=lambda used: SimpleNamespace(used=used * 2**30),
    )
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.third_party", SimpleNamespace(pynvml=nvml))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    recorder = Recorder("m", 0, gpus, clock)
    assert recorder.snapshot().memory_gib is None  # not ready
    recorder.started()
    assert recorder.snapshot().memory_gib == gib


# ---- device seconds


def of(**seconds: float) -> dict[str, float]:
    return {"busy": 0.0, **dict.fromkeys(CAUSES, 0.0)} | {k.replace("_", " "): v for k, v in seconds.items()}


WHOLE = [(0.0, 100.0)]
CASES = {
    "one engine on one GPU": (
        [life("m", 5, 25, 99, first=30, last=90, busy=50)],
        1,
        WHOLE,
        of(between=5, loading=20, before_work=5, busy=50, starved=10, tail=10),
    ),
    "two GPUs of four by tensor parallel": (
        [life("m", 0, 20, 99, gpus=2, first=20, last=100, busy=80)],
        4,
        WHOLE,
        of(loading=40, busy=160, unused=200),
    ),
    "a straggler ends the run": (
        [
            life("m", 0, 10, 99, first=10, last=60, busy=50),
            life("m", 0, 10, 99, replica=1, first=10, last=100, busy=90),
        ],
        2,
        WHOLE,
        of(loading=20, busy=140, tail=40),
    ),
    "killed at 40, ready again at 65": (
        [
            life("m", 0, 10, 40, first=10, last=38, busy=28, pid=7),
            life("m", 45, 65, 99, first=66, last=100, busy=34, pid=8),
        ],
        1,
        WHOLE,
        of(loading=10, busy=62, starved=2, restart=25, before_work=1),
    ),
    "killed at 40 while it loaded": (
        [life("m", 0, None, 40), life("m", 45, 65, 99, first=65, last=100, busy=35, pid=2)],
        1,
        WHOLE,
        of(loading=40, restart=25, busy=35),
    ),
    "given up at 40": (
        [life("m", 0, 10, 40, first=10, last=40, busy=30, status="dead")],
        1,
        WHOLE,
        of(loading=10, busy=30, restart=60),
    ),
    "nothing to do": ([life("m", 0, 10, 99)], 1, WHOLE, of(loading=10, before_work=90)),
    "not ready by the end": ([life("m", 20, None, 90)], 1, WHOLE, of(between=20, loading=80)),
    "two models in waves on one GPU": (
        [
            life("a", 2, 12, 50, first=12, last=45, busy=33),
            life("b", 55, 70, 99, first=70, last=100, busy=30),
        ],
        1,
        [(2, 50), (52, 100)],
        of(between=2 + 2 + 3, loading=25, busy=63, tail=5),
    ),
    "the second wave leaves a GPU": (
        [
            life("a", 0, 10, 50, first=10, last=50, busy=40),
            life("a", 0, 10, 50, replica=1, first=10, last=50, busy=40),
            life("b", 50, 70, 99, first=70, last=100, busy=30),
        ],
        2,
        [(0, 50), (50, 100)],
        of(loading=40, busy=110, unused=50),
    ),
    "an engine that stays for the second wave": (
        [
            life("a", 0, 10, 99, first=10, last=40, busy=30),
            life("b", 50, 70, 99, first=70, last=100, busy=30),
        ],
        2,
        [(0, 50), (50, 100)],
        of(loading=30, busy=60, tail=60, unused=50),
    ),
    "two engines on CPU, where GPUs do not count": (
        [
            life("m", 0, 0, 99, gpus=0, first=0, last=100, busy=90),
            life("m", 0, 0, 99, gpus=0, replica=1, first=0, last=100, busy=100),
        ],
        8,
        WHOLE,
        of(busy=190, starved=10),
    ),
    "clocks that differ by a little": (
        [
            life("a", 0.05, 10, 50.05, first=10, last=50.05, busy=40.05),
            life("b", 49.95, 60, 99.9, first=60, last=100.05, busy=40.05),
        ],
        1,
        [(0, 50), (50, 100)],
        of(loading=9.95 + 10.05, busy=80.0, between=0.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_device_seconds_of_cases_worked_by_hand(case: str):
    lives, gpus, waves, expected = CASES[case]
    found = account(lives, gpus, (0, 100), waves)
    assert found == pytest.approx(expected, abs=1e-6)


@st.composite
def pools(draw: Any) -> tuple[list[Vitals], int]:
    """Engines of two GPUs at most each, whose lives follow each other, in no order."""
    second = st.floats(0, 100)
    lives = []
    for replica in range(draw(st.integers(1, 3))):
        gpus = draw(st.integers(0, 2))
        moments = sorted(draw(st.lists(second, min_size=5, max_size=15)))
        for pid, start in enumerate(range(0, len(moments) - 4, 5)):
            created, ready, first, last, at = moments[start : start + 5]
            known = draw(st.integers(0, 2))
            lives.append(
                life("m", created, ready if known else None, at, replica=replica, gpus=gpus, pid=pid,
                     first=first if known == 2 else None, last=last if known == 2 else None,
                     busy=(last - first) * draw(st.floats(0, 1)) if known == 2 else 0.0)
            )  # fmt: skip
    return draw(st.permutations(lives)), draw(st.integers(0, 9))


@given(pools())
def test_device_seconds_add_up_and_none_is_negative(pool: tuple[list[Vitals], int]):
    lives, gpus = pool
    span = (10.0, 90.0)
    found = account(lives, gpus, span)
    devices = sum(found.values()) / 80
    assert devices == pytest.approx(round(devices))
    assert min(found.values()) > -1e-6
    assert round(devices) >= (gpus if any(v.gpus for v in lives) else 0)
    assert all(
        sum(one.seconds.values()) == pytest.approx(one.window[1] - one.window[0]) for one in histories(lives, span)
    )


def test_the_manifest_tells_each_life_and_the_printed_line_the_whole():
    done = {"requests": 960, "prompt_tokens": 90_000, "cached_tokens": 72_000, "output_tokens": 10_000}
    lives = [
        life("m", 0, 10, 40, first=10, last=40, busy=30, pid=7, **done),
        life("m", 45, 60, 99, first=60, last=100, busy=40, pid=8, memory_gib=20.123),
        life("m", 0, 10, 99, replica=1, first=10, last=80, busy=70),
    ]
    told = facts(lives, 2, (0, 100), [(0, 100)])
    first, second, third = told["engines"]
    assert first["seconds"] == {"busy": 30, "loading": 10}
    assert first["cached_share"] == 0.8
    assert first["tokens_per_second"] == 3333.3
    assert second["seconds"] == {"busy": 40, "restart": 20}
    assert (second["memory_gib"], third["replica"], third["seconds"]["tail"]) == (20.12, 1, 20)
    assert told["idle"]["devices"] == 2
    # Of 200 s: busy 140, loading 20, restart 20, tail 20.
    assert sentence(told["idle"]) == "GPUs busy 70% of 100 s x 2; idle: loading 10%, restart 10%, tail 10%"
    cpu = facts([life("m", 0, 0, 9, gpus=0, first=0, last=10, busy=10)], 0, (0, 10), [])
    assert sentence(cpu["idle"]) == "Engines busy 100% of 10 s x 1"


# ---- vLLM's scheduler


def test_vllm_adds_no_logger_of_its_own_and_its_steps_reach_the_recorder():
    code = """if True:
        from types import SimpleNamespace as Step
        from ensemble.stats import stat_logger
        from ensemble.vitals import Recorder
        from vllm.v1.engine import async_llm
        from vllm.v1.metrics.loggers import StatLoggerManager
        from vllm.v1.metrics.stats import SchedulerStats
        recorder = Recorder("m", 0, 0)
        manager = StatLoggerManager(None, [0], [stat_logger(recorder)], enable_default_loggers=False)
        manager.log_engine_initialized()
        stats = SchedulerStats(num_running_reqs=40, num_waiting_reqs=3, kv_cache_usage=0.25)
        manager.record(stats, None, None, 0)
        manager.record(None, None, None, 0)
        manager.log()
        seen = recorder.snapshot()
        print(len(manager.stat_loggers), seen.running, seen.waiting, seen.kv_usage, async_llm.IterationStats())
    """
    pytest.importorskip("vllm")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split("\n")[-2] == "1 40 3 0.25 None"


# ---- the live view


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch, terminal: bool = False) -> tuple[Progress, StringIO]:
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    out = Terminal() if terminal else StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False, soft_wrap=not terminal)
    return Progress(console), out


def at_work(second: float, tokens: int, **more: Any) -> Vitals:
    counts = {"prompt_tokens": tokens, "cached_tokens": tokens * 3 // 4, "first": 10, "last": second, "busy": 1.0}
    return life("m", **{"created": 0, "ready": 10, "at": second} | counts | more)


def test_lines_of_a_log_end_with_what_the_engines_do(monkeypatch: pytest.MonkeyPatch):
    progress, out = watched(monkeypatch)
    progress.start({"math": 10})
    progress.engines([life("m", 0, None, 5, status="loading"), life("m", 0, None, 5, replica=1, status="loading")])
    progress.update({("math", False): 0})
    assert out.getvalue().rstrip().endswith("; 2 engines: loading")
    progress.engines([at_work(20, 1000), at_work(20, 0, replica=1)])
    more = [at_work(22, 21_000, running=40, waiting=3), at_work(22, 4690, replica=1, running=2, pid=1)]
    progress.engines(more)
    progress.update({("math", False): 5})
    # From the first poll on: 21,000 tokens in 17 s and 4,690 in 17 s.
    assert out.getvalue().rstrip().endswith("; 2 engines: 1,511 tokens/s, 75% cached, 42 running, 3 waiting")


def test_speed_is_of_the_last_polls_and_of_the_engines_last_life(monkeypatch: pytest.MonkeyPatch):
    progress, out = watched(monkeypatch)
    progress.start({"math": 10})
    for second in range(20, 120):
        progress.engines([at_work(second, 100 * second if second < 100 else 10_000)])
    progress.update({("math", False): 0})
    assert "; 1 engine: 0 tokens/s" in out.getvalue()  # long ago it did more
    reborn = [at_work(130, 50, pid=2, created=125.0), at_work(131, 350, pid=2, created=125.0)]
    for now in reborn:
        progress.engines([at_work(119, 10_000), now])
    progress.update({("math", False): 0})
    assert out.getvalue().rstrip().endswith("1 engine: 300 tokens/s, 75% cached, 0 running, 0 waiting")


@pytest.mark.parametrize(
    ("engines", "lines"),
    [
        (2, ["m/0: 500 tokens/s, 75% cached, 4 running, 1 waiting, KV 25%, 20.5 GiB", "m/1: 500 tokens/s"]),
        (9, ["m, 9 engines: 4,500 tokens/s, 75% cached, 36 running, 9 waiting, KV 25%, 184.5 GiB"]),
    ],
)
def test_a_terminal_has_a_line_for_each_engine_or_of_many_for_each_model(
    monkeypatch: pytest.MonkeyPatch, engines: int, lines: list[str]
):
    progress, out = watched(monkeypatch, terminal=True)
    with progress:
        progress.start({"math": 10})
        for second, tokens in [(20, 1000), (22, 2000)]:
            now = {"running": 4, "waiting": 1, "kv_usage": 0.25, "memory_gib": 20.5}
            progress.engines([at_work(second, tokens, replica=i, **now) for i in range(engines)])
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert all(line in shown for line in lines)
    assert ("m/0" in shown) == (engines == 2)


# ---- Ray's metrics


@pytest.fixture(scope="module")
def metrics() -> Iterator[str]:
    """What a node's endpoint says of an actor's engine, without Ray's dashboard."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local", include_dashboard=False, num_cpus=1, object_store_memory=2**27, log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, _system_config={"metrics_report_interval_ms": 200},
        )  # fmt: skip
        try:
            engine = ray.remote(Counted).remote()
            ray.get(engine.work.remote())
            yield scraped(ray.nodes()[0])
        finally:
            ray.shutdown()


class Counted:
    def work(self) -> None:
        from pipelines.metrics import Exporter

        exporter = Exporter("smollm2", 3)
        done = {"requests": 24, "prompt_tokens": 900, "cached_tokens": 700, "output_tokens": 25, "running": 5}
        exporter.update(at_work(20, 0))
        exporter.update(at_work(21, 0, **done | {"requests": 20, "busy": 1.5}))
        exporter.update(at_work(22, 0, **done | {"busy": 2.5, "waiting": 2, "kv_usage": 0.5, "memory_gib": 21.5}))


def scraped(node: dict[str, Any]) -> str:
    import urllib.request

    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text, patience = "", time.monotonic() + 60
    while "quorum_engine_memory_gib" not in text and time.monotonic() < patience:
        time.sleep(0.2)
        try:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
        except OSError:  # the node's agent is still starting
            continue
    return text


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("requests_total", 24), ("prompt_tokens_total", 900), ("cached_tokens_total", 700), ("output_tokens_total", 25),
        ("busy_seconds_total", 2.5), ("running", 5), ("waiting", 2), ("kv_cache_usage", 0.5), ("memory_gib", 21.5),
    ],
)  # fmt: skip
def test_prometheus_finds_an_engine_on_its_nodes_endpoint(metrics: str, metric: str, value: float):
    lines = re.findall(rf"^ray_quorum_engine_{metric}{{(.*)}} (\S+)$", metrics, re.MULTILINE)
    assert [float(found) for _, found in lines] == [value]
    assert 'model="smollm2"' in lines[0][0]
    assert 'replica="3"' in lines[0][0]
