"""One question, from asking to decision: the loop that batch and serve share."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from ensemble.config import Letter, Member
from ensemble.engine import Engine, ScoreRequest
from ensemble.evidence import Evidence, merge
from ensemble.prompts import ChoicePrompt, Prompt, Prompter
from ensemble.records import NO_PROMPT, Decision, Question, Sample, Score
from ensemble.votes import Ask, Voter

Keep = Callable[[Score | Sample], None]
Record = Callable[[int, Question, Score | Sample], None]  # member index, question, what an engine said


class Asker:
    """One member: turns what a voter asks for into requests to its engine."""

    def __init__(self, member: Member, prompter: Prompter, engine: Engine, seed: int) -> None:
        """seed: `ensemble.plan.sample_seed`."""
        self._member, self._prompter, self._engine, self._seed = member, prompter, engine, seed

    async def __call__(self, question: Question, ask: Ask, keep: Keep) -> None:
        """Each reply goes to `keep` when it comes in."""
        if ask.samples:
            prompt = self._prompter.text(question)
            await together(self._generate(question, prompt, index, keep) for index in ask.samples)
        else:
            keep(await self._score(question, ask))

    async def _score(self, question: Question, ask: Ask) -> Score:
        orders = tuple(sorted(ask.orders))  # those that begin alike one after another: they share a prefix in the cache
        if isinstance(self._member.scoring, Letter):
            prompts = [self._prompter.letters(question, order) for order in orders]
        else:
            prompts = [self._prompter.cloze(question) for _ in orders]
        bare = [self._prompter.unconditional(question)] if ask.unconditional else []
        replies = await self._engine.score([ScoreRequest(p.prompt, p.continuations) for p in prompts + bare])
        n = len(question.choices)
        values = [reply.logprobs for reply in replies]
        first: ChoicePrompt | None = prompts[0] if prompts else None
        return Score(
            orders=orders,
            logprobs=np.array(values[: len(prompts)], dtype=np.float32).reshape(len(prompts), n),
            tokens=np.array([len(c) for c in first.continuations] if first else [0] * n, dtype=np.int32),
            unconditional=np.array(values[-1], dtype=np.float32) if bare else None,
            prompt=first.facts if first else NO_PROMPT,
        )

    async def _generate(self, question: Question, prompt: Prompt, index: int, keep: Keep) -> None:
        seed = request_seed(self._seed, question, index)
        reply = await self._engine.generate(prompt.ids, self._member.sampling, seed)
        keep(Sample(reply.text.strip(), reply.tokens, reply.finish, self._seed, index, prompt.facts))


def request_seed(seed: int, question: Question, index: int = 0) -> int:
    """A seed for each text of a question, so that it does not depend on its place in the input; below 2**31."""
    own = int.from_bytes(question.hash[:4], "big") ^ seed
    return (own + index * 0x9E3779B1) & 0x7FFFFFFF  # an odd step: the indices of a question never meet


async def answer(
    question: Question,
    voter: Voter,
    askers: Sequence[Asker | None],
    evidence: Sequence[Evidence],
    record: Record,
    first: bool = False,
) -> Decision:
    """Ask until the voter decides; `first`: only until a decision is possible.

    `record` gets each reply before it is used: what was paid for is kept, also where another reply fails.
    """
    known = list(evidence)

    async def put(ask: Ask) -> None:
        def keep(reply: Score | Sample) -> None:
            record(ask.member, question, reply)
            known[ask.member] = merge(known[ask.member], reply)

        asker = askers[ask.member]
        assert asker is not None, "the voter names only members that can be asked"
        await asker(question, ask, keep)

    if first:
        await together(map(put, voter.first(question, known)))
        decision = voter.best(question, known)
        assert decision is not None
        return decision
    while isinstance(step := voter.next(question, known), list):
        await together(map(put, step))
    return step


async def together(calls: Any) -> None:
    """Waits for all, then raises the first error: the others' replies are kept."""
    waiting: list[Awaitable[None]] = list(calls)
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        if error is not None:
            raise error
