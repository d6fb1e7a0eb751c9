"""A scripted engine for unit tests, dry demos of failure and planning: no model, the same verbs, stable numbers.

Log-probabilities are a hash of the token ids, so they are the same wherever and in whatever order they are asked.
"""

import asyncio
import hashlib
from collections.abc import Sequence

from ensemble.config import Sampling
from ensemble.engine import GenerateReply, ScoreReply, ScoreRequest, TokenIds
from ensemble.errors import EngineError


class FakeEngine:
    """`seconds` is slept on each call; prompts that contain the token id `poison` fail; `text` is what it generates,
    of several texts the one that the seed picks."""

    def __init__(
        self, seconds: float = 0.0, poison: int | None = None, text: str | Sequence[str] = "The answer is 7."
    ) -> None:
        self._seconds, self._poison, self._texts = seconds, poison, [text] if isinstance(text, str) else text
        self.calls = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        await self._work(*(r.prompt for r in requests))
        return [ScoreReply([pseudo_logprob(r.prompt, c) for c in r.continuations], len(r.prompt), 0) for r in requests]

    async def generate(self, prompt: TokenIds, sampling: Sampling, seed: int) -> GenerateReply:
        await self._work(prompt)
        text = self._texts[seed % len(self._texts)]
        return GenerateReply(text, len(text.split()), "stop", len(prompt), 0)

    async def _work(self, *prompts: TokenIds) -> None:
        self.calls += 1
        await asyncio.sleep(self._seconds)
        if self._poison is not None and any(self._poison in prompt for prompt in prompts):
            raise EngineError(f"the scripted engine fails on token {self._poison}")

    def close(self) -> None:
        pass


def pseudo_logprob(prompt: TokenIds, continuation: TokenIds) -> float:
    """A number in (-4, 0) for each token, summed; a pure function of the token ids."""
    total = 0.0
    digest = hashlib.blake2b(",".join(map(str, [*prompt, -1])).encode(), digest_size=4)
    for token in continuation:
        digest.update(f",{token}".encode())
        total -= int.from_bytes(digest.digest(), "big") / 2**30
    return total
