"""What the report knows of all prediction rows: counts, histograms and a few examples, in bounded memory.

Rows come once, in input order. Which examples stay depends on the rows and the seed alone.
"""

import hashlib
import math
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import itemgetter
from typing import Any, NamedTuple

from ensemble.records import Question

BINS = 10  # of confidence and of letter mass, equal in width
LOW_MASS = 0.1
CUTS = (1, 100, 1_000, 10_000)  # lower bounds of the classes of cut tokens; before them: nothing cut
BINARY = ("accuracy", "numeric_match", "exact_match", "quasi_exact_match")  # metrics that say right or wrong
KEPT = {"wrong": 12, "failed": 8, "cut": 8, "near_tie": 8, "unread": 6, "slow": 10, "unsure": 6, "sample": 20}
LONG, SHORT = 4_000, 1_200  # characters kept of the cut source, of any other text of an example
OPTIONS, SAMPLES, REFERENCES = 26, 8, 4  # of them kept in an example
ROW = (
    "group", "prediction", "confidence", "orders_used", "members", "grade", "error", "letter_mass", "prompt_tokens",
    "shots_dropped", "cut_tokens",
)  # fmt: skip


@dataclass
class Tally:
    """Mean of grades in [0, 1]; low and high bound what they were counted under (say prompt tokens)."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, grade: float, place: float = 0) -> None:
        self.n += 1
        self.total += grade
        self.squares += grade * grade
        self.low, self.high = min(self.low, place), max(self.high, place)

    def merge(self, other: "Tally") -> None:
        self.n, self.total, self.squares = self.n + other.n, self.total + other.total, self.squares + other.squares
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def mean(self) -> float:
        return self.total / self.n

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """95% bounds of the mean, n >= 1: by Wilson (1927) for grades of 0 and 1, else normal, cut to [0, 1]."""
        p, n = self.mean, self.n
        if n > 1 and self.squares < self.total - 1e-9:
            half = z * math.sqrt(max(self.squares / n - p * p, 0.0) / (n - 1))
            return max(p - half, 0.0), min(p + half, 1.0)
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(centre - half, 0.0), min(centre + half, 1.0)


class Calibration:
    """Confidence in BINS bins, each open below and closed above, against how often the answer was right."""

    def __init__(self) -> None:
        self.confidence = [0.0] * BINS  # summed
        self.right = [Tally() for _ in range(BINS)]

    def add(self, confidence: float, right: float) -> None:
        index = bin_of(confidence)
        self.confidence[index] += confidence
        self.right[index].add(right)

    @property
    def n(self) -> int:
        return sum(tally.n for tally in self.right)

    @property
    def gap(self) -> float:
        """Mean confidence less the share of right answers; above 0 is too sure."""
        return (sum(self.confidence) - sum(tally.total for tally in self.right)) / self.n

    @property
    def ece(self) -> float:
        """Expected calibration error, sum over bins of n_b / N |accuracy_b - confidence_b| (Guo et al. 2017, eq. 5)."""
        gaps = (abs(t.total - c) for t, c in zip(self.right, self.confidence, strict=True))
        return sum(gaps) / self.n


def bin_of(share: float) -> int:
    return min(max(math.ceil(round(share * BINS, 9)) - 1, 0), BINS - 1)


class Piece(NamedTuple):
    """`characters` of a text. kind: `shown`; `cut`, what no model saw; `gap`, left out here, so text is empty."""

    kind: str
    text: str
    characters: int


class Example(NamedTuple):
    """One prediction row, made short enough for a page. seconds: only of the slowest rows."""

    row_index: int
    place: str
    flags: frozenset[str]
    text: list[Piece]
    context: list[Piece]
    choices: tuple[str, ...]
    gold: int | list[str] | None
    row: Mapping[str, Any]
    samples: list[str]
    seconds: float | None


class Smallest:
    """The k entries with the smallest keys."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._entries: list[tuple[tuple[float, ...], Example]] = []

    def offer(self, key: tuple[float, ...], make: Callable[[], Example]) -> None:
        if len(self._entries) < self._k or key < self._entries[-1][0]:
            insort(self._entries, (key, make()), key=itemgetter(0))
            del self._entries[self._k :]

    def __iter__(self) -> Iterator[Example]:
        return (example for _, example in self._entries)


@dataclass
class TaskDigest:
    """One task. `metric` is the one that grades stand for here; picked, gold and hits count options by index."""

    metric: str | None = None
    rows: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    shots_dropped: int = 0
    grades: Tally = field(default_factory=Tally)
    near_ties: Tally = field(default_factory=Tally)
    chance: Tally = field(default_factory=Tally)
    confidence: Counter[int] = field(default_factory=Counter)
    calibration: Calibration = field(default_factory=Calibration)
    letter_mass: Tally = field(default_factory=Tally)
    low_mass: int = 0
    mass_bins: Counter[int] = field(default_factory=Counter)
    picked: Counter[int] = field(default_factory=Counter)
    gold: Counter[int] = field(default_factory=Counter)
    hits: Counter[int] = field(default_factory=Counter)
    lengths: dict[int, Tally] = field(default_factory=dict)
    cuts: list[Tally] = field(default_factory=lambda: [Tally() for _ in range(len(CUTS) + 1)])
    kept: dict[str, Smallest] = field(default_factory=lambda: {reason: Smallest(k) for reason, k in KEPT.items()})

    def add(self, question: Question, row: Mapping[str, Any], rank: int, seconds: float | None) -> None:
        grades = row["grade"] or {}
        self.metric = self.metric or next(iter(grades), None)
        grade = grades.get(self.metric)
        self.rows += 1
        flags = _flags(row, grade, seconds)
        self.flags.update(flags)
        if grade is not None:
            self.grades.add(grade)
        if not row["error"]:
            self._answered(question, row, grade)

        def make() -> Example:
            return _example(question, row, flags, seconds)

        for reason, key in _reasons(row, flags, grade, seconds):
            self.kept[reason].offer((*key, rank), make)

    def _answered(self, question: Question, row: Mapping[str, Any], grade: float | None) -> None:
        confidence, mass, prediction = row["confidence"], row["letter_mass"], row["prediction"]
        self.shots_dropped += row["shots_dropped"] > 0
        if confidence is not None:
            self.confidence[bin_of(confidence)] += 1
        if mass is not None:
            self.letter_mass.add(mass)
            self.low_mass += mass < LOW_MASS
            self.mass_bins[bin_of(mass)] += 1
        if isinstance(prediction, int) and question.choices:
            self.picked[prediction] += 1
        if grade is None:
            return
        if isinstance(question.gold, int) and isinstance(prediction, int):
            self.gold[question.gold] += 1
            self.hits[question.gold] += prediction == question.gold
        if question.choices:
            self.chance.add(1 / len(question.choices))
        if confidence is not None and self.metric in BINARY:
            self.calibration.add(confidence, grade)
        if row["near_tie"]:
            self.near_ties.add(grade)
        if tokens := row["prompt_tokens"]:  # 16 classes an octave: fine enough to be joined into quantiles later
            self.lengths.setdefault(round(16 * math.log2(tokens)), Tally()).add(grade, tokens)
        self.cuts[bisect_right(CUTS, row["cut_tokens"])].add(grade)

    def length_bins(self, most: int = 8, least: int = 10) -> list[Tally]:
        """Grades by prompt tokens in up to `most` bins of about equal counts, `least` questions each."""
        n = sum(tally.n for tally in self.lengths.values())
        bins = max(1, min(most, n // least))
        merged: list[Tally] = []
        before = 0
        for _, tally in sorted(self.lengths.items()):
            if before * bins >= len(merged) * n:
                merged.append(Tally())
            merged[-1].merge(tally)
            before += tally.n
        return merged

    def recalls(self) -> dict[int, float]:
        """Per gold index the share that was answered right; their spread is `consistency.rstd`."""
        return {index: self.hits[index] / n for index, n in sorted(self.gold.items())}

    def examples(self, limit: int) -> list[Example]:
        """Up to `limit`, taken from all reasons in turn, in input order; `low` flags the lowest grades above 0."""
        low = {example.row_index for example in self.kept["wrong"] if "wrong" not in example.flags}
        found: dict[int, Example] = {}
        for turn in zip_longest(*self.kept.values()):
            found |= {e.row_index: e for e in turn if e is not None and e.row_index not in found}
        chosen = list(found.values())[:limit]
        flagged = [e._replace(flags=e.flags | {"low"}) if e.row_index in low else e for e in chosen]
        return sorted(flagged, key=lambda e: e.row_index)


class Digest:
    """Collects rows; `tasks` has what they say, in the order in which tasks first came."""

    def __init__(
        self, seed: int, slowest: Iterable[Mapping[str, Any]] = (), metrics: Mapping[str, str] | None = None
    ) -> None:
        """slowest: {row_index, seconds} of the rows that took longest, which are kept as examples.
        metrics: per task the metric that counts, else the first one of its grades.
        """
        self._seed, self._metrics = seed, dict(metrics or {})
        self._seconds = {row["row_index"]: float(row["seconds"]) for row in slowest}
        self.tasks: dict[str, TaskDigest] = {}

    def add(self, question: Question, row: Mapping[str, Any]) -> None:
        """row: the line of predictions.jsonl, see `ensemble.outputs.prediction_row`."""
        if question.task not in self.tasks:
            self.tasks[question.task] = TaskDigest(self._metrics.get(question.task))
        digest = hashlib.blake2b(b"%d:%d" % (self._seed, question.row_index), digest_size=8).digest()
        rank, seconds = int.from_bytes(digest, "big"), self._seconds.get(question.row_index)
        self.tasks[question.task].add(question, row, rank, seconds)


def _flags(row: Mapping[str, Any], grade: float | None, seconds: float | None) -> frozenset[str]:
    failed = bool(row["error"])
    flags = {
        "failed": failed,
        "wrong": grade == 0 and not failed,
        "unread": row["prediction"] is None and not failed,
        "cut": row["cut_tokens"] > 0,
        "near_tie": row["near_tie"],
        "partial": bool(row.get("partial")),
        "slow": seconds is not None,
    }
    return frozenset(name for name, is_so in flags.items() if is_so)


def _reasons(
    row: Mapping[str, Any], flags: frozenset[str], grade: float | None, seconds: float | None
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Why the row may be kept as an example, each with a key of which the smallest ones are kept."""
    if seconds is not None:
        yield "slow", (-seconds,)
    if "failed" in flags:
        yield "failed", ()
        return
    confidence = row["confidence"]
    if grade is not None and grade < 1:  # of equal grades the surest teaches most
        yield "wrong", (grade, -(confidence or 0.0))
    if confidence is not None:
        yield "unsure", (confidence,)
    if "cut" in flags:
        yield "cut", (-row["cut_tokens"],)
    for flag in ("near_tie", "unread"):
        if flag in flags:
            yield flag, ()
    yield "sample", ()


def _example(question: Question, row: Mapping[str, Any], flags: frozenset[str], seconds: float | None) -> Example:
    in_context = bool(question.context)  # what is cut: see ensemble.prompts
    cut, gold, answer = row["cut_characters"], question.gold, row["answer_text"]
    short = {key: row[key] for key in ROW} | {key: row[key] and row[key][:OPTIONS] for key in ("scores", "votes")}
    return Example(
        row_index=question.row_index,
        place=f"{question.file}:{question.line}",
        flags=flags,
        text=pieces(question.text, SHORT if in_context else LONG, None if in_context else cut),
        context=pieces(question.context or "", LONG, cut if in_context else None),
        choices=tuple(brief(choice, SHORT // 4) for choice in question.choices[:OPTIONS]),
        gold=[brief(text) for text in gold[:REFERENCES]] if isinstance(gold, tuple) else gold,
        row=short | {"id": brief(str(row["id"]), 80), "answer_text": None if answer is None else brief(answer)},
        samples=[brief(text, SHORT // 2) for text in (row.get("samples") or ())[:SAMPLES]],
        seconds=seconds,
    )


def pieces(text: str, limit: int, cut: Sequence[int] | None = None) -> list[Piece]:
    """The text in at most `limit` characters: of what is too long the middle goes. cut: [start, end] of its characters.

    A cut text keeps a quarter of the limit on either side, next to the cut too.
    """
    if cut is not None:
        start, end = cut
        gone = Piece("cut", brief(text[start:end], limit // 2), end - start)
        return [*pieces(text[:start], limit // 4), gone, *pieces(text[end:], limit // 4)]
    if len(text) <= limit:
        return [Piece("shown", text, len(text))] if text else []
    half = limit // 2
    gap = Piece("gap", "", len(text) - 2 * half)
    return [Piece("shown", text[:half], half), gap, Piece("shown", text[-half:], half)]


def brief(text: str, limit: int = SHORT) -> str:
    return "".join(p.text or f" [… {p.characters:,} characters …] " for p in pieces(text, limit))
