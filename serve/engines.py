"""One engine of a served model: a replica of a Ray Serve deployment, which Serve starts again when it dies."""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ensemble.config import ModelConfig, Sampling
from ensemble.engine import GenerateReply, ScoreReply, ScoreRequest
from ensemble.running import start_engine
from ensemble.vitals import Recorder, Vitals
from serve.bridge import Head, respond

PIECES = 500.0  # of streams, a second: each costs the same in every process on its way, however short it is
LONGEST_PAUSE = 0.25  # seconds between two pieces of a stream
TOKENIZER_INFO = "--enable-tokenizer-info-endpoint"  # lm-evaluation-harness asks for it


class EngineReplica:
    """Two verbs for the vote, and vLLM's own HTTP application for everything that speaks OpenAI's protocol."""

    async def __init__(self, name: str, config: ModelConfig, device: str, stall: float) -> None:  # type: ignore[misc]  # Serve awaits it
        """stall: seconds without progress after which the engine counts as hung."""
        gpus = config.engine.tensor_parallel_size if device == "cuda" else 0
        self._stall, self._recorder, self._streams = stall, Recorder(name, 0, gpus), 0
        self._running = await start_engine(name, config, device, self._recorder)
        self._llm: Any = getattr(self._running.engine, "llm", None)  # a scripted engine has none
        self._api = await openai_app(self._llm, name) if self._llm else None

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        with self._recorder.working(1):
            return await self._running.score(requests)

    async def generate(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> GenerateReply:
        with self._recorder.working(1):
            return await self._running.generate(prompt, sampling, seed)

    async def respond(self, method: str, path: str, body: bytes) -> tuple[Head, bytes]:
        """A whole response of vLLM's application."""
        head, pieces = Head(500, "application/json"), []
        async for piece in self._respond(method, path, body):
            if isinstance(piece, Head):
                head = piece
            else:
                pieces.append(piece)
        return head, b"".join(pieces)

    async def stream(self, method: str, path: str, body: bytes) -> AsyncGenerator[Head | bytes]:
        """First the Head, then the body as it is made."""
        self._streams += 1
        try:
            async with aclosing(self._respond(method, path, body)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._streams -= 1

    async def _respond(self, method: str, path: str, body: bytes) -> AsyncGenerator[Head | bytes]:
        if self._api is None:
            yield Head(501, "application/json")
            yield b'{"error": {"message": "the scripted engine has no such endpoint", "code": 501}}'
            return
        with self._recorder.working(1):
            async with aclosing(respond(self._api, method, path, body, self._pause)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Head) and piece.status >= 500 and self._llm.errored:
                        os._exit(1)
                    yield piece

    def _pause(self) -> float:
        """A lone stream comes token by token; the more there are, the more tokens come at a time."""
        return min(LONGEST_PAUSE, self._streams / PIECES)

    async def vitals(self) -> Vitals:
        return self._recorder.snapshot()

    async def check_health(self) -> None:
        """Asked by Serve every few seconds; who raises is started again."""
        if (seconds := self._recorder.stalled()) > self._stall:
            raise RuntimeError(f"the engine has not answered for {seconds:.0f} s")
        if self._api is not None and self._llm.errored:
            os._exit(1)


async def openai_app(llm: Any, name: str) -> Any:
    """vLLM's HTTP application over a running `AsyncLLM`; vLLM 0.26 to 0.29."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 0.29 has moved them, 0.26 has them only here
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # vLLM 0.26
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = ["--model", llm.model_config.model, "--served-model-name", name, TOKENIZER_INFO]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks)
    await init_app_state(llm, app.state, args, tasks)
    return app
