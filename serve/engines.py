"""One engine of a served model: a replica of a Ray Serve deployment, which Serve starts again when it dies."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ensemble import models
from ensemble.config import ModelConfig, Sampling
from ensemble.engine import GenerateReply, ScoreReply, ScoreRequest, VLLMEngine, engine_env, is_dead
from ensemble.fake import FakeEngine
from ensemble.gpu import wait_for_memory
from ensemble.presets import with_preset
from ensemble.vitals import Recorder, Vitals
from serve.bridge import Head, respond

TOKENIZER_INFO = "--enable-tokenizer-info-endpoint"  # lm-evaluation-harness asks for it


class EngineReplica:
    """Two verbs for the vote, and vLLM's own HTTP application for everything that speaks OpenAI's protocol."""

    async def __init__(self, name: str, config: ModelConfig, device: str, stall: float) -> None:  # type: ignore[misc]  # Serve awaits it
        """stall: seconds without progress after which the engine counts as hung."""
        gpus = config.engine.tensor_parallel_size if device == "cuda" else 0
        self._stall, self._recorder = stall, Recorder(name, 0, gpus)
        self._engine: Any
        self._api: Any = None
        if config.engine.fake is not None:
            self._engine = FakeEngine(**config.engine.fake)
            await self._engine.start()
        else:
            folder = await asyncio.to_thread(models.prepare, name, config, lambda _: None)
            if device == "cuda":
                os.environ.update(engine_env(config.engine, device))
                settings = with_preset(config.engine, config.engine.hardware or models.hardware("cuda"))
                await asyncio.to_thread(wait_for_memory, gpus, settings.gpu_memory_utilization or 0.0)
            self._engine = VLLMEngine(config, folder, device, self._recorder)
            self._api = await openai_app(self._engine.llm, str(folder), name)
        self._recorder.started()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        with self._recorder.working(1):
            replies: list[ScoreReply] = await self._alive(self._engine.score(requests))
        prompts, cached = sum(r.prompt_tokens for r in replies), sum(r.cached_tokens for r in replies)
        self._recorder.add(prompts, cached, 0, len(requests))
        return replies

    async def generate(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> GenerateReply:
        with self._recorder.working(1):
            reply: GenerateReply = await self._alive(self._engine.generate(prompt, sampling, seed))
        self._recorder.add(reply.prompt_tokens, reply.cached_tokens, reply.tokens)
        return reply

    async def respond(self, method: str, path: str, body: bytes) -> tuple[Head, bytes]:
        """A whole response of vLLM's application."""
        head, pieces = Head(500, "application/json"), []
        async for piece in self.stream(method, path, body):
            if isinstance(piece, Head):
                head = piece
            else:
                pieces.append(piece)
        return head, b"".join(pieces)

    async def stream(self, method: str, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        """First the Head, then the body as it is made."""
        if self._api is None:
            yield Head(501, "application/json")
            yield b'{"error": {"message": "the scripted engine has no such endpoint", "code": 501}}'
            return
        with self._recorder.working(1):
            async for piece in respond(self._api, method, path, body):
                if isinstance(piece, Head) and piece.status >= 500 and self._engine.llm.errored:
                    os._exit(1)
                yield piece

    async def vitals(self) -> Vitals:
        return self._recorder.snapshot()

    async def check_health(self) -> None:
        """Asked by Serve every few seconds; who raises is started again."""
        if (seconds := self._recorder.stalled()) > self._stall:
            raise RuntimeError(f"the engine has not answered for {seconds:.0f} s")
        if self._api is not None and self._engine.llm.errored:
            os._exit(1)

    async def _alive(self, call: Any) -> Any:
        try:
            return await call
        except Exception as e:
            self._recorder.error()
            if is_dead(e):  # only a new process helps
                os._exit(1)
            raise


async def openai_app(llm: Any, folder: str, name: str) -> Any:
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

    arguments = ["--model", folder, "--served-model-name", name, TOKENIZER_INFO]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks)
    await init_app_state(llm, app.state, args, tasks)
    return app
