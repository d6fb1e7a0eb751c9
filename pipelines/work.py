"""What stage actors are given to do, and in which sequence."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ensemble.plan import Plan

ITEMS = 3  # for each stage actor at least, where the input is long enough: the last ones are then soon done
QUESTIONS = 16  # in an item at least


class Part(NamedTuple):
    """Some questions of a block. rows: which, in the order in which to answer them; None: all, the longest first.
    tasks: only these. share: (k, n) is every n-th of them from the k-th on."""

    block: str
    rows: list[int] | None = None
    tasks: list[str] | None = None
    share: tuple[int, int] = (0, 1)


def everything(plan: Plan, blocks: Sequence[str], missing: Counter[str], stages: int) -> list[list[Part]]:
    """Items of work for all that is missing: texts first, because one takes seconds; option scores fill the gaps that
    the last texts leave, and so no straggler ends the run."""
    scored = {task: all(member.scored for member in members) for task, members in plan.tasks.items()}
    kinds = [[task for task in scored if missing[task] and scored[task] == kind] for kind in (False, True)]
    return [
        [part]
        for kind in kinds
        if kind
        for block in blocks
        for part in shares(Part(block, tasks=list(kind)), len(blocks), sum(missing[task] for task in kind), stages)
    ]


def shares(part: Part, parts: int, questions: int, stages: int) -> list[Part]:
    """The part cut so that `parts` of its size, with so many questions in all, keep the stage actors at work."""
    n = max(1, min(-(-ITEMS * stages // parts), questions // (parts * QUESTIONS)))
    return [part._replace(share=(k, n)) for k in range(n)]
