"""Whatever comes in: schemathesis from the OpenAPI description, and malformed bodies, never end in a 500."""

import json
import random
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from serve.api import create_api
from serve.bridge import Head
from tests.desks import QUESTION, Scripted, client_of, demo_plan, desk_of, message

pytestmark = pytest.mark.slow

_MODEL = Scripted()
_LOGPROBS = {"tokens": [" a"], "token_logprobs": [-0.5], "top_logprobs": [{" a": -0.5}]}
_MODEL.reply = (
    Head(200, "application/json"),
    json.dumps({"choices": [{"text": " a", "logprobs": _LOGPROBS}]}).encode(),
)
_DESK = desk_of(demo_plan(), _MODEL)
schema = schemathesis.openapi.from_asgi("/openapi.json", create_api(lambda: _DESK))
HEADERS = {"Host": "localhost", "X-API-Key": "none"}
SEED = 24


class Local:
    """An ASGI application as a caller on this machine sees it."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope | {"client": ("127.0.0.1", 1)}, receive, send)


schema.app = Local(schema.app)


@schema.parametrize()
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_no_request_from_the_description_is_a_500(case):
    response = case.call(headers=HEADERS)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"]
        assert error["code"] == response.status_code


def test_a_thousand_malformed_bodies_are_4xx_with_a_reason():
    client, draw = client_of(_DESK), random.Random(SEED)
    whole = json.dumps(QUESTION).encode()
    wrong = [None, True, 5, -1, 1e308, "", " ", [], {}, [[]], {"a": {}}, "x" * 1000, ["a", "a"], ["a", ""], [1, 2]]
    statuses: Counter[int] = Counter()
    for i in range(1000):
        if i % 2:  # a field of the wrong kind
            body = json.dumps(
                QUESTION
                | {draw.choice(["id", "text", "choices", "task", "answer", "context", "group"]): draw.choice(wrong)}
            ).encode()
        else:  # bytes lost, doubled or changed
            cut, to = sorted(draw.sample(range(len(whole)), 2))
            body = whole[:cut] + draw.choice([b"", draw.randbytes(3), whole[cut:to] * 2, b"\x00", b"\xff"]) + whole[to:]
        response = client.post("/v1/solve", content=body)
        statuses[response.status_code] += 1
        assert response.status_code in (200, 400), (body, response.text)  # some changes leave a question
        if response.status_code == 400:
            assert len(message(response)) > 10
    assert statuses[400] > 600
