"""A real Serve application with scripted engines: sessions, kills under load, leaving clients, draining."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from ensemble.config import ROOT
from tests.serving import FAKE, free_port, processes, ready, server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SLOW = "models.smollm2_gptq.engine.fake={decode_seconds_per_token: 0.2}"
SETTINGS = "{replicas: {smollm2_gptq: {min: 2, max: 2}}, limits: {body_seconds: 1}}"
TEXT = {"task": "math", "text": "How much is 3 + 4?"}  # 5 tokens


def question(i: int) -> dict:
    return {"id": i, "text": f"Number {i}?", "choices": [f"yes {i}", f"no {i}"]}


@pytest.fixture(scope="module")
def two_engines(tmp_path_factory):
    log = tmp_path_factory.mktemp("serve") / "log"
    with server(log, "--set", FAKE, "--settings", SETTINGS) as found:
        yield found


def test_answers_of_many_clients_are_their_own(two_engines):
    base, _ = two_engines

    def ask(i: int) -> None:
        with httpx.Client(base_url=base, timeout=60) as client:
            for j in range(i, i + 160, 16):
                row = client.post("/v1/solve", json=question(j)).json()
                assert row["id"] == j
                assert row["answer_text"] in question(j)["choices"]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))


def test_a_killed_engine_costs_no_request(two_engines):
    """Asked again, or refused with a time to come again; never hung, and never another's answer."""
    base, process = two_engines
    outcomes: list[tuple[int, int]] = []
    stop = threading.Event()

    def ask(i: int) -> None:
        with httpx.Client(base_url=base, timeout=60) as client:
            while not stop.is_set():
                response = client.post("/v1/solve", json=question(i))
                outcomes.append((i, response.status_code))
                if response.status_code == 200:
                    assert response.json()["answer_text"] in question(i)["choices"]
                else:
                    assert response.status_code == 503
                    assert int(response.headers["retry-after"]) > 0
                    time.sleep(0.5)

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, i) for i in range(8)]
        time.sleep(2)
        victim = processes(process, "ServeReplica:quorum:engine")[0]
        victim.kill()
        time.sleep(15)
        stop.set()
        for future in asking:
            future.result(60)
    assert len(outcomes) > 100
    assert {i for i, status in outcomes[-50:] if status == 200}
    ready(base, 30)
    assert len(processes(process, "ServeReplica:quorum:engine")) == 2


def test_a_killed_gateway_comes_back_at_its_port(two_engines):
    base, process = two_engines
    (gateway,) = processes(process, "ServeReplica:quorum:gateway")
    with httpx.Client(base_url=base) as client:
        client.get("/healthz")  # whose connection is open still: its end of the port stays in use for a minute
        gateway.kill()
        gateway.wait(10)
        ready(base, 60)
    assert httpx.post(f"{base}/v1/solve", json=question(7), timeout=30).json()["id"] == 7
    assert processes(process, "ServeReplica:quorum:gateway")[0].pid != gateway.pid


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_who_stops_it_while_engines_load_gets_no_error(tmp_path, seconds):
    log = tmp_path / "log"
    fake = "models.smollm2_gptq.engine.fake={start_seconds: 60}"
    with log.open("wb") as out:
        loading = subprocess.Popen(
            [sys.executable, "-m", "serve", "--port", str(free_port()), "--set", fake],
            cwd=ROOT, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, stdout=out, stderr=out,
        )  # fmt: skip
    until = time.monotonic() + 60
    while "engines are loading" not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    time.sleep(seconds)
    family = psutil.Process(loading.pid).children(recursive=True)
    loading.send_signal(signal.SIGINT)
    assert loading.wait(60) == 0, log.read_text()
    assert "error" not in log.read_text()
    assert psutil.wait_procs(family, timeout=15)[1] == []


def solved(base: str) -> dict[str, float]:
    """Questions that each gateway has answered, by its process, as any of them says."""
    response = httpx.get(f"{base}/metrics", timeout=30)
    assert response.status_code == 200
    found = re.findall(r'quorum_requests_total{pid="(\d+)",route="/v1/solve",status="200"} (\S+)', response.text)
    return {pid: float(n) for pid, n in found}


def test_several_gateways_share_the_port(tmp_path):
    with server(tmp_path / "log", "--set", FAKE, "--settings", "{gateways: 2}") as (base, process):
        for i in range(20):  # each by a connection of its own
            assert httpx.post(f"{base}/v1/solve", json=question(i), timeout=30).json()["id"] == i
        one, other = processes(process, "ServeReplica:quorum:gateway")
        for counts in [solved(base) for _ in range(6)]:  # each says what both have counted
            assert counts.keys() == {str(one.pid), str(other.pid)}
            assert sum(counts.values()) == 20
        one.kill()  # the port is the other's then
        one.wait(10)
        until = time.monotonic() + 60
        while len(solved(base)) < 2 or str(one.pid) in solved(base):  # until the new one has been asked too
            assert httpx.post(f"{base}/v1/solve", json=question(7), timeout=30).json()["id"] == 7
            assert time.monotonic() < until
        port = int(base.rsplit(":", 1)[1])
        taken = subprocess.run([sys.executable, "-m", "serve", "--port", str(port)], cwd=ROOT, capture_output=True)
        assert taken.returncode == 2
        assert b"choose another with --port" in taken.stderr


def test_a_hundred_megabytes_are_refused_before_they_have_come(two_engines):
    base, _ = two_engines

    def much():
        for _ in range(100):
            yield b"x" * 2**20

    with contextlib.suppress(httpx.WriteError):  # the server may close while the rest is still being sent
        assert httpx.post(f"{base}/v1/solve", content=much(), timeout=30).status_code == 413
    assert httpx.post(f"{base}/v1/solve", content=b"x" * 3_000_000, timeout=30).status_code == 413
    assert httpx.post(f"{base}/v1/solve", json=question(1), timeout=30).status_code == 200


def test_a_body_that_does_not_come_is_given_up(two_engines):
    base, _ = two_engines
    with socket.create_connection(("127.0.0.1", int(base.rsplit(":", 1)[1]))) as slow:
        slow.sendall(b"POST /v1/solve HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(30)
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_from_the_first_client_to_the_next_server_at_the_port(tmp_path):
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.Client() as idle,
        server(tmp_path / "one", "--set", SLOW) as (base, process),
    ):
        idle.get(f"{base}/healthz")  # its end of the port stays in use for a minute
        # A client who leaves frees its place.
        for body in (TEXT, {"questions": [TEXT, TEXT]}, {"questions": [TEXT], "stream": True}):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{base}/v1/solve", json=body, timeout=0.3)
        time.sleep(0.5)
        assert re.search(r'quorum_in_flight{pid="\d+"} 0\.0\n', httpx.get(f"{base}/metrics").text)
        # What is under way is answered before the server stops.
        asked = pool.submit(httpx.post, f"{base}/v1/solve", json=TEXT, timeout=30)
        time.sleep(0.4)
        process.terminate()
        assert asked.result(30).json()["prediction"] == "7"
        assert process.wait(90) == 0

        # Who asks twice does not wait for it.
        endless = ("--set", "models.smollm2_gptq.engine.fake={seconds: 60}", "--port", base.rsplit(":", 1)[1])
        with server(tmp_path / "two", *endless) as (base, process):
            asked = pool.submit(httpx.post, f"{base}/v1/solve", json=TEXT, timeout=30)
            time.sleep(1)
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 128 + signal.SIGINT
            assert isinstance(asked.exception(30), httpx.HTTPError)
            assert psutil.wait_procs(family, timeout=15)[1] == []


def test_a_port_in_use_is_told(tmp_path, two_engines):
    base, _ = two_engines
    with (
        pytest.raises(AssertionError, match="Address already in use: choose another with --port"),
        server(tmp_path / "log", "--port", base.rsplit(":", 1)[1]),
    ):
        pass


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--host", "0.0.0.0"], "open to others: give --keys"),
        (["--set", "tasks.math=5"], "tasks"),
        (["--settings", "{limits: {in_flite: 5}}"], "limits: unknown key 'in_flite'; did you mean 'in_flight'?"),
        (["--keys", "/nowhere"], "/nowhere"),
        (["--settings", "{default_model: smollm}"], "did you mean 'smollm2_gptq'"),
        (["--settings", "{replicas: {smollm: {max: 2}}}"], "did you mean 'smollm2_gptq'"),
        (["--settings", "{replicas: {smollm2_gptq: {min: 2}}}"], "min is larger than max"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(tmp_path, more, told):
    with pytest.raises(AssertionError) as failed, server(tmp_path / "log", *more):
        pass
    assert told in str(failed.value)
    assert "Traceback" not in str(failed.value)
