"""What a run lacks in the store."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from ensemble.records import Question


class Missing:
    """The questions that the store lacks. tasks: per task. blocks: of each block per task."""

    def __init__(self, by_block: Sequence[Mapping[str, int]]) -> None:
        """by_block: all questions, as in `InputSummary`."""
        self._all = by_block
        self._ends = list(accumulate(sum(counts.values()) for counts in by_block))
        self.tasks: Counter[str] = Counter()
        self.blocks: list[Counter[str]] = [Counter() for _ in by_block]

    def add(self, question: Question) -> None:
        self.tasks[question.task] += 1
        self.blocks[bisect_right(self._ends, question.row_index)][question.task] += 1

    def add_all(self) -> None:
        """Where the store has nothing."""
        self.blocks = [Counter(counts) for counts in self._all]
        self.tasks = per_task(self.blocks)


def per_task(blocks: Iterable[Mapping[str, int]]) -> Counter[str]:
    """The counts of blocks together."""
    tasks: Counter[str] = Counter()
    for counts in blocks:
        tasks.update(counts)
    return tasks
