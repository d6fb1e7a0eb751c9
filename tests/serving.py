"""A server of its own for a test: `python -m serve` on a free port, and what its processes are."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from ensemble.config import ROOT

FAKE = "models.smollm2_gptq.engine.fake={}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def server(log: Path, *more: str, seconds: float = 240) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its address, once it is ready, and its process; it is stopped at the end as a person would."""
    port = free_port()
    command = [sys.executable, "-m", "serve", "--config", "configs/demo.yaml", "--port", str(port), *more]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)
    base, until = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while "ready after" not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
        yield base, process
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(children, timeout=15)[1]:
            child.kill()


def processes(server: subprocess.Popen[bytes], name: str) -> list[psutil.Process]:
    """Of the server's, those whose command line has the name."""
    found = []
    for child in psutil.Process(server.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def ready(base: str, seconds: float) -> float:
    """Seconds until every model has an engine."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            if httpx.get(f"{base}/readyz", timeout=5).status_code == 200:
                return time.monotonic() - started
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not whole after {seconds} s")
