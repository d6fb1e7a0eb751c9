"""Who the endpoint answers, and how much: limits, keys, and settings that are wrong."""

import re
import time
from typing import Any

import pytest

from ensemble.errors import ConfigError
from serve import keys as keys_module
from serve.admission import Admission
from serve.keys import Keys
from serve.refusals import Busy
from serve.settings import Limits, read_settings
from tests.desks import QUESTION, Scripted, client_of, demo_plan, desk_of, message

pytestmark = pytest.mark.usefixtures("one_tokenizer")


@pytest.fixture
def plan() -> Any:
    return demo_plan()


def test_who_is_too_much_is_refused_at_once(plan):
    desk = desk_of(plan, Scripted(seconds=1.0), Limits(in_flight=2))
    client = client_of(desk)
    with desk.admission.enter("others", 2):
        started = time.perf_counter()
        response = client.post("/v1/solve", json=QUESTION)
        seconds = time.perf_counter() - started
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "2 of 2" in message(response)
    assert seconds < 0.5  # it does not wait for the engine
    assert client.post("/v1/solve", json=QUESTION).status_code == 200
    assert desk.admission.in_flight == 0


def test_the_refused_do_not_come_back_together():
    now = 0.0
    admission = Admission(Limits(in_flight=1), lambda: now)
    waits = []
    with admission.enter("others", 1):
        for _ in range(2000):
            with pytest.raises(Busy) as refused:
                admission.check("me")
            waits.append(refused.value.retry_after)
        now = 100.0  # nobody was refused for a while
        with pytest.raises(Busy) as refused:
            admission.check("me")
    assert refused.value.retry_after == 1.0
    assert min(waits) == 1.0
    assert max(waits) == 30.0
    within = [sum(second <= wait < second + 1 for wait in waits) for second in range(1, 30)]
    assert all(24 <= n <= 26 for n in within)  # the rest at 30


def test_one_caller_cannot_take_all(plan):
    desk = desk_of(plan, Scripted(), Limits(key_in_flight=2))
    with desk.admission.enter("127.0.0.1", 2):
        response = client_of(desk).post("/v1/solve", json=QUESTION)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert client_of(desk, "127.0.0.2").post("/v1/solve", json=QUESTION).status_code == 200


def test_requests_a_minute(plan):
    client = client_of(desk_of(plan, Scripted(), Limits(per_minute=3)))
    statuses = [client.get("/v1/models").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert 1 <= int(client.get("/v1/models").headers["retry-after"]) <= 20


def test_an_answer_that_takes_too_long_is_given_up(plan):
    desk = desk_of(plan, Scripted(seconds=5.0), Limits(seconds=0.2))
    for body in (QUESTION, {"questions": [QUESTION]}, {"questions": [QUESTION], "stream": True}):
        response = client_of(desk).post("/v1/solve", json=body)
        assert response.status_code == 504
        assert "0.2 s" in message(response)
    assert desk.admission.in_flight == 0


def test_keys(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(keys_module, "LOOK_SECONDS", 0.0)
    path = tmp_path / "keys"
    path.write_text("# ours\nann 0123456789abcdef\nbob fedcba9876543210  # his\n")
    client = client_of(desk_of(plan, Scripted(), keys=Keys(str(path))), "203.0.113.9")
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
    for wrong in ("", "0123456789abcde", "ann", "0123456789abcdeF", "\u00fc" * 16):
        headers = {"Authorization": b"Bearer " + wrong.encode()}
        assert client.get("/v1/models", headers=headers).status_code == 401, wrong
    assert client.get("/v1/models", headers={"Authorization": "Bearer 0123456789abcdef"}).status_code == 200
    assert client.get("/v1/models", headers={"X-API-Key": "fedcba9876543210"}).status_code == 200
    path.write_text("ann 0123456789abcdef\n")  # bob's is revoked
    assert client.get("/v1/models", headers={"X-API-Key": "fedcba9876543210"}).status_code == 401
    assert client.get("/v1/models", headers={"X-API-Key": "0123456789abcdef"}).status_code == 200
    path.write_text("short\n")  # wrong, and mended
    assert client.get("/v1/models", headers={"X-API-Key": "0123456789abcdef"}).status_code == 401
    path.write_text("ann 0123456789abcdef\n")
    assert client.get("/v1/models", headers={"X-API-Key": "0123456789abcdef"}).status_code == 200
    path.unlink()  # nobody can say who is let in
    assert client.get("/v1/models", headers={"X-API-Key": "0123456789abcdef"}).status_code == 401
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("203.0.113.9", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "203.0.113.9"}, 403),
        ("127.0.0.1", {"Host": "evil.example"}, 403),  # a name that was pointed at this machine
        ("127.0.0.1", {"Origin": "https://evil.example"}, 403),
        ("127.0.0.1", {"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
    ],
)
def test_without_keys_only_this_machine_is_answered(plan, address, headers, status):
    client = client_of(desk_of(plan, Scripted()), address)
    assert client.get("/v1/models", headers=headers).status_code == status


def test_no_cross_origin_headers(plan):
    response = client_of(desk_of(plan, Scripted())).get("/healthz", headers={"Origin": "https://evil.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gatways": 2}, "top level: unknown key 'gatways'; did you mean 'gateways'"),
        ({"limits": {"in_fligth": 2}}, "limits: unknown key 'in_fligth'; did you mean 'in_flight'"),
        ({"limits": {"in_flight": 0}}, "limits.in_flight: Input should be greater than or equal to 1 (given: 0)"),
        ({"replicas": {"m": {"mx": 2}}}, "replicas.m: unknown key 'mx'; did you mean 'max'"),
        ({"replicas": {"m": {"min": 3}}}, "replicas.m: min is larger than max"),
        (3, "top level: Input should be a valid dictionary"),
    ],
)
def test_wrong_settings_are_told_with_the_key(settings, told):
    with pytest.raises(ConfigError, match="^" + re.escape(f"serve: {told}")):
        read_settings(settings)
