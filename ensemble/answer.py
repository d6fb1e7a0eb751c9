"""One question, from asking to decision: the loop that batch and serve share."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ensemble.config import Letter, Member
from ensemble.engine import Engine, ScoreRequest
from ensemble.prompts import ChoicePrompt, Prompter
from ensemble.records import Decision, PromptFacts, Question, Sample, Score
from ensemble.votes import Ask, Evidence, Voter, merge

Record = Callable[[int, Question, Score | Sample], None]  # member index, question, what an engine said


class Asker:
    """One member: turns what a voter asks for into requests to its engine."""

    def __init__(self, member: Member, prompter: Prompter, engine: Engine, seed: int) -> None:
        """seed: `ensemble.plan.sample_seed`."""
        self._member, self._prompter, self._engine, self._seed = member, prompter, engine, seed

    async def __call__(self, question: Question, ask: Ask) -> Score | Sample:
        if not ask.orders and not ask.unconditional:
            return await self._generate(question)
        return await self._score(question, ask)

    async def _score(self, question: Question, ask: Ask) -> Score:
        if isinstance(self._member.scoring, Letter):
            prompts = [self._prompter.letters(question, order) for order in ask.orders]
        else:
            prompts = [self._prompter.cloze(question) for _ in ask.orders]
        bare = [self._prompter.unconditional(question)] if ask.unconditional else []
        replies = await self._engine.score([ScoreRequest(p.prompt, p.continuations) for p in prompts + bare])
        n = len(question.choices)
        values = [reply.logprobs for reply in replies]
        first: ChoicePrompt | None = prompts[0] if prompts else None
        return Score(
            orders=ask.orders,
            logprobs=np.array(values[: len(prompts)], dtype=np.float32).reshape(len(prompts), n),
            tokens=np.array([len(c) for c in first.continuations] if first else [0] * n, dtype=np.int32),
            unconditional=np.array(values[-1], dtype=np.float32) if bare else None,
            prompt=first.facts if first else PromptFacts(),
        )

    async def _generate(self, question: Question) -> Sample:
        prompt = self._prompter.text(question)
        sampling = self._member.sampling
        reply = await self._engine.generate(prompt.ids, sampling, request_seed(self._seed, question))
        return Sample(
            text=reply.text.strip(),
            tokens=reply.tokens,
            finish=reply.finish,
            seed=self._seed,
            index=0,
            prompt=prompt.facts,
        )


def request_seed(seed: int, question: Question) -> int:
    """A question's own seed, so that its samples do not depend on its place in the input; below 2**31."""
    return (int.from_bytes(question.hash[:4], "big") ^ seed) & 0x7FFFFFFF


async def answer(
    question: Question, voter: Voter, askers: Sequence[Any], evidence: Sequence[Evidence], record: Record
) -> Decision:
    """Ask until the voter decides. `record` gets each reply before it is used: what was paid for is kept."""
    known = list(evidence)

    async def put(ask: Ask) -> None:
        reply = await askers[ask.member](question, ask)
        record(ask.member, question, reply)
        known[ask.member] = merge(known[ask.member], reply) if isinstance(reply, Score) else reply

    while isinstance(step := voter.next(question, known), list):
        results = await asyncio.gather(*map(put, step), return_exceptions=True)  # the others' replies are kept
        for error in results:
            if error is not None:
                raise error
    return step
