"""What stage actors are given to do, and in which sequence."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ensemble.plan import Plan
from ensemble.records import Task

ITEMS = 3  # for each stage actor at least, where the input is long enough: the last ones are then soon done
QUESTIONS = 16  # in an item at least, unless that would leave a stage actor without any
CALLS = 6  # items that a stage actor works on at a time, at most


class Part(NamedTuple):
    """Some questions of a block. rows: which, in the order in which to answer them; None: all, the longest first.
    tasks: only these. share: (k, n) is every n-th of them from the k-th on."""

    block: str
    rows: list[int] | None = None
    tasks: list[str] | None = None
    share: tuple[int, int] = (0, 1)


def everything(plan: Plan, blocks: Sequence[str], missing: Counter[str], stages: int) -> list[list[Part]]:
    """Items of work for all that is missing, of blocks in any sequence, as inputs may be sorted by task.

    Where they are all under way at once they are alike, each with some of every task of its block. In a longer input,
    of what the same models answer, texts come first, because one takes seconds; option scores fill the gaps that the
    last texts leave, and so no straggler ends the run. What different models answer comes side by side.
    """
    blocks = random.Random(0).sample(blocks, len(blocks))

    def cut(tasks: Sequence[str]) -> list[Part]:
        parts = [Part(block, tasks=list(tasks)) for block in blocks]
        return shares(parts, sum(missing[task] for task in tasks), stages)

    tasks = [task for task in plan.tasks if missing[task]]
    alike = cut(tasks)
    if len(alike) <= CALLS * stages:
        return [[part] for part in alike]
    placed = []
    for group in _apart(plan, tasks):
        texts = [task for task in group if not all(member.scored for member in plan.tasks[task])]
        kinds = [texts, [task for task in group if task not in texts]]
        parts = [part for kind in kinds if kind for part in cut(kind)]
        placed += [((i + 0.5) / len(parts), part) for i, part in enumerate(parts)]
    return [[part] for _, part in sorted(placed, key=lambda place: place[0])]


def _apart(plan: Plan, tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks in groups that have no model in common."""
    found: list[tuple[set[str], list[Task]]] = []
    for task in tasks:
        models = {model for model in plan.models([task]) if plan.here is None or model in plan.here}
        same = [group for group in found if group[0] & models]
        found = [group for group in found if group not in same]
        found.append((models.union(*(m for m, _ in same)), [t for _, group in same for t in group] + [task]))
    return [group for _, group in found]


def shares(parts: Sequence[Part], questions: int, stages: int) -> list[Part]:
    """The parts, with so many questions in all and about as many in each, cut so that they keep the stage actors at
    work: where there are enough questions, a multiple of their number."""
    n = -(-max(ITEMS * stages, len(parts)) // stages) * stages
    n = max(len(parts), min(n, questions, max(1, questions // QUESTIONS // stages) * stages))
    each, more = divmod(n, len(parts)) if parts else (0, 0)
    counts = [each + (i < more) for i in range(len(parts))]
    return [part._replace(share=(k, m)) for part, m in zip(parts, counts, strict=True) for k in range(m)]


def calls(items: int, stages: int) -> int:
    """Of so many items (the preflight does not count) those that a stage actor works on at a time: no more than its
    share, because Ray Data hands as many as it may to the actor that is ready first."""
    return max(1, min(CALLS, -(-items // stages)))
