"""The endpoint over a scripted engine in this process: a desk, and a client of its HTTP."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import cache
from typing import Any

from fastapi.testclient import TestClient

from ensemble.engine import Engine
from ensemble.fake import FakeEngine
from ensemble.load import load_config
from ensemble.plan import Plan
from ensemble.vitals import Recorder, Vitals
from serve.api import create_api
from serve.bridge import Head
from serve.desk import Desk
from serve.gateway import Gateway, served_plan
from serve.keys import Keys
from serve.settings import Limits

FAKES = [f"models.{model}.engine.fake={{}}" for model in ("smollm2", "smollm2_gptq")]
QUESTION = {"id": "q", "text": "What melts first?", "choices": ["ice", "iron"], "answer": 0}


class Scripted:
    """A model of one scripted engine; what it is asked in OpenAI's protocol is kept, and answered with `reply`."""

    def __init__(self, **options: Any) -> None:
        self._engine = FakeEngine(**options)
        self.asked: list[tuple[str, str, bytes]] = []
        self.reply: tuple[Head, bytes] = (Head(200, "application/json"), b'{"ok": true}')
        self.pieces: Sequence[bytes] = (b"data: 1\n\n", b"data: [DONE]\n\n")
        self.ended = False
        self._recorder = Recorder("smollm2_gptq", 0, 0)

    async def vitals(self) -> list[Vitals]:
        return [self._recorder.snapshot()]

    def engine(self, session: str) -> Engine:
        return self._engine

    async def respond(self, method: str, path: str, body: bytes) -> tuple[Head, bytes]:
        self.asked.append((method, path, body))
        return self.reply

    async def stream(self, method: str, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        self.asked.append((method, path, body))
        try:
            yield Head(200, "text/event-stream")
            for piece in self.pieces:
                yield piece
                await asyncio.sleep(0)
        finally:
            self.ended = True


@cache
def demo_plan() -> Plan:
    return served_plan(load_config("configs/demo.yaml", FAKES))


def desk_of(plan: Any, model: Scripted, limits: Limits | None = None, keys: Keys | None = None) -> Desk:
    async def nothing() -> list[str]:
        return []

    async def counted() -> list[Any]:
        return [desk.metrics.counts()]

    desk = Desk(Gateway("demo", plan, {"smollm2_gptq": model}), limits or Limits(), keys, None, nothing, counted)
    return desk


def client_of(desk: Desk, address: str = "127.0.0.1") -> TestClient:
    return TestClient(create_api(lambda: desk), "http://localhost", client=(address, 1), raise_server_exceptions=False)


def message(response: Any) -> str:
    """Of an error, whose form is checked."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == response.status_code
    assert "Traceback" not in response.text
    return str(error["message"])
