"""Memory of the GPUs, by nvidia-smi: what benchmarks wait for between two engines."""

import os
import subprocess
import time

BETWEEN_ENGINES = 2.0  # GiB that may still be in use


def used_gib(gpu: str | None) -> float:
    """Of a GPU, or of all that this process may use."""
    chosen = gpu or os.environ.get("CUDA_VISIBLE_DEVICES")
    return sum(_asked("memory.used", *([f"--id={chosen}"] if chosen else [])))


def total_gib() -> float:
    """Of the machine's first GPU."""
    return _asked("memory.total")[0]


def wait_until_free(gpu: str | None, seconds: float = 60.0) -> None:
    """An engine's memory comes back some seconds after its process ends."""
    until = time.monotonic() + seconds
    while used_gib(gpu) > BETWEEN_ENGINES and time.monotonic() < until:
        time.sleep(0.5)


def _asked(what: str, *options: str) -> list[float]:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", *options]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [float(line) / 1024 for line in lines]
