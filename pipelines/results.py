"""A run's results, written by replaying the store: once at the end, and now and then before a deadline."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ensemble.errors import InputError
from ensemble.files import location
from ensemble.known import Evidences, calibrated, keep_priors, known, replay
from ensemble.outputs import Decided, Outside, Written, write_results
from ensemble.plan import Plan
from ensemble.questions import parse_question
from ensemble.read import find_inputs, iter_blocks
from ensemble.records import Gold
from ensemble.relative import BaselineGrades
from ensemble.rows import iter_rows
from ensemble.submissions import read_answers, require_common
from ensemble.tally import Tally
from pipelines.missing import Missing


class Results(NamedTuple):
    """What it takes to write predictions, grades and the submission.

    partial: in deadline mode a question is decided by what was said about it until then.
    """

    folder: Path
    plan: Plan
    store: Path
    blocks: list[str]
    outside: Outside
    partial: bool

    def write(self, tally: Tally, stopped: tuple[str, str] | None = None) -> Written:
        # What the sample lacks by now could not be had.
        plan = calibrated(self.plan, self.store, self.blocks, partly=True, failed=tally.errors)
        return self._write(plan, replay(plan, self.store, self.blocks, self.partial), tally, stopped)

    def ids(self) -> Iterator[int | str]:
        return (question.id for block in iter_blocks(self.blocks) for question in block)

    def look(self, asked: Sequence[str], missing: Missing) -> Written | None:
        """Finds the questions that lack something in the store. asked: the tasks that there are.

        Where none does, or in deadline mode, the results are written on the way.
        """
        nothing = not len(Evidences(self.plan, self.store)) and self.plan.models(asked)
        if nothing and not self.partial:
            missing.add_all()
            return None
        plan = calibrated(self.plan, self.store, self.blocks, partly=self.partial)

        def counted() -> Iterator[Decided]:
            for question, voter, evidence in known(plan, self.store, self.blocks):
                lacks = not voter.calibrated or bool(voter.missing(question, evidence))
                if lacks:
                    missing.add(question)
                if self.partial or not missing.tasks:  # else nothing will be written: only count
                    decision = voter.best(question, evidence)
                    yield question, replace(decision, partial=True) if decision is not None and lacks else decision
            if missing.tasks and not self.partial:
                raise _Incomplete

        try:
            return self._write(plan, counted(), Tally(), None)
        except _Incomplete:
            return None

    def _write(self, plan: Plan, decided: Iterable[Decided], tally: Tally, stopped: tuple[str, str] | None) -> Written:
        keep_priors(plan, self.store)
        return write_results(self.folder, plan, decided, tally, self.outside, stopped, guess=self.partial)


class _Incomplete(Exception):
    """The store lacks something: nothing is written yet."""


def read_outside(gold: str | None, overlay: str | None, baseline: str | None) -> Outside:
    """Files named on the command line. Raises InputError where one cannot be used."""
    paths = (location(name) if name else None for name in (overlay, baseline))
    return Outside(read_gold(gold) if gold else None, *paths)


def check_outside(results: Results) -> None:
    """Raises InputError where gold does not fit its question or another submission answers none of the questions.

    Before anything is computed.
    """
    check_gold(results.outside.gold or {}, results.blocks)
    if (overlay := results.outside.overlay) is not None:
        require_common(overlay, read_answers(overlay), results.ids())
    if (baseline := results.outside.baseline) is not None:
        BaselineGrades(baseline, results.plan.config).require_common(results.ids())


def check_gold(gold: Mapping[int | str, Gold], blocks: Sequence[str]) -> None:
    """Raises InputError where gold does not fit its question."""
    for question in (q for block in iter_blocks(blocks) for q in block) if gold else ():
        given = gold.get(question.id)
        fits = given < len(question.choices) if isinstance(given, int) else not question.choices
        if given is not None and not fits:
            raise InputError(f"gold for id {question.id!r} is of another question: give the gold of this input's ids")


def read_gold(spec: str) -> dict[int | str, Gold]:
    """Gold answers by id out of a file of the question format. Raises InputError."""
    gold: dict[int | str, Gold] = {}
    for path in find_inputs(spec):
        for line, row in iter_rows(path):
            if isinstance(row, InputError):
                raise InputError(f"{path}:{line}: {row}")
            try:
                question = parse_question(row, 0, str(path), line)
            except InputError as e:
                raise InputError(f"{path}:{line}: {e}") from None
            if question.gold is not None:
                gold[question.id] = question.gold
    if not gold:
        raise InputError(f"{spec}: no row has a gold answer (answer or summary)")
    return gold
