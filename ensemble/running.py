"""A running engine: how it starts from its model file, and what is noted of its work. Batch and serve share this."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from ensemble import models
from ensemble.config import ModelConfig, Sampling
from ensemble.engine import GenerateReply, ScoreReply, ScoreRequest, VLLMEngine, engine_env, is_dead
from ensemble.fake import FakeEngine
from ensemble.gpu import wait_for_memory
from ensemble.presets import with_preset
from ensemble.vitals import Recorder

LOOK_SECONDS = 0.2  # for a waiting look at the vitals to be answered: construction blocks the event loop


async def start_engine(name: str, config: ModelConfig, device: str, recorder: Recorder) -> "RunningEngine":
    """In this process; the recorder's status says what it is doing. Raises ModelError."""

    def report(line: str) -> None:
        recorder.status = line

    engine: Any
    if config.engine.fake is not None:
        engine = FakeEngine(**config.engine.fake)
        await engine.start()
    else:
        report("preparing")
        folder = await asyncio.to_thread(models.prepare, name, config, report)
        if device == "cuda":
            report("waiting for the GPU's memory")
            os.environ.update(engine_env(config.engine, device))  # before vLLM is imported for the driver's API
            settings = with_preset(config.engine, config.engine.hardware or models.hardware("cuda"))
            gpus = config.engine.tensor_parallel_size
            await asyncio.to_thread(wait_for_memory, gpus, settings.gpu_memory_utilization or 0.0)
        report("loading")
        await asyncio.sleep(LOOK_SECONDS)
        engine = VLLMEngine(config, folder, device, recorder)
    recorder.started()
    return RunningEngine(engine, recorder)


class RunningEngine:
    """An `Engine` whose work is recorded, and with whose core this process ends: only a new one helps then."""

    def __init__(self, engine: Any, recorder: Recorder) -> None:
        self.engine, self._recorder = engine, recorder

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        replies: list[ScoreReply] = await self._alive(self.engine.score(requests))
        prompts, cached = sum(r.prompt_tokens for r in replies), sum(r.cached_tokens for r in replies)
        self._recorder.add(prompts, cached, 0, len(requests))
        return replies

    async def generate(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> GenerateReply:
        reply: GenerateReply = await self._alive(self.engine.generate(prompt, sampling, seed))
        self._recorder.add(reply.prompt_tokens, reply.cached_tokens, reply.tokens)
        return reply

    def close(self) -> None:
        self.engine.close()

    async def _alive(self, call: Any) -> Any:
        try:
            return await call
        except Exception as e:
            if is_dead(e):
                os._exit(1)
            self._recorder.error()
            raise
