"""The endpoint with the real model, real vLLM and real Ray Serve on CPU, spoken to by real clients."""

import contextlib
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from ensemble.config import ROOT
from tests.demo import decisions_agree, lines
from tests.serving import processes, ready, server

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

MEMBER, ENSEMBLE = "smollm2_gptq", "ensemble:demo"
CHOICE = "Question: What melts first?\nA. ice\nB. iron\nAnswer:"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with server(tmp_path_factory.mktemp("serve") / "log") as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key="unused", max_retries=0, timeout=120)


def test_the_openai_package_completes(client):
    assert [model.id for model in client.models.list()] == [ENSEMBLE, MEMBER]
    asked = {"model": MEMBER, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 3, "logprobs": 1}
    whole = client.completions.create(**asked, echo=True).choices[0]
    assert whole.text.startswith("The capital of France is Paris")
    assert whole.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in whole.logprobs.token_logprobs[1:])
    ids = httpx.post(str(client.base_url).replace("/v1/", "/tokenize"), json={"text": asked["prompt"]}).json()
    assert client.completions.create(**asked | {"prompt": ids["tokens"]}).choices[0].text.startswith(" Paris")
    several = client.completions.create(**asked | {"prompt": ["The capital of France is", "One, two, three,"]})
    assert [choice.text.split()[0].strip(".,") for choice in several.choices] == ["Paris", "four"]
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert len(pieces) == 3
    assert "".join(pieces) == whole.text.removeprefix("The capital of France is")


def test_the_openai_package_chats(client):
    messages = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    asked = {"model": MEMBER, "messages": messages, "temperature": 0, "max_tokens": 8}
    text = client.chat.completions.create(**asked).choices[0].message.content
    assert text
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    vote = client.chat.completions.create(model=ENSEMBLE, messages=[{"role": "user", "content": CHOICE}])
    assert vote.choices[0].message.content in (" A", " B")
    with pytest.raises(openai.BadRequestError, match="a vote has none"):
        client.completions.create(model=ENSEMBLE, prompt=CHOICE, logprobs=1)
    with pytest.raises(openai.NotFoundError, match="available: ensemble:demo"):
        client.completions.create(model="gpt", prompt="x")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MEMBER, prompt="word " * 5000, max_tokens=1)


def test_the_challenges_health_check(served):
    told = httpx.post(f"{served[0]}/process", json={"prompt": "The capital of France is "}, timeout=120).json()
    assert set(told) == {"text", "tokens", "logprob", "request_time"}
    assert isinstance(told["text"], str)
    assert 1 <= len(told["tokens"]) <= 50
    assert all(set(token) == {"text", "logprob", "top_logprob"} for token in told["tokens"])
    assert told["logprob"] == pytest.approx(sum(token["logprob"] for token in told["tokens"]))


def test_the_engine_stops_computing_for_who_has_left(served):
    """A text of 1,500 tokens takes a minute and more here, the prompts of 40 questions half a minute."""
    base, _ = served
    text = {"model": MEMBER, "prompt": "Once upon a time", "max_tokens": 1500, "min_tokens": 1500}
    words = " ".join(f"word{i}" for i in range(300))
    choices = [{"text": f"{words} {i}?", "choices": [f"yes {i}", f"no {i}"]} for i in range(40)]
    asked = {"/v1/completions": [text, text | {"stream": True}], "/v1/solve": [{"questions": choices}]}
    for path, bodies in asked.items():
        for body in bodies:
            leave(base + path, body)
            until = time.monotonic() + 20
            while (running := engine_metric(base, "running") + engine_metric(base, "waiting")) > 0:
                assert time.monotonic() < until, running
                time.sleep(0.5)


def leave(url: str, body: dict) -> None:
    """After two seconds, whether the response has begun or not."""
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", url, json=body, timeout=2) as response,
    ):
        next(response.iter_bytes())
        time.sleep(2)


def engine_metric(base: str, name: str) -> float:
    (line,) = re.findall(rf"^quorum_engine_{name}{{.*}} (\S+)$", httpx.get(f"{base}/metrics").text, re.MULTILINE)
    return float(line)


def test_the_examples_client_runs(served):
    script = [sys.executable, "examples/openai_client.py", "--base-url", served[0], "--model", MEMBER]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_decisions_are_those_of_solve(served, undisturbed):
    """On the demo's multiple-choice questions; where two options are near each other kernels may decide otherwise."""
    solved = [row for row in lines(undisturbed / "run/predictions.jsonl") if row["task"] == "multiple_choice"]
    questions = lines(ROOT / "configs/demo/questions.jsonl")
    choices = [question for question in questions if question["task"] == "multiple_choice"]
    rows = httpx.post(f"{served[0]}/v1/solve", json={"questions": choices}, timeout=200).json()["results"]
    assert decisions_agree(rows, solved) > 20
    for ours, theirs in zip(rows, solved, strict=True):
        if ours["prediction"] == theirs["prediction"]:
            assert ours["grade"] == theirs["grade"]


def test_a_killed_engine_process_is_replaced_and_no_request_hangs(served):
    base, process = served
    statuses: list[int] = []
    stop = threading.Event()

    def ask(i: int) -> None:
        question = {"id": i, "text": f"Which is number {i}?", "choices": [f"number {i}", f"number {i + 1}"]}
        with httpx.Client(base_url=base, timeout=120) as client:
            while not stop.is_set():
                response = client.post("/v1/solve", json=question)
                statuses.append(response.status_code)
                if response.status_code == 200:
                    assert response.json()["answer_text"] in question["choices"]
                else:
                    assert response.status_code == 503
                    assert int(response.headers["retry-after"]) > 0
                    time.sleep(1)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, i) for i in range(4)]
        time.sleep(3)
        before = len(statuses)
        (victim,) = processes(process, "VLLM::Worker") or processes(process, "VLLM::EngineCore")
        victim.kill()
        time.sleep(10)
        ready(base, 200)
        time.sleep(3)
        stop.set()
        for future in asking:
            future.result(150)
    assert before > 0
    assert statuses[-1] == 200
