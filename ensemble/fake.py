"""A scripted engine: no model, the same verbs, stable numbers, and on demand a GPU's speed and a GPU's faults.

For unit tests, demos of failures, and clusters that are simulated without a GPU. Log-probabilities are a hash of the
token ids, so they are the same wherever and in whatever order they are asked. Time is the event loop's: under a loop
with a virtual clock (tests/simulation.py) hours pass in seconds.
"""

import asyncio
import hashlib
import heapq
import os
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from ensemble.config import Sampling
from ensemble.engine import GenerateReply, ScoreReply, ScoreRequest, TokenIds
from ensemble.errors import EngineError

BLOCK = 16  # tokens of a block of the prefix cache, as vLLM's GPU kernels take them
MOMENT = 1e-9  # seconds: the shortest step


class FakeEngine:
    """What it says: `text` is what it generates, of several texts the one that the seed picks.

    How fast, where options are given (see `_Server`): prefill_tokens_per_second; decode_tokens_per_second, of a full
    batch; decode_seconds_per_token, the shortest step; max_num_batched_tokens and max_num_seqs, as vLLM's. `speed`
    multiplies all rates: 0.5 is an engine at half speed. `seconds` is slept on each call besides, start_seconds in
    `start`. cache_tokens is the size of the simulated prefix cache.

    What goes wrong: a prompt with the token id `poison` or `nan_on` fails alone; at `hang_on` the engine never
    replies again, to nobody; at `die_on`, and at its request number `die_after`, its process ends as at a CUDA error.
    With `once`, the path of a marker file, the first of the engines that hangs or dies is the last to do so.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        poison: int | None = None,
        text: str | Sequence[str] = "The answer is 7.",
        prefill_tokens_per_second: float = inf,
        decode_tokens_per_second: float = inf,
        decode_seconds_per_token: float = 0.0,
        max_num_batched_tokens: int = 2048,
        max_num_seqs: int = 256,
        cache_tokens: int = 131_072,
        start_seconds: float = 0.0,
        speed: float = 1.0,
        nan_on: int | None = None,
        hang_on: int | None = None,
        die_on: int | None = None,
        die_after: int | None = None,
        once: str | None = None,
    ) -> None:
        self._seconds, self._start_seconds = seconds, start_seconds
        self._texts = [text] if isinstance(text, str) else text
        self._poison, self._nan_on, self._hang_on, self._die_on = poison, nan_on, hang_on, die_on
        self._die_after, self._once, self._hung = die_after, once, False
        self._cache = _PrefixCache(cache_tokens // BLOCK)
        timed = decode_seconds_per_token > 0 or min(prefill_tokens_per_second, decode_tokens_per_second) < inf
        self._server = _Server(
            1 / prefill_tokens_per_second / speed,
            1 / decode_tokens_per_second / speed,
            decode_seconds_per_token / speed,
            max_num_batched_tokens,
            max_num_seqs,
        )
        self._timed = timed
        self.calls = self.requests = self.prompt_tokens = self.cached_tokens = self.output_tokens = 0

    @property
    def busy_seconds(self) -> float:
        """Compute used so far; beside the time that passed, the share in which the engine was busy."""
        return self._server.busy()

    async def start(self) -> None:
        """Takes as long as loading a model would."""
        await asyncio.sleep(self._start_seconds)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        cached = [self._admit(r.prompt) for r in requests]
        # A continuation's last token need not be read; what stands before it is not in the cache.
        further = sum(len(c) - 1 for r in requests for c in r.continuations)
        computed = sum(len(r.prompt) for r in requests) - sum(cached) + further
        await self._work([r.prompt for r in requests], computed, 0)
        return [
            ScoreReply(_pseudo_logprobs(r.prompt, r.continuations), len(r.prompt), hits)
            for r, hits in zip(requests, cached, strict=True)
        ]

    async def generate(self, prompt: TokenIds, sampling: Sampling, seed: int) -> GenerateReply:
        text = self._texts[seed % len(self._texts)]
        cached, tokens = self._admit(prompt), len(text.split())
        await self._work([prompt], len(prompt) - cached, tokens)
        self.output_tokens += tokens
        return GenerateReply(text, tokens, "stop", len(prompt), cached)

    def _admit(self, prompt: TokenIds) -> int:
        """Tokens of the prompt that the cache has, in order of arrival."""
        cached = self._cache.admit(prompt)
        self.requests += 1
        self.prompt_tokens += len(prompt)
        self.cached_tokens += cached
        return cached

    async def _work(self, prompts: Sequence[TokenIds], computed: int, generated: int) -> None:
        self.calls += 1
        await self._fail(prompts)
        await asyncio.sleep(self._seconds)
        if self._timed:
            await self._server.run(computed, generated)
        if self._hung:
            await asyncio.get_running_loop().create_future()
        if _any_has(prompts, self._poison):
            raise EngineError(f"the scripted engine fails on token {self._poison}")
        if _any_has(prompts, self._nan_on):
            raise EngineError("the model's output is not a number (NaN): the scripted engine was told to say so")

    async def _fail(self, prompts: Sequence[TokenIds]) -> None:
        """The faults that take the whole engine along."""
        late = self._die_after is not None and self.requests >= self._die_after
        if (late or _any_has(prompts, self._die_on)) and self._first_time():
            os._exit(1)
        if _any_has(prompts, self._hang_on) and self._first_time():
            self._hung = True

    def _first_time(self) -> bool:
        if self._once is None:
            return True
        try:
            os.close(os.open(self._once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        pass


@dataclass(slots=True, eq=False)
class _Sequence:
    """left: tokens of the prompt that are still to be read; tokens: to write afterwards."""

    left: int
    tokens: int
    done: "asyncio.Future[None]"


class _Server:
    """The time that one engine takes: vLLM's continuous batching with chunked prefill, step by step.

    A step reads up to `batch` tokens: one of each text that is being written, the rest of prompts in order of arrival.
    It takes `prefill` seconds for each token of a prompt and `decode` for each text, but at least `latency` seconds in
    all: the time to load the weights. A text begins once its prompt is read and gets a token a step; while `slots` are
    being written no prompt is begun. So the compute that a step uses is its share of all there is to do, and some is
    idle only where a step is shorter than its latency. Left out: memory of the KV cache, and that attention costs more
    the longer a text is.
    """

    def __init__(self, prefill: float, decode: float, latency: float, batch: int, slots: int) -> None:
        self._prefill, self._decode, self._latency, self._batch, self._slots = prefill, decode, latency, batch, slots
        self._waiting: deque[_Sequence] = deque()
        self._writing: list[tuple[int, int, _Sequence]] = []  # heap by the last step of each
        self._steps = 0  # that have ended
        self._begun, self._seconds, self._work = 0.0, 0.0, 0.0  # the step under way: since when, how long, its compute
        self._busy = 0.0  # compute of all before

    async def run(self, prompt_tokens: int, tokens: int) -> None:
        """Returns when a sequence with so many uncached prompt tokens and tokens to write is done."""
        sequence = _Sequence(prompt_tokens, tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(sequence)
        if not self._seconds:
            self._step()
        await sequence.done

    def busy(self) -> float:
        """Seconds of compute that were used so far."""
        if not self._seconds:
            return self._busy
        return self._busy + self._work * (asyncio.get_running_loop().time() - self._begun) / self._seconds

    def _step(self) -> None:
        """Begins the next step, if there is anything to do."""
        loop = asyncio.get_running_loop()
        read, finished = self._read()
        self._work = read * self._prefill + len(self._writing) * self._decode
        busy = bool(finished or read or self._writing)
        self._begun, self._seconds = loop.time(), max(self._work, self._latency, MOMENT) if busy else 0.0
        if busy:
            loop.call_at(self._begun + self._seconds, self._end, finished)

    def _read(self) -> tuple[int, list[_Sequence]]:
        """Tokens of prompts in the next step, and the sequences whose prompts end in it."""
        room = self._batch - len(self._writing)
        finished: list[_Sequence] = []
        read = 0
        while self._waiting and read < room and len(self._writing) + len(finished) < self._slots:
            first = self._waiting[0]
            now = min(first.left, room - read) if not first.done.done() else 0  # whoever asked may have gone
            first.left -= now
            read += now
            if now and first.left:
                break
            finished.append(self._waiting.popleft())
        return read, finished

    def _end(self, finished: Sequence[_Sequence]) -> None:
        self._steps += 1
        self._busy += self._work
        while self._writing and self._writing[0][0] <= self._steps:
            _finish(heapq.heappop(self._writing)[2].done)
        for sequence in finished:
            if sequence.tokens and not sequence.done.done():
                heapq.heappush(self._writing, (self._steps + sequence.tokens, id(sequence), sequence))
            else:
                _finish(sequence.done)
        self._step()


class _PrefixCache:
    """Which blocks of tokens were seen, each with all that stood before it; the least recently used go first."""

    def __init__(self, blocks: int) -> None:
        self._size = blocks
        self._known: OrderedDict[int, None] = OrderedDict()

    def admit(self, prompt: TokenIds) -> int:
        """Leading tokens that are known; the prompt is known from then on. Its last token is always computed."""
        known, hits, hit, key = self._known, 0, True, 0
        last = (len(prompt) - 1) // BLOCK
        for i in range(len(prompt) // BLOCK):
            key = hash((key, *prompt[i * BLOCK : (i + 1) * BLOCK]))
            if key in known:
                known.move_to_end(key)
                hits += hit and i < last
            else:
                hit = False
                known[key] = None
        while len(known) > self._size:
            known.popitem(last=False)
        return hits * BLOCK


def _finish(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def _any_has(prompts: Sequence[TokenIds], token: int | None) -> bool:
    return token is not None and any(token in prompt for prompt in prompts)


def pseudo_logprob(prompt: TokenIds, continuation: TokenIds) -> float:
    """A number in (-4, 0) for each token, summed; a pure function of the token ids."""
    return _pseudo_logprobs(prompt, [continuation])[0]


def _pseudo_logprobs(prompt: TokenIds, continuations: Sequence[TokenIds]) -> list[float]:
    start = hashlib.blake2b(",".join(map(str, [*prompt, -1])).encode(), digest_size=4)
    totals = []
    for continuation in continuations:
        total, digest = 0.0, start.copy()
        for token in continuation:
            digest.update(f",{token}".encode())
            total -= int.from_bytes(digest.digest(), "big") / 2**30
        totals.append(total)
    return totals
