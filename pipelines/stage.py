"""The Ray Data stage: items of work in, their tallies out; scores go straight to the store."""

import asyncio
import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ensemble import models
from ensemble.answer import Asker, answer
from ensemble.config import RunConfig
from ensemble.errors import QuorumError
from ensemble.evidence import Evidence
from ensemble.files import location
from ensemble.known import Evidences
from ensemble.plan import Plan, sample_seed, store_hash
from ensemble.prompts import Prompter
from ensemble.read import iter_blocks
from ensemble.records import Decision, Question, Sample, Score
from ensemble.store import StoreWriter
from ensemble.tally import Tally
from ensemble.tokens import load_tokenizer
from ensemble.votes import Voter
from pipelines.client import EngineClient, MemberEngine, Settings
from pipelines.cluster import enter
from pipelines.work import Part, places

REPEAT_EVERY = 100  # of the input's rows, one is asked twice to measure drift
BOARD_SECONDS = 0.5  # between two reports to the live view


class Job(NamedTuple):
    """All that a stage actor needs to know; plain data and actor handles."""

    plan: Plan
    store: str
    engines: dict[str, list[Any]]
    board: Any
    cwd: str
    stages: int  # actors that share the engines
    tokens: dict[str, int]  # per model, that may be under way in one engine
    tasks: Sequence[str] = ()  # of the questions: what they need is loaded before the first of them
    gate: Any = None  # an actor whose `opened` returns, with rows that are done, when all may be asked; None: at once
    first: bool = False  # only as much of each question as makes a decision possible
    until: float | None = None  # epoch seconds at which nothing more is asked
    skip: Sequence[int] = ()  # rows that are not asked


class Solver:
    """Answers questions by the plan: store first, then engines; everything new goes to the store."""

    def __init__(self, job: Job) -> None:
        enter(job.cwd)
        self._plan, self._job = job.plan, job
        root = location(job.store)
        self._evidences = Evidences(job.plan, root)
        self._writer = StoreWriter(root, job.plan.config.store.flush_seconds)
        config = job.plan.config
        self._clients = {
            model: EngineClient(actors, Settings.of(config.ray, job.tokens[model], job.stages))
            for model, actors in job.engines.items()
        }
        self._members: dict[tuple[str, str], MemberEngine] = {}
        self._askers: dict[str, list[Asker | None]] = {}
        self._voters: dict[str, Voter] = {}
        self._busy = 0
        self._done: Counter[tuple[str, bool]] = Counter()  # (task, failed), since the board was told
        self._told = 0.0
        self.skip = set(job.skip)
        self._room = asyncio.Semaphore(job.plan.config.ray.questions_in_flight)
        for task in job.tasks:
            with contextlib.suppress(Exception):  # told by its first question, as the error that it is
                self._askers_of(task)

    async def solve(self, questions: list[Question]) -> Tally:
        """Answers the questions, starting in the order given, but those of other models need not wait their turn."""
        tally = Tally()
        self._busy += 1
        by_models: dict[tuple[str, ...], list[Question]] = {}
        for question in questions:
            here = (model for model in self._plan.models([question.task]) if model in self._clients)
            by_models.setdefault(tuple(here), []).append(question)
        try:
            async with asyncio.TaskGroup() as started:
                for same in by_models.values():
                    started.create_task(self._start(same, tally, started))
        except ExceptionGroup as e:
            raise e.exceptions[0] from None
        finally:
            self._busy -= 1
            # Ray Data ends an actor without a word. Whenever nothing is in flight, everything is on disk.
            if self._busy == 0:
                self._writer.flush()
                self._tell()
        for (task, member), engine in self._members.items():
            tally.usage.setdefault(task, {})[member] = Counter(engine.usage.take())
        return tally

    async def _start(self, questions: list[Question], tally: Tally, started: asyncio.TaskGroup) -> None:
        """One after another, each when its prompts are wanted."""
        for question, evidence in self._evidences(questions):
            if question.row_index not in self.skip:
                await self._turn(question)
                started.create_task(self._one(question, evidence, tally)).add_done_callback(self._done_one)
                await asyncio.sleep(0)  # its prompts go to an engine before the next question's are made

    async def _turn(self, question: Question) -> None:
        """Until its prompts are wanted: made long before an engine has room for them, they would only take memory."""
        for model in self._plan.models([question.task]):
            if model in self._clients:
                await self._clients[model].wanting()
        await self._room.acquire()

    def _done_one(self, _: object) -> None:
        self._room.release()

    async def _one(self, question: Question, evidence: list[Evidence], tally: Tally) -> None:
        until, started, failed = self._job.until, time.time(), False
        if until is not None and started >= until:
            return
        voter = self._voters.setdefault(question.task, self._plan.voter(question.task))
        limit = asyncio.timeout(None if until is None else until - started)
        try:
            if not (voter.first if self._job.first else voter.missing)(question, evidence):
                return
            tally.computed += 1
            async with limit:
                await self._ask(question, evidence, voter, tally)
        except Exception as e:  # whatever it is, the other questions go on
            if limit.expired():  # by the loop's clock, on which another one need not agree
                return
            tally.errors[question.row_index] = type(e).__name__, _message(e)
            failed = True
        self._writer.flush_if_due()
        if not failed:
            tally.answered(question, started, time.time())
        self._done[question.task, failed] += 1
        if time.time() - self._told >= BOARD_SECONDS:
            self._tell()

    async def _ask(self, question: Question, evidence: list[Evidence], voter: Voter, tally: Tally) -> None:
        askers = self._askers_of(question.task)
        decision = await answer(question, voter, askers, evidence, self._record, self._job.first)
        if decision.letter_mass is not None:
            tally.letter_mass[question.task] = min(decision.letter_mass, tally.letter_mass.get(question.task, 1.0))
        if question.row_index % REPEAT_EVERY == 0 and decision.scores is not None and self._job.until is None:
            fixed = [e if asker is None else None for e, asker in zip(evidence, askers, strict=True)]
            tally.drift.append(await self._drift(question, voter, askers, fixed, decision))

    async def _drift(
        self, question: Question, voter: Voter, askers: list[Asker | None], fixed: list[Evidence], first: Decision
    ) -> float:
        """Largest difference of a normalised log-probability when the same question is asked again."""
        again = await answer(question, voter, askers, fixed, lambda *_: None)
        assert first.scores is not None
        assert again.scores is not None
        return float(np.abs(np.subtract(first.scores, again.scores)).max())

    def _record(self, member: int, question: Question, value: Score | Sample) -> None:
        planned = self._plan.tasks[question.task][member]
        self._writer.add(planned.key, store_hash(question, planned), value)

    def _tell(self) -> None:
        """The live view hears of many questions at a time."""
        if self._done:
            self._job.board.add.remote(self._done)
        self._done, self._told = Counter(), time.time()

    def _askers_of(self, task: Any) -> list[Asker | None]:
        """Made once for a task: a run without summaries loads no tokenizer for them."""
        if task not in self._askers:
            config = self._plan.config
            askers: list[Asker | None] = []
            for planned in self._plan.tasks[task]:
                member = planned.member
                if member.model not in self._clients:  # nobody can be asked now: samples, or a model of another wave
                    askers.append(None)
                    continue
                engine = self._members.setdefault((task, planned.name), MemberEngine(self._clients[member.model]))
                model, template = config.models[member.model], config.templates[member.template]
                prompter = Prompter(member, model, template, tokenizer(member.model, config))
                askers.append(Asker(member, prompter, engine, sample_seed(member, config.seed)))
            self._askers[task] = askers
        return self._askers[task]


_tokenizers: dict[str, Any] = {}


def tokenizer(name: str, config: RunConfig) -> Any:
    """The model's own tokenizer, loaded once per process."""
    if name not in _tokenizers:
        model = config.models[name]
        folder = models.prepare(name, model, lambda _: None, tokenizer_only=True)
        _tokenizers[name] = load_tokenizer(folder, model.trust_remote_code)
    return _tokenizers[name]


def _message(error: Exception) -> str:
    """One line; of an error that nobody foresaw also where it was raised."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, QuorumError):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({last.filename}:{last.lineno}): please report this"


class Stage:
    """Ray Data's callable: items in, tallies out. Several items are in flight in one actor.

    The first item is the preflight, one question of each task: it waits for the engines, and the others for it.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._solver = job, Solver(job)

    async def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        (item,) = batch["item"].to_pylist()
        try:
            questions = questions_of([Part(**part) for part in item["parts"]], self._job.plan)
            if item["preflight"]:
                tallies = await self._preflight(questions)
            else:
                tallies = [await self._solver.solve(questions if await self._opened() else [])]
        except Exception as e:  # a row, because an exception loses its type on its way through Ray Data
            tallies = [Tally(fatal=(type(e).__name__, _message(e)))]
        return pa.table({"tally": [tally.to_json() for tally in tallies]})

    async def _opened(self) -> bool:
        """Waits at the gate; False where there is nothing left to do."""
        if self._job.gate is None:
            return True
        done = await self._job.gate.opened.remote()
        self._solver.skip.update(done or [])
        return done is not None

    async def _preflight(self, questions: list[Question]) -> list[Tally]:
        """Untimed: what the first questions take is the engines' start."""
        tallies = await asyncio.gather(*(self._solver.solve([question]) for question in questions))
        for question, tally in zip(questions, tallies, strict=True):
            tally.spans, tally.slowest, tally.preflight = {}, [], question.task
        return tallies


def questions_of(parts: list[Part], plan: Plan) -> list[Question]:
    """The questions of an item in the order in which to start them."""
    found: list[Question] = []
    for part, block in zip(parts, iter_blocks(part.block for part in parts), strict=True):
        if part.rows is not None:
            by_row = {question.row_index: question for question in block}
            chosen = [by_row[row] for row in part.rows]
        else:
            chosen = [question for question in block if part.tasks is None or question.task in part.tasks]
            chosen.sort(key=lambda question: _length(question, plan), reverse=True)
        start, stop = part.share
        found += [
            question for question, place in zip(chosen, places(len(chosen)), strict=True) if start <= place < stop
        ]
    if all(part.rows is None for part in parts):  # the longest first, so that none of them is alone at work in the end
        found.sort(key=lambda question: _length(question, plan), reverse=True)
    return found


def _length(question: Question, plan: Plan) -> tuple[int, int]:
    """How long an answer takes: tokens that are written one after another, then characters that are read."""
    members = plan.tasks[question.task]
    written = max((0 if m.scored else m.member.sampling.max_tokens for m in members), default=0)
    return written, len(question.text) + len(question.context or "")
