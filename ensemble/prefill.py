"""Next-token scores straight from vLLM's engine core.

`AsyncLLM.generate` keeps a stream, a detokenizer, statistics and an output object for every request: most of the time
that its process spends on a request, and for small models more than the GPU takes. A score is one message to the core
and one row of numbers back. So scores go to the core by the client that `AsyncLLM` itself uses, and their replies are
taken out of its stream; all that it knows nothing of, it ignores. The core, its scheduler and its kernels are the same.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ensemble.errors import EngineError

SHARED_PARAMS = 1000  # sets of token ids whose parameters are kept


class Row(NamedTuple):
    """A request's reply: log-probability by token id, and prompt tokens out of the prefix cache."""

    logprobs: dict[int, float]
    cached: int


class _Group:
    """Requests that are waited for together."""

    def __init__(self, asked: list[int]) -> None:
        """asked: per request how many token ids."""
        self.asked = asked
        self.rows: list[Row | None] = [None] * len(asked)
        self.left = len(asked)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Prefills:
    """Scores of one `AsyncLLM`. Make it before the first request; use it in that one's event loop."""

    def __init__(self, llm: Any, context_length: int) -> None:
        """context_length: tokens of prompt and answer together."""
        self._llm, self._core, self._longest = llm, llm.engine_core, context_length - 1
        self._vocabulary: int = llm.vllm_config.model_config.get_vocab_size()
        self._groups: dict[str, tuple[_Group, int]] = {}
        self._params: dict[tuple[int, ...], Any] = {}
        self._count = 0
        self._next, self._core.get_output_async = self._core.get_output_async, self._outputs

    async def next_token(self, prompts: Sequence[Sequence[int]], asked: Sequence[Sequence[int]]) -> list[Row]:
        """Per prompt the log-probabilities of the asked token ids, and of the likeliest; sent in this sequence.

        Raises EngineError for a prompt that vLLM would refuse, and vLLM's EngineDeadError.
        """
        from vllm.v1.engine import EngineCoreRequest

        if not prompts:
            return []
        for prompt, ids in zip(prompts, asked, strict=True):
            self._check(prompt, ids)
        self._llm._run_output_handler()
        group, now = _Group([len(set(ids)) for ids in asked]), time.time()
        names = [f"prefill-{self._count + i}" for i in range(len(prompts))]
        self._count += len(names)
        self._groups |= {name: (group, i) for i, name in enumerate(names)}
        try:
            for name, prompt, ids in zip(names, prompts, asked, strict=True):
                request = EngineCoreRequest(
                    request_id=name, prompt_token_ids=list(prompt), mm_features=None,
                    sampling_params=self._sampling(ids), pooling_params=None, arrival_time=now, lora_request=None,
                    cache_salt=None, data_parallel_rank=None, external_req_id=name,
                )  # fmt: skip
                await self._core.add_request_async(request)
            await group.done
        except BaseException:  # nobody waits any more: the engine need not go on
            if left := [name for name in names if self._groups.pop(name, None)]:
                await self._core.abort_requests_async(left)
            raise
        return [row for row in group.rows if row is not None]

    def _check(self, prompt: Sequence[int], asked: Sequence[int]) -> None:
        if len(prompt) > self._longest:
            raise EngineError(f"a prompt of {len(prompt)} tokens is too long: {self._longest} fit the context length")
        if not all(0 <= min(ids) <= max(ids) < self._vocabulary for ids in (prompt, asked)):
            raise EngineError(
                f"a prompt or an option has token ids outside of the model's vocabulary of {self._vocabulary}: "
                "the tokenizer is not the model's"
            )

    def _sampling(self, ids: Sequence[int]) -> Any:
        """One object for all requests that ask for the same ids."""
        key = tuple(sorted(set(ids)))
        if key not in self._params:
            if len(self._params) >= SHARED_PARAMS:
                self._params.clear()
            from vllm import SamplingParams

            # Exactly these ids: a top-k list would lose the improbable letters.
            self._params[key] = SamplingParams(
                max_tokens=1, temperature=0.0, logprob_token_ids=list(key), detokenize=False
            )
        return self._params[key]

    async def _outputs(self) -> Any:
        """In place of the core client's own: its outputs without those of scores, which are settled here."""
        try:
            outputs = await self._next()
            if self._groups and outputs.outputs:
                outputs.outputs = [output for output in outputs.outputs if not self._settle(output)]
        except Exception as e:
            groups, self._groups = self._groups, {}
            for group, _ in groups.values():
                group.fail(e)
            raise
        return outputs

    def _settle(self, output: Any) -> bool:
        found = self._groups.get(output.request_id)
        if found is None:
            return False
        group, i = found
        if output.new_logprobs is not None:
            # The sampled token and those asked for; then, up to the longest list of the batch, vLLM's padding.
            used = 1 + group.asked[i]
            ids, values = output.new_logprobs[0][0][:used], output.new_logprobs[1][0][:used]
            stats = output.prefill_stats
            group.rows[i] = Row(
                dict(zip(ids.tolist(), values.tolist(), strict=True)), stats.num_cached_tokens if stats else 0
            )
        if output.finish_reason is not None:
            del self._groups[output.request_id]
            group.left -= 1
            if group.rows[i] is None:
                group.fail(EngineError(f"vLLM ended a request without an answer ({output.finish_reason})"))
            elif group.left == 0 and not group.done.done():
                group.done.set_result(None)
        return True
