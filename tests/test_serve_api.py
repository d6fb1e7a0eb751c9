"""The endpoint's HTTP over scripted engines in this process: answers in every protocol, and clear errors."""

import asyncio
import json
import os
from typing import Any

import pytest
from prometheus_client import Metric

from serve.admission import Admission
from serve.bridge import Head
from serve.metrics import Metrics, exposition
from serve.settings import Limits
from tests.desks import QUESTION, Scripted, client_of, demo_plan, desk_of, message

pytestmark = pytest.mark.usefixtures("one_tokenizer")
PROMPT = "Question: What melts first?\nA. ice\nB. iron\nAnswer:"


@pytest.fixture
def plan() -> Any:
    return demo_plan()


def test_one_question_is_answered_and_graded(plan):
    row = client_of(desk_of(plan, Scripted())).post("/v1/solve", json=QUESTION).json()
    assert row["id"] == "q"
    assert row["task"] == "multiple_choice"
    assert row["answer_text"] == QUESTION["choices"][row["prediction"]]
    assert row["grade"] == {"accuracy": float(row["prediction"] == 0)}
    (said,) = row["detail"]
    assert said["orders"] == [[0, 1]]
    assert sum(said["probabilities"][0]) == pytest.approx(1, abs=1e-3)
    assert max(range(2), key=said["probabilities"][0].__getitem__) == row["prediction"]


def test_a_list_is_answered_in_order_and_its_bad_questions_say_why(plan):
    questions = [QUESTION, {"text": "x", "choices": ["one"]}, {"id": 7, "task": "math", "text": "3 + 4?"}, 5]
    rows = client_of(desk_of(plan, Scripted())).post("/v1/solve", json={"questions": questions}).json()["results"]
    assert [row["id"] for row in rows] == ["q", 1, 7, 3]
    assert rows[0]["error"] is None
    assert "choices has 1 option" in rows[1]["error"]["message"]
    assert rows[2]["prediction"] == "7"
    assert "a row must be an object" in rows[3]["error"]["message"]


def test_streamed_results_are_lines_as_they_finish(plan):
    slow_first = {"questions": [{"id": "slow", "task": "math", "text": "3 + 4?"}, QUESTION], "stream": True}
    model = Scripted(decode_seconds_per_token=0.05)
    response = client_of(desk_of(plan, model)).post("/v1/solve", json=slow_first)
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["id"] for line in response.text.splitlines()] == ["q", "slow"]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "not JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b'{"text": "a', 400, "not JSON"),
        (b'{"text": NaN}', 400, "NaN is no JSON number"),
        (b'{"text": "\xff"}', 400, "not UTF-8"),
        (b'{"text": "\\ud800"}', 400, "half a character"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "nested too deeply"),
        (b'{"text": "x", "choices": ' + json.dumps([str(i) for i in range(10_000)]).encode() + b"}", 400, "2 to 26"),
        (b'{"text": " "}', 400, "text is blank"),
        (b'{"text": "x", "task": "multiple"}', 400, "did you mean 'multiple_choice'"),
        (b'{"text": "x", "chioces": ["a", "b"]}', 400, "did you mean 'choices'"),
        (b'{"text": "x", "stream": "yes"}', 400, "stream must be true or false"),
        (b'{"text": "x", "model": "gpt"}', 404, "no model 'gpt'"),
        (b'{"text": "x", "model": "smollm2_gptq"}', 400, "or ask smollm2_gptq at /v1/completions"),
        (b'{"questions": [{"text": "x"}], "steam": true}', 400, "did you mean 'stream'"),
        (b'{"questions": []}', 400, "at least one question"),
        (b'{"questions": ' + b"[" + b'{"text": "x"},' * 300 + b"1]}", 400, "at most 256"),
        (b'{"text": "' + b"x" * 3_000_000 + b'"}', 413, "larger than 2,000,000 bytes"),
    ],
)
def test_a_bad_body_is_refused_with_the_reason(plan, body, status, told):
    response = client_of(desk_of(plan, Scripted())).post("/v1/solve", content=body)
    assert response.status_code == status
    assert told in message(response)


@pytest.mark.parametrize("gold", [10**400, [10**400], 1.5, True, {}])
def test_odd_gold_is_gold_or_refused(plan, gold):
    client = client_of(desk_of(plan, Scripted()))
    response = client.post("/v1/solve", json={"text": "x", "task": "generation", "answer": gold})
    assert response.status_code in (200, 400)


def test_what_breaks_is_told_without_a_trace_and_counted(plan):
    model = Scripted()
    model.reply = Head(200, "application/json"), b"not JSON"
    client = client_of(desk_of(plan, model))
    assert "server's log" in message(client.post("/process", json={"prompt": "x"}))
    assert 'route="/process",status="500"} 1.0' in client.get("/metrics").text
    model.reply = Head(500, "text/plain"), b"Internal Server Error"
    assert message(client.post("/process", json={"prompt": "x"})) == "the model refused the request"


def test_a_nul_byte_in_a_text_is_a_character_like_others(plan):
    body = QUESTION | {"text": "What\0melts?"}
    assert client_of(desk_of(plan, Scripted())).post("/v1/solve", json=body).status_code == 200


def test_the_page_is_there_and_may_load_nothing_from_elsewhere(plan):
    response = client_of(desk_of(plan, Scripted()), "203.0.113.9").get("/")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert 'fetch("v1/solve"' in response.text


def test_models_are_the_ensemble_and_its_members(plan):
    data = client_of(desk_of(plan, Scripted())).get("/v1/models").json()["data"]
    assert [model["id"] for model in data] == ["ensemble:demo", "smollm2_gptq"]


def test_a_members_completion_reaches_it_as_it_was_sent(plan):
    model = Scripted()
    body = b'{"model":"smollm2_gptq", "prompt":[[1,2],[3]], "echo":true, "logprobs":1}'
    response = client_of(desk_of(plan, model)).post("/v1/completions", content=body)
    assert response.json() == {"ok": True}
    assert model.asked == [("POST", "/v1/completions", body)]


def test_the_ensemble_votes_on_a_choice_prompt_and_hands_on_any_other(plan):
    model = Scripted()
    client = client_of(desk_of(plan, model))
    solved = client.post("/v1/solve", json=QUESTION).json()["prediction"]
    choice = client.post("/v1/completions", json={"model": "ensemble:demo", "prompt": PROMPT}).json()["choices"][0]
    assert choice["text"] == " " + "AB"[solved]
    chat = {"model": "ensemble:demo", "messages": [{"role": "user", "content": PROMPT}]}
    message = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": " " + "AB"[solved]}
    events = client.post("/v1/chat/completions", json=chat | {"stream": True}).text.split("\n\n")
    assert events[-2] == "data: [DONE]"
    assert not model.asked
    client.post("/v1/completions", json={"model": "ensemble:demo", "prompt": "Once upon a time", "max_tokens": 3})
    ((_, path, body),) = model.asked
    assert path == "/v1/completions"
    assert json.loads(body) == {"model": "smollm2_gptq", "prompt": "Once upon a time", "max_tokens": 3}


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/v1/completions", {"model": "gpt", "prompt": "x"}, 404, "available: ensemble:demo, smollm2_gptq"),
        ("/v1/completions", {"model": ["x"], "prompt": "x"}, 404, "no model"),
        ("/v1/completions", {"model": "ensemble:demo", "prompt": "x", "echo": True}, 400, "a vote has none"),
        ("/v1/completions", {"model": "ensemble:demo", "prompt": "x", "logprobs": 1}, 400, "a vote has none"),
        ("/v1/completions", {"prompt": ["x"] * 65}, 400, "at most 64"),
        ("/v1/completions", {"prompt": "x", "n": 65}, 400, "at most 64"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 5000}, 400, "at most 4096"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "5000"}, 400, "max_tokens must be a whole number"),
        ("/v1/completions", {"prompt": "x", "n": 1e4}, 400, "n must be a whole number"),
        ("/process", {"prompt": "x", "max_new_tokens": 5000}, 400, "at most 4096"),
        ("/v1/solve", {"text": "x" * 200_001}, 400, "at most 200,000 are read"),
        ("/process", {}, 400, "prompt: Field required"),
        ("/process", {"prompt": "x", "num_return_sequences": 2}, 400, "one sequence"),
        ("/models/none/process", {"prompt": "x"}, 404, "no model 'none'"),
        ("/tokenize", {"text": 5}, 400, "text: Input should be a valid string"),
        ("/decode", {"tokens": [49152]}, 400, "not in the vocabulary of 49152"),
        ("/decode", {"tokens": [-1]}, 400, "tokens.0"),
        ("/v1/nothing", {}, 404, "Not Found"),
        ("/v1/models", {}, 405, "Method Not Allowed: use GET"),
    ],
)
def test_what_cannot_be_asked_is_told(plan, path, body, status, told):
    response = client_of(desk_of(plan, Scripted())).post(path, json=body)
    assert response.status_code == status
    assert told in message(response)


def test_streams_are_handed_on_piece_by_piece(plan):
    model = Scripted()
    body = {"model": "smollm2_gptq", "prompt": "x", "stream": True}
    response = client_of(desk_of(plan, model)).post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text == "data: 1\n\ndata: [DONE]\n\n"
    assert model.ended


def test_a_reader_who_leaves_ends_the_work(plan):
    async def main() -> tuple[bool, int]:
        model = Scripted()
        model.pieces = [b"data\n\n"] * 10_000_000
        desk = desk_of(plan, model)
        coming = desk.flow("me", 1, model.stream("POST", "/v1/completions", b""))
        for _ in range(10):
            await anext(coming)
        assert desk.admission.in_flight == 1
        await coming.aclose()
        return model.ended, desk.admission.in_flight

    assert asyncio.run(main()) == (True, 0)


def test_a_reader_who_stalls_until_the_time_is_up_leaves_nothing_behind(plan):
    async def main() -> tuple[bool, int]:
        model = Scripted()
        model.pieces = [b"data\n\n"] * 10_000_000
        desk = desk_of(plan, model, Limits(seconds=0.3))
        coming = desk.flow("me", 1, model.stream("POST", "/v1/completions", b""))
        await anext(coming)
        await asyncio.sleep(0.6)
        return model.ended, desk.admission.in_flight

    assert asyncio.run(main()) == (True, 0)


def test_the_challenges_protocol(plan):
    model = Scripted()
    logprobs = {
        "tokens": [" Paris", "."],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{" Paris": -0.5, " the": -2.0}, {"!": -0.9}],
    }
    reply = {"choices": [{"text": " Paris.", "logprobs": logprobs}]}
    model.reply = Head(200, "application/json"), json.dumps(reply).encode()
    client = client_of(desk_of(plan, model))
    told = client.post("/process", json={"prompt": "The capital of France is "}).json()
    assert told.pop("request_time") > 0
    assert told == {
        "text": " Paris.",
        "tokens": [
            {"text": " Paris", "logprob": -0.5, "top_logprob": {" Paris": -0.5, " the": -2.0}},
            {"text": ".", "logprob": -1.0, "top_logprob": {"!": -0.9}},
        ],
        "logprob": -1.5,
    }
    sent = json.loads(model.asked[0][2])
    assert (sent["model"], sent["max_tokens"], sent["logprobs"]) == ("smollm2_gptq", 50, 1)
    client.post("/process", json={"prompt": "x", "temperature": 1e-7, "max_new_tokens": 3, "top_k_per_token": 4})
    sent = json.loads(model.asked[1][2])
    assert (sent["temperature"], sent["max_tokens"], sent["top_k"]) == (0.0, 3, 4)


def test_the_challenges_choice_prompt_is_voted_on(plan):
    client = client_of(desk_of(plan, Scripted()))
    row = client.post("/v1/solve", json=QUESTION).json()
    told = client.post("/process", json={"prompt": PROMPT, "max_new_tokens": 1}).json()
    assert told["text"] == " " + "AB"[row["prediction"]]
    assert told["tokens"][0]["top_logprob"] == dict(zip("AB", row["scores"], strict=True))
    assert told["logprob"] == max(row["scores"])


def test_tokens_there_and_back(plan):
    client = client_of(desk_of(plan, Scripted()))
    tokens = client.post("/tokenize", json={"text": "Ice melts first."}).json()["tokens"]
    assert client.post("/decode", json={"tokens": tokens}).json()["text"] == "Ice melts first."
    assert client.post("/tokenize", json={"text": "Ice melts first.", "max_length": 2}).json()["tokens"] == tokens[:2]


def test_counts_for_prometheus(plan):
    client = client_of(desk_of(plan, Scripted()))
    client.post("/v1/solve", json=QUESTION)
    client.post("/v1/solve", content=b"")
    client.get("/made/up")
    text = client.get("/metrics").text
    mine = f'quorum_requests_total{{pid="{os.getpid()}",route="/v1/solve"'
    assert f'{mine},status="200"}} 1.0\n' in text
    assert f'{mine},status="400"}} 1.0\n' in text
    assert "/made/up" not in text
    assert 'quorum_engine_running{model="smollm2_gptq"' in text


def test_a_row_that_is_no_question_keeps_its_id(plan):
    rows = [QUESTION, {"id": "bad", "choices": ["x", "y"]}, {"choices": ["x", "y"]}, "nothing"]
    response = client_of(desk_of(plan, Scripted())).post("/v1/solve", json={"questions": rows})
    assert response.status_code == 200
    assert [row["id"] for row in response.json()["results"]] == ["q", "bad", 2, 3]
    assert [row["error"] is None for row in response.json()["results"]] == [True, False, False, False]


def test_an_id_that_is_there_twice_is_answered_once(plan):
    rows = [QUESTION, QUESTION, QUESTION | {"id": "other", "idx": 3}, {"text": "x", "chioces": ["x", "y"]}]
    rows.append({"id": "long", "text": "x"} | {f"choice{i:05}": i for i in range(50_000)})  # not searched for slips
    response = client_of(desk_of(plan, Scripted())).post(
        "/v1/solve", json={"questions": rows, "model": "ensemble:demo"}
    )
    first, second, other, misspelt, long = response.json()["results"]
    assert (first["error"], other["error"], long["error"]) == (None, None, None)
    assert second["error"]["message"] == "id 'q' is there already in questions[0]; give every question its own"
    assert "did you mean 'choices'" in misspelt["error"]["message"]


def test_metrics_of_several_gateways_stand_side_by_side():
    def counts(pid: str, seconds: float) -> list[Metric]:
        metrics = Metrics(Admission(Limits()))
        metrics.answered(None, 200, seconds)
        found = metrics.counts()
        for metric in found:
            metric.samples = [sample._replace(labels=sample.labels | {"pid": pid}) for sample in metric.samples]
        return found

    text = exposition([counts("1", 0.02), counts("2", 5.0)], []).decode()
    for line in (
        'quorum_requests_total{pid="1",route="other",status="200"} 1.0',
        'quorum_requests_total{pid="2",route="other",status="200"} 1.0',
        'quorum_request_seconds_bucket{le="0.03",pid="1",route="other"} 1.0',
        'quorum_request_seconds_bucket{le="0.03",pid="2",route="other"} 0.0',
        'quorum_request_seconds_sum{pid="2",route="other"} 5.0',
        'quorum_in_flight{pid="2"} 0.0',
    ):
        assert text.splitlines().count(line) == 1
    assert text.count("# TYPE quorum_requests_total counter") == 1


def test_many_at_once_get_their_own_answers(plan):
    """Each option names its question: a crossed answer would show."""

    async def main() -> list[dict[str, Any]]:
        gateway = desk_of(plan, Scripted(prefill_tokens_per_second=100_000)).gateway
        from ensemble.questions import parse_question

        rows = [
            {"id": i, "task": "multiple_choice", "text": f"Number {i}?", "choices": [f"yes {i}", f"no {i}"]}
            for i in range(300)
        ]
        return await asyncio.gather(*(gateway.solve(parse_question(row, 0, "r", 1)) for row in rows))

    for i, row in enumerate(asyncio.run(main())):
        assert row["id"] == i
        assert row["answer_text"] in (f"yes {i}", f"no {i}")
