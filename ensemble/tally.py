"""What a pass over questions did, counted where they are answered and added up on the driver."""

import heapq
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ensemble.records import Question

SLOWEST = 30  # questions kept by name


@dataclass
class Tally:
    """Counts of one item of work, or of all of them; JSON in between.

    errors: row_index -> type, message. computed: questions that an engine was asked about. usage: task -> member ->
    requests and tokens. spans: task -> first start and last end, epoch seconds. drift: change of a log-probability of
    each question that was asked twice. letter_mass: task -> smallest. slowest: {row_index, id, task, seconds}, at
    least the `top` ones. seconds: of the driver's steps. fatal: type and message of what ends the run.
    preflight: the task that it tried.
    """

    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    computed: int = 0
    usage: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    drift: list[float] = field(default_factory=list)
    letter_mass: dict[str, float] = field(default_factory=dict)
    slowest: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    fatal: tuple[str, str] | None = None
    preflight: str | None = None

    def answered(self, question: Question, started: float, ended: float) -> None:
        """Notes a question that engines answered."""
        first, last = self.spans.get(question.task, (started, ended))
        self.spans[question.task] = min(first, started), max(last, ended)
        row = {"row_index": question.row_index, "id": question.id, "task": question.task}
        self._keep_slowest([row | {"seconds": round(ended - started, 3)}])

    def add(self, other: "Tally") -> None:
        self.errors |= other.errors
        self.computed += other.computed
        for task, members in other.usage.items():
            for member, counts in members.items():
                self.usage.setdefault(task, {}).setdefault(member, Counter()).update(counts)
        for task, (first, last) in other.spans.items():
            known = self.spans.get(task, (first, last))
            self.spans[task] = min(first, known[0]), max(last, known[1])
        self.drift += other.drift
        for task, mass in other.letter_mass.items():
            self.letter_mass[task] = min(mass, self.letter_mass.get(task, mass))
        self._keep_slowest(other.slowest)
        self.fatal = self.fatal or other.fatal

    def _keep_slowest(self, rows: list[dict[str, Any]]) -> None:
        self.slowest += rows
        if len(self.slowest) >= 10 * SLOWEST:  # now and then: once a question would cost more than to answer it
            self.slowest = self.top()

    def top(self) -> list[dict[str, Any]]:
        """The slowest questions, longest first."""
        return heapq.nlargest(SLOWEST, self.slowest, key=lambda row: row["seconds"])

    def to_json(self) -> str:
        return json.dumps(vars(self) | {"slowest": self.top(), "errors": list(self.errors.items())})

    @staticmethod
    def from_json(text: str) -> "Tally":
        data = json.loads(text)
        data["errors"] = {row: (kind, message) for row, (kind, message) in data["errors"]}
        data["spans"] = {task: (first, last) for task, (first, last) in data["spans"].items()}
        data["usage"] = {t: {m: Counter(c) for m, c in members.items()} for t, members in data["usage"].items()}
        data["fatal"] = tuple(data["fatal"]) if data["fatal"] else None
        return Tally(**data)
