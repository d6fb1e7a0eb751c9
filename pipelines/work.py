"""What stage actors are given to do, and in which sequence."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ensemble.plan import Plan

ITEMS = 4  # into so many a stage actor's share of what is left is cut, at least: the last ones are soon done
QUESTIONS = 8  # in an item at least


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
        for part in shares(
            [Part(block, tasks=list(kind)) for block in blocks], sum(missing[task] for task in kind), stages
        )
    ]


def shares(parts: Sequence[Part], questions: int, stages: int) -> list[Part]:
    """The parts, with so many questions in all and about as many in each, cut ever finer towards the end: guided
    self-scheduling (Polychronopoulos and Kuck 1987), with which stage actors that take one after another end together.
    """
    found = []
    for i, part in enumerate(parts):
        left = len(parts) - i  # this one and those that follow
        n = max(1, min(-(-ITEMS * stages // left), questions // (len(parts) * QUESTIONS)))
        found += [part._replace(share=(k, n)) for k in range(n)]
    return found
