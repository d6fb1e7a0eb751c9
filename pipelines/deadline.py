"""Deadline mode: what to do first so that a submission is complete early and gets better until time is up.

Every question is answered once by the cheapest part of its plan. What the plan wants beyond that (orders, members,
samples) follows by falling promise: the doubt about the answer, divided by the prompts that the rest takes.
"""

import argparse
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ensemble.known import Evidences
from ensemble.outputs import Written
from ensemble.plan import Plan
from ensemble.read import iter_blocks
from pipelines.work import QUESTIONS, Part, items_of

WAVES = 20  # of questions of similar promise; within a wave they go block by block
SAVE_SECONDS = 30.0  # between two intermediate submissions, at least
SAVE_SHARE = 0.05  # of the time may go into writing them
# To write a question's results: its vote, grade and lines; texts are compared with gold and with each other.
WRITING_SECONDS = {"multiple_choice": 0.0003, "math": 0.0005, "generation": 0.001, "summarization": 0.004}
RESERVE_SECONDS = 12.0  # to stop the engines and draw the report on a busy machine, besides the time of writing results


@dataclass
class Deadline:
    """ends: epoch seconds at which the process is to be done. writing: seconds that writing the results takes, an
    estimate until they were first written in full."""

    seconds: float
    ends: float
    writing: float

    @staticmethod
    def of(seconds: float, started: float, rows: Mapping[str, int]) -> "Deadline":
        """For a run that started at `started` (epoch seconds), with its questions per task."""
        return Deadline(seconds, started + seconds, sum(n * WRITING_SECONDS[task] for task, n in rows.items()))

    @property
    def until(self) -> float:
        """When asking stops, so that the rest of the run fits in."""
        return self.ends - 1.5 * self.writing - RESERVE_SECONDS

    def unreached(self) -> tuple[str, str]:
        """The error of a question that was not answered in time."""
        return "DeadlineError", f"not reached within {self.seconds:g} s; another run on this store goes on from there"

    def kept(self, written: Written, now: float) -> dict[str, object]:
        """What the deadline left out, for the manifest."""
        return {
            "seconds": self.seconds,
            "seconds_left": round(self.ends - now, 1),
            "answered_in_full": written.answered.total() - written.partial,
            "answered_in_part": written.partial,
            "not_reached": sum(error.type == "DeadlineError" for error in written.failed),
        }


def seconds(text: str) -> float:
    """`90`, `90s`, `45m`, `2h` or `1h30m` in seconds, for argparse."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    total = sum(float(n) * unit for n, unit in zip(match.groups(), (3600, 60, 1), strict=True) if n) if match else 0
    if total <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time span: write 2h, 45m, 1h30m or 90 (seconds)")
    return float(total)


class Item(NamedTuple):
    """Work for a stage actor at one time; `tasks` counts its questions."""

    parts: list[Part]
    tasks: Counter[str]


def by_promise(plan: Plan, store: Path, blocks: Sequence[str], stages: int) -> list[Item]:
    """What is still missing of questions that have an answer, the most promising first, for so many stage actors."""
    rows: list[tuple[int, int, str]] = []  # block, row_index, task
    promises: list[float] = []
    evidences, voters = Evidences(plan, store), {task: plan.voter(task) for task in plan.tasks}
    for number, block in enumerate(iter_blocks(blocks)):
        for question, evidence in evidences(block):
            voter = voters[question.task]
            decision = voter.best(question, evidence)
            prompts = sum(ask.prompts for ask in voter.missing(question, evidence))
            if prompts and decision is not None:
                doubt = 0.5 if decision.confidence is None else 1 - decision.confidence
                promises.append(doubt / prompts)
                rows.append((number, question.row_index, question.task))
    ranked = np.argsort(-np.array(promises), kind="stable")
    size = -(-len(ranked) // max(1, items_of(len(ranked), stages)))
    items = []
    for wave in np.array_split(ranked, max(1, min(WAVES, len(ranked) // QUESTIONS[1]))):
        inside = [rows[i] for i in sorted(wave.tolist(), key=lambda i: rows[i][0])]  # of a block in falling promise
        for start in range(0, len(inside), size):
            piece = inside[start : start + size]
            numbers = dict.fromkeys(number for number, _, _ in piece)
            parts = [Part(blocks[number], [row for n, row, _ in piece if n == number]) for number in numbers]
            items.append(Item(parts, Counter(task for _, _, task in piece)))
    return items


class Saver:
    """While open, a thread calls `save` now and then, so that what was reached is on disk as a submission."""

    def __init__(self, save: Callable[[], object], deadline: Deadline, warn: Callable[[str], None]) -> None:
        """warn: told of a save that failed; the next one may succeed."""
        self._save, self._deadline, self._warn = save, deadline, warn
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(max(SAVE_SECONDS, self._deadline.writing / SAVE_SHARE)):
            started = time.time()
            if started + self._deadline.writing > self._deadline.until:
                return  # the last results are about to be written anyway
            try:
                self._save()
            except Exception as e:
                self._warn(f"an intermediate submission could not be written: {' '.join(str(e).split())[:300]}")
            self._deadline.writing = max(self._deadline.writing, time.time() - started)
