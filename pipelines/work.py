"""What stage actors are given to do, and in which sequence."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ensemble.plan import Plan

ITEMS = 3  # for each stage actor at least, where the input is long enough: the last ones are then soon done
QUESTIONS = 16  # of a kind in an item at least
CALLS = 6  # items that a stage actor works on at a time, at most


class Part(NamedTuple):
    """Some questions of a block. rows: which, in the order in which to answer them; None: all, the longest first.
    tasks: only these. share: (k, n) is every n-th of them from the k-th on."""

    block: str
    rows: list[int] | None = None
    tasks: list[str] | None = None
    share: tuple[int, int] = (0, 1)


def everything(plan: Plan, blocks: Sequence[str], missing: Counter[str], stages: int) -> list[list[Part]]:
    """Items of work for all that is missing.

    Where they are all under way at once they are alike, each with a share of everything. In a longer input, of what the
    same models answer, texts come first, because one takes seconds; option scores fill the gaps that the last texts
    leave, and so no straggler ends the run. What different models answer comes side by side.
    """

    def cut(tasks: Sequence[str]) -> list[Part]:
        total = sum(missing[task] for task in tasks)
        return [part for block in blocks for part in shares(Part(block, tasks=list(tasks)), len(blocks), total, stages)]

    tasks = [task for task in plan.tasks if missing[task]]
    alike = cut(tasks)
    if len(alike) <= CALLS * stages:
        return [[part] for part in alike]
    kinds: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for task in tasks:
        scored = all(member.scored for member in plan.tasks[task])
        kinds.setdefault((tuple(plan.models([task])), scored), []).append(task)
    found: dict[tuple[str, ...], list[Part]] = {}
    for models, scored in sorted(kinds, key=lambda kind: kind[1]):
        found.setdefault(models, []).extend(cut(kinds[models, scored]))
    placed = [((i + 0.5) / len(parts), part) for parts in found.values() for i, part in enumerate(parts)]
    return [[part] for _, part in sorted(placed, key=lambda place: place[0])]


def shares(part: Part, parts: int, questions: int, stages: int) -> list[Part]:
    """The part cut so that `parts` of its size, with so many questions in all, keep the stage actors at work."""
    n = max(1, min(-(-ITEMS * stages // parts), questions // (parts * QUESTIONS)))
    return [part._replace(share=(k, n)) for k in range(n)]


def calls(items: int, stages: int) -> int:
    """Of so many items those that a stage actor works on at a time: no more than its share, because Ray Data hands as
    many as it may to the actor that is ready first."""
    return max(1, min(CALLS, -(-items // stages)))
