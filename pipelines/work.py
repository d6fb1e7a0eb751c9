"""What stage actors are given to do, and in which sequence."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ensemble.plan import Plan
from ensemble.read import GOLDEN
from ensemble.records import Task
from pipelines.missing import per_task

ITEMS = 3  # for each stage actor at least, where the input is long enough: the last ones are then soon done
QUESTIONS = 16, 512  # in an item: at least, unless that would leave a stage actor without any, and at most
BLOCKS = 2  # that an item has on average, at most, unless of each block little is missing
CALLS = 6  # items that a stage actor works on at a time, at most


class Part(NamedTuple):
    """Some questions of a block. rows: which, in the order in which to answer them; None: all, the longest first.
    tasks: only these. share: of them those with a place from its first number on and before its second one, in
    [0, 1), over which `places` spreads them evenly."""

    block: str
    rows: list[int] | None = None
    tasks: list[str] | None = None
    share: tuple[float, float] = (0.0, 1.0)


def places(n: int) -> list[float]:
    """Of n questions, in the order in which to answer them: every interval gets its share, early and late ones."""
    return [i * GOLDEN % 1 for i in range(n)]


def everything(plan: Plan, blocks: Mapping[str, Mapping[str, int]], stages: int) -> list[list[Part]]:
    """Items of work for all that is missing. blocks: by path, each with what is missing there of each task.

    Where they are all under way at once they are alike, each with some of every task of its blocks. In a longer input,
    of what the same models answer, texts come first, because one takes seconds; option scores fill the gaps that the
    last texts leave, and so no straggler ends the run. What different models answer comes side by side. Blocks come in
    a drawn sequence, as inputs may be sorted by task.
    """
    drawn = random.Random(0).sample(list(blocks), len(blocks))

    def cut(tasks: Sequence[str]) -> list[list[Part]]:
        parts = [(Part(b, tasks=list(tasks)), sum(blocks[b].get(task, 0) for task in tasks)) for b in drawn]
        return shares([part for part in parts if part[1]], stages)

    missing = per_task(blocks.values())
    tasks = [task for task in plan.tasks if missing[task]]
    alike = cut(tasks)
    if len(alike) <= CALLS * stages:
        return alike
    placed = []
    for group in _apart(plan, tasks):
        texts = [task for task in group if not all(member.scored for member in plan.tasks[task])]
        kinds = [texts, [task for task in group if task not in texts]]
        items = [item for kind in kinds if kind for item in cut(kind)]
        placed += [((i + 0.5) / len(items), item) for i, item in enumerate(items)]
    return [item for _, item in sorted(placed, key=lambda place: place[0])]


def _apart(plan: Plan, tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks in groups that have no model in common."""
    found: list[tuple[set[str], list[Task]]] = []
    for task in tasks:
        models = {model for model in plan.models([task]) if plan.here is None or model in plan.here}
        same = [group for group in found if group[0] & models]
        found = [group for group in found if group not in same]
        found.append((models.union(*(m for m, _ in same)), [t for _, group in same for t in group] + [task]))
    return [group for _, group in found]


def shares(parts: Sequence[tuple[Part, int]], stages: int) -> list[list[Part]]:
    """The parts, each with how many of its questions are missing, put together and cut into items of one size, which
    keep the stage actors at work: where there are enough questions, as many for each actor."""
    questions, before = sum(count for _, count in parts), 0
    n = items_of(questions, stages, len(parts))
    items: list[list[Part]] = [[] for _ in range(n)]
    for part, count in parts:
        for i in range(before * n // questions, -(-(before + count) * n // questions)):
            share = max(0.0, (i * questions / n - before) / count), min(1.0, ((i + 1) * questions / n - before) / count)
            items[i].append(part._replace(share=share))
        before += count
    return items


def items_of(questions: int, stages: int, blocks: int = 1) -> int:
    """How many items are made of so many questions out of so many blocks."""
    fewest, most = QUESTIONS
    wanted = max(ITEMS, -(-questions // (most * stages)), -(-blocks // (BLOCKS * stages)))  # for each actor
    return min(stages * min(wanted, max(1, questions // (fewest * stages))), questions)


def calls(items: int, stages: int) -> int:
    """Of so many items (the preflight does not count) those that a stage actor works on at a time: no more than its
    share, because Ray Data hands as many as it may to the actor that is ready first."""
    return max(1, min(CALLS, -(-items // stages)))
