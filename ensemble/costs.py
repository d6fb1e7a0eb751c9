"""What a plan will cost, from a few questions: prompts and tokens for people, work of each model for the placement."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ensemble import memory
from ensemble.config import Letter
from ensemble.errors import UnaskableError
from ensemble.orders import count_orders
from ensemble.placement import Need
from ensemble.plan import Plan, PlannedMember
from ensemble.read import iter_blocks
from ensemble.records import Question, Task
from ensemble.render import Renderer

SAMPLE = 50  # questions of a task
# A generated token takes as long as so many prompt tokens: by published bandwidths and FLOP/s of L4 and H200, a 7B
# model's decoding is 3 to 5 times as slow as its prefill where the batch fills the KV cache.
GENERATED = 4.0
ADAPTIVE = 0.25  # of the reference's prompts, a fifth to a third: docs/votes.md


class Cost(NamedTuple):
    """prompts, and tokens in them: what is sent, at most. work: in prompt tokens that an engine has to compute."""

    prompts: float
    tokens: float
    work: float


def needs(plan: Plan, blocks: Sequence[str], missing: Mapping[str, int]) -> list[Need]:
    """The models that the missing questions (per task) ask, in the config's order, with the work of each."""
    asked = [task for task, n in missing.items() if n]
    found = samples(plan, blocks, missing)
    work = dict.fromkeys(plan.models(asked), 0.0)
    for task in (task for task in plan.tasks if task in asked):
        for planned in (planned for planned in plan.tasks[task] if planned.samples is None):
            work[planned.member.model] += cost(plan, task, planned, found[task], missing[task]).work
    return [_need(plan, model, tokens) for model, tokens in work.items()]


def _need(plan: Plan, model: str, tokens: float) -> Need:
    config = plan.config.models[model]
    known = memory.needs(config)
    billions = known.parameters / 1e9 if known else 1.0
    gpus = config.engine.tensor_parallel_size if plan.devices[model] == "cuda" else 0
    return Need(model, gpus, config.engine.replicas, tokens * billions)


def cost(plan: Plan, task: Task, planned: PlannedMember, sample: Sequence[Question], questions: int) -> Cost:
    """Of so many questions, by what the member would send for a sample of them; nothing for a file of samples."""
    total = Cost(0.0, 0.0, 0.0)
    if planned.samples is not None:
        return total
    member = planned.member
    renderer = Renderer(member.template, plan.config.templates[member.template], "label")
    for question in sample:
        try:
            one = _of_question(plan, task, planned, renderer, question)
        except UnaskableError:  # will be an error of its own
            continue
        total = Cost(*(a + b for a, b in zip(total, one, strict=True)))
    share = questions / max(len(sample), 1)
    return Cost(*(value * share for value in total))


def _of_question(plan: Plan, task: Task, planned: PlannedMember, renderer: Renderer, question: Question) -> Cost:
    """Prompts of one question share what stands before its options: an engine computes that once."""
    member, scoring = planned.member, planned.member.scoring
    text = _prompt(renderer, question, tuple(range(len(question.choices))))
    whole = estimated_tokens(text)
    length = min(whole, plan.config.models[member.model].context_length)
    if isinstance(scoring, Letter):
        n = expected_orders(plan, task, scoring, len(question.choices))
        other = _prompt(renderer, question, (*range(1, len(question.choices)), 0))
        computed = length + (n - 1) * min(length, whole - estimated_tokens(_common_start(text, other)))
        return Cost(n, n * length, computed * (ADAPTIVE if scoring.orders == "adaptive" else 1))
    if scoring is not None and scoring.method == "cloze":
        options = len(question.choices)
        return Cost(options, options * length, length + sum(map(estimated_tokens, question.choices)))
    samples = member.sampling.samples
    return Cost(samples, samples * length, length + samples * GENERATED * member.sampling.max_tokens)


def _prompt(renderer: Renderer, question: Question, order: tuple[int, ...]) -> str:
    turns = renderer.turns(question, order, question.text, question.context, renderer.n_shots)
    return "".join(text for _, text in turns)


def _common_start(one: str, other: str) -> str:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return one[:i]
    return one


def expected_orders(plan: Plan, task: Task, scoring: Letter, n: int) -> float:
    """Per question with n options; of adaptive voting the most, of PriDe with its sample's share of the cycle."""
    if scoring.orders == "adaptive":
        return count_orders(plan.config.tasks[task].adaptive.reference, n)
    orders = count_orders(scoring.orders, n)
    sampled = scoring.prior_share if scoring.debias == "pride" and scoring.prior is None else 0.0
    return orders + sampled * max(n - orders, 0)


def estimated_tokens(text: str) -> int:
    """About 4 ASCII characters a token, and one token for each other character; only the plan relies on it."""
    ascii_characters = sum(c.isascii() for c in text)
    return ascii_characters // 4 + len(text) - ascii_characters


def samples(plan: Plan, blocks: Sequence[str], missing: Mapping[str, int]) -> dict[str, list[Question]]:
    """Up to SAMPLE questions of each task, from the first blocks; no more blocks than the missing ones need."""
    found: dict[str, list[Question]] = {task: [] for task in plan.tasks}
    wanted = {task: min(SAMPLE, n) for task, n in missing.items() if task in found}
    for block in iter_blocks(blocks):
        for question in block:
            if question.task in found and len(found[question.task]) < SAMPLE:
                found[question.task].append(question)
        if all(len(found[task]) >= n for task, n in wanted.items()):
            break
    return found
