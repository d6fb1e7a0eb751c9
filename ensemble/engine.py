"""One vLLM engine behind two verbs, `score` and `generate`. Batch and serve wrap the same class.

vLLM and torch are imported only where an engine starts, so that everything else stays light.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ensemble.config import EngineConfig, ModelConfig, Sampling
from ensemble.errors import EngineError, ModelError
from ensemble.models import hardware, home
from ensemble.prefill import Prefills
from ensemble.presets import CPU_SEQUENCES, with_preset
from ensemble.stats import stat_logger
from ensemble.tied import tie_children
from ensemble.vitals import Recorder

TokenIds = Sequence[int]


class ScoreRequest(NamedTuple):
    """How probable is each continuation after the prompt? Token ids throughout."""

    prompt: TokenIds
    continuations: Sequence[TokenIds]


class ScoreReply(NamedTuple):
    """logprobs: per continuation the sum of its tokens' natural-log probabilities.

    prompt_tokens counts what was sent, cached_tokens how many of them came from the prefix cache.
    """

    logprobs: list[float]
    prompt_tokens: int
    cached_tokens: int


class GenerateReply(NamedTuple):
    text: str
    tokens: int
    finish: str
    prompt_tokens: int
    cached_tokens: int


class Engine(Protocol):
    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]: ...

    async def generate(self, prompt: TokenIds, sampling: Sampling, seed: int) -> GenerateReply: ...


class VLLMEngine:
    """`AsyncLLM` with the settings of a model file. Construct it inside its own process.

    llm: vLLM's own object, for its HTTP application.
    """

    def __init__(self, config: ModelConfig, folder: Path, device: str, recorder: Recorder | None = None) -> None:
        """recorder: told of what vLLM's scheduler does, step by step."""
        os.environ.update(engine_env(config.engine, device))
        tie_children()
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as e:
            raise ModelError(
                f"vLLM is not installed here ({e}): run make setup, or install requirements/gpu.txt"
            ) from e
        try:
            arguments = AsyncEngineArgs(**engine_args(config, folder, device), disable_log_stats=True)
            self.llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[stat_logger(recorder)] if recorder else [])
        except Exception as e:
            # vLLM's own message says "see root cause above"; the engine process has printed that cause to the log.
            raise ModelError(f"vLLM could not load {folder}: {_one_line(e)}") from e
        self._count = 0
        self._prefills = Prefills(self.llm, config.context_length)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        """Replies in the order of the requests, which are sent one after another so that prefixes are shared."""
        if not all(request.prompt and all(request.continuations) for request in requests):
            raise EngineError("a prompt and its continuations need at least one token each")
        if all(len(c) == 1 for request in requests for c in request.continuations):
            return await self._next_tokens(requests)
        return await asyncio.gather(*(self._score_one(request) for request in requests))

    async def _score_one(self, request: ScoreRequest) -> ScoreReply:
        if all(len(c) == 1 for c in request.continuations):
            return (await self._next_tokens([request]))[0]
        replies = await asyncio.gather(*(self._continuation(request.prompt, c) for c in request.continuations))
        return ScoreReply(
            [lp for reply in replies for lp in reply.logprobs],
            sum(reply.prompt_tokens for reply in replies),
            sum(reply.cached_tokens for reply in replies),
        )

    async def _next_tokens(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        asked = [[c[0] for c in request.continuations] for request in requests]
        rows = await self._prefills.next_token([request.prompt for request in requests], asked)
        return [
            ScoreReply([_finite(row.logprobs[i]) for i in ids], len(request.prompt), row.cached)
            for request, ids, row in zip(requests, asked, rows, strict=True)
        ]

    async def _continuation(self, prompt: TokenIds, continuation: TokenIds) -> ScoreReply:
        from vllm import SamplingParams

        start = len(prompt)
        # Reading the prefix cache is off by default with prompt_logprobs, because cached positions get none. We only
        # need positions from start - 1 on: read the cache, and ask again without it where it reached further.
        for skip in (False, True):
            params = SamplingParams(
                max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, skip_reading_prefix_cache=skip
            )
            output = await self._run([*prompt, *continuation], params)
            if (output.num_cached_tokens or 0) < start:
                break
        else:
            raise EngineError("vLLM read the prefix cache although it was told not to")
        # From the end: whether cached positions have (empty) entries differs between vLLM's versions.
        table = output.prompt_logprobs[-len(continuation) :]
        values = [_finite(entry[token].logprob) for entry, token in zip(table, continuation, strict=True)]
        return _reply([math.fsum(values)], output)

    async def generate(self, prompt: TokenIds, sampling: Sampling, seed: int) -> GenerateReply:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            stop=list(sampling.stop),
            seed=seed if sampling.temperature else None,
        )
        output = await self._run(prompt, params)
        first = output.outputs[0]
        return GenerateReply(
            first.text,
            len(first.token_ids),
            str(first.finish_reason),
            len(prompt),
            output.num_cached_tokens or 0,
        )

    async def _run(self, prompt: TokenIds, params: Any) -> Any:
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.FINAL_ONLY
        self._count += 1
        final = None
        try:
            async for output in self.llm.generate({"prompt_token_ids": list(prompt)}, params, str(self._count)):
                final = output
        except ValueError as e:  # vLLM refuses the request, the engine lives
            raise EngineError(f"vLLM refused the request: {_one_line(e)}") from e
        if final is None:
            raise EngineError("vLLM ended a request without an answer")
        return final

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.llm.shutdown()


def engine_env(engine: EngineConfig, device: str) -> dict[str, str]:
    """Environment of the engine's processes; `engine.env` of the model file wins."""
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}
    env["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # what `tie_children` works on
    # Compiled kernels beside the models, where they outlive a container.
    env["VLLM_CACHE_ROOT"] = os.environ.get("VLLM_CACHE_ROOT") or str(home() / "vllm")
    if device == "cpu":
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(engine.kv_cache_gib))),
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            # Weights in 4 bit, activations in 8 only where the CPU has AMX: results would depend on the host.
            "VLLM_CPU_INT4_W4A8": "0",
        }
        if engine.enforce_eager is not False:
            # vLLM would compile one small function all the same: half a minute, and it takes a C++ compiler.
            env["TORCH_COMPILE_DISABLE"] = "1"
    return env | engine.env


def engine_args(config: ModelConfig, folder: Path, device: str) -> dict[str, Any]:
    """Keyword arguments for vLLM's AsyncEngineArgs."""
    engine = config.engine
    if device == "cuda":
        engine = with_preset(engine, engine.hardware or hardware("cuda"))
    chosen = {
        "quantization": config.quantization,
        "max_num_seqs": engine.max_num_seqs or (CPU_SEQUENCES if device == "cpu" else None),
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "enable_chunked_prefill": engine.enable_chunked_prefill,
        "kv_cache_dtype": engine.kv_cache_dtype if engine.kv_cache_dtype != "auto" else None,
        "block_size": engine.block_size if device == "cpu" else None,  # GPU kernels pick their own
        "enforce_eager": device == "cpu" if engine.enforce_eager is None else engine.enforce_eager,
        "gpu_memory_utilization": engine.gpu_memory_utilization if device == "cuda" else None,
    }
    return {
        "model": str(folder),
        "dtype": config.dtype,
        "max_model_len": config.context_length,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "trust_remote_code": config.trust_remote_code,
        "enable_prefix_caching": True,
        # Logits in the model's 16 bits are rounded to steps of up to 1/8: more than most margins between options.
        "hf_overrides": {"head_dtype": "float32"},
        "distributed_executor_backend": "uni" if engine.tensor_parallel_size == 1 else "mp",
    } | {key: value for key, value in chosen.items() if value is not None}


def _reply(logprobs: list[float], output: Any) -> ScoreReply:
    return ScoreReply(logprobs, len(output.prompt_token_ids), output.num_cached_tokens or 0)


def _finite(value: float) -> float:
    if math.isnan(value):
        raise EngineError("the model's output is not a number (NaN): the weights, the dtype or the kernel are at fault")
    return max(value, -1e4)  # an impossible token stays comparable and summable


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def is_dead(error: BaseException) -> bool:
    """Whether vLLM's engine process is gone, so that no later request can succeed."""
    return type(error).__name__ == "EngineDeadError"
