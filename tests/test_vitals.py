"""What an engine does, counted inside its process, and what vLLM's scheduler says of it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from ensemble.config import ROOT
from ensemble.vitals import Recorder


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


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
