"""The Ray Data stage: blocks of questions in, small outcome rows out; scores go straight to the store."""

import asyncio
import json
import math
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensemble import models
from ensemble.answer import Asker, answer
from ensemble.config import RunConfig
from ensemble.errors import QuorumError
from ensemble.plan import Evidences, Plan, sample_seed
from ensemble.prompts import Prompter, load_tokenizer
from ensemble.read import iter_blocks
from ensemble.records import Decision, Question, Sample, Score
from ensemble.store import StoreWriter
from ensemble.votes import Evidence, Voter
from pipelines.cluster import EngineClient, enter

FATAL_ROW = -1  # row_index of an outcome that ends the run
REPEAT_EVERY = 100  # of the input's rows, one is asked twice to measure drift


class Job(NamedTuple):
    """All that a stage actor needs to know; plain data and actor handles."""

    plan: Plan
    store: str
    engines: dict[str, list[Any]]
    board: Any
    cwd: str


class Solver:
    """Answers questions by the plan: store first, then engines; everything new goes to the store."""

    def __init__(self, job: Job) -> None:
        enter(job.cwd)
        self._plan, self._job = job.plan, job
        root = Path(job.store)
        self._evidences = Evidences(job.plan, root)
        self._writer = StoreWriter(root, job.plan.config.store.flush_seconds)
        self._clients: dict[tuple[str, str], EngineClient] = {}
        self._askers: dict[str, list[Asker]] = {}
        self._voters: dict[str, Voter] = {}
        self._busy = 0
        self._room = asyncio.Semaphore(job.plan.config.ray.questions_in_flight)

    async def solve(self, questions: list[Question]) -> list[dict[str, Any]]:
        """One outcome a question, in order: row_index, task, error (null or type and message), drift, usage."""
        self._busy += 1
        try:
            known = list(self._evidences(questions))
            outcomes = await asyncio.gather(*(self._bounded(question, evidence) for question, evidence in known))
        finally:
            self._busy -= 1
            # Ray Data ends an actor without a word. Whenever nothing is in flight, everything is on disk.
            if self._busy == 0:
                self._writer.flush()
        usage: dict[str, dict[str, dict[str, int]]] = {}
        for (task, member), client in self._clients.items():
            usage.setdefault(task, {})[member] = client.usage.take()
        outcomes[0]["usage"] = json.dumps(usage)
        return outcomes

    async def _bounded(self, question: Question, evidence: list[Evidence]) -> dict[str, Any]:
        async with self._room:
            return await self._one(question, evidence)

    async def _one(self, question: Question, evidence: list[Evidence]) -> dict[str, Any]:
        started = time.time()
        outcome = blank_outcome(question.row_index, question.task) | {"started": started}
        try:
            voter = self._voters.setdefault(question.task, self._plan.voter(question.task))
            if isinstance(voter.next(question, evidence), Decision):
                return outcome
            outcome["computed"] = True
            askers = self._askers_of(question.task)
            decision = await answer(question, voter, askers, evidence, self._record)
            if decision.letter_mass is not None:
                outcome["letter_mass"] = decision.letter_mass
            if question.row_index % REPEAT_EVERY == 0 and decision.scores is not None:
                outcome["drift"] = await self._drift(question, voter, askers, decision)
        except Exception as e:  # whatever it is, the other questions go on
            outcome |= {"error_type": type(e).__name__, "error_message": _message(e)}
        self._writer.flush_if_due()
        outcome["ended"] = time.time()
        self._job.board.add.remote(question.task, outcome["ended"] - started, bool(outcome["error_type"]))
        return outcome

    async def _drift(self, question: Question, voter: Voter, askers: list[Asker], first: Decision) -> float:
        """Largest difference of a normalised log-probability when the same question is asked again."""
        again = await answer(question, voter, askers, [None] * len(askers), lambda *_: None)
        assert first.scores is not None
        assert again.scores is not None
        return float(np.abs(np.subtract(first.scores, again.scores)).max())

    def _record(self, member: int, question: Question, value: Score | Sample) -> None:
        self._writer.add(self._plan.tasks[question.task][member].key, question.hash, value)

    def _askers_of(self, task: Any) -> list[Asker]:
        """Made at a task's first question: a run without summaries loads no tokenizer for them."""
        if task not in self._askers:
            config = self._plan.config
            askers = []
            for planned in self._plan.tasks[task]:
                member = planned.member
                client = self._clients.setdefault(
                    (task, planned.name),
                    EngineClient(self._job.engines[member.model], config.ray.retries, config.ray.request_seconds),
                )
                model, template = config.models[member.model], config.templates[member.template]
                prompter = Prompter(member, model, template, tokenizer(member.model, config))
                askers.append(Asker(member, prompter, client, sample_seed(member, config.seed)))
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


def blank_outcome(row_index: int, task: str) -> dict[str, Any]:
    return {
        "row_index": row_index,
        "task": task,
        "computed": False,
        "error_type": "",
        "error_message": "",
        "drift": math.nan,
        "letter_mass": math.nan,
        "usage": "",
        "started": math.nan,
        "ended": math.nan,
    }


def _message(error: Exception) -> str:
    """One line; of an error that nobody foresaw also where it was raised."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, QuorumError):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({last.filename}:{last.lineno}): please report this"


class Stage:
    """Ray Data's callable: the path of a block in, outcome columns out. Several blocks are in flight in one actor."""

    def __init__(self, job: Job) -> None:
        self._solver = Solver(job)

    async def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        try:
            (questions,) = iter_blocks(batch["block"].to_pylist())
            outcomes = await self._solver.solve(questions)
        except Exception as e:  # a row, because an exception loses its type on its way through Ray Data
            outcomes = [blank_outcome(FATAL_ROW, "") | {"error_type": type(e).__name__, "error_message": _message(e)}]
        return pa.Table.from_pylist(outcomes)


def preflight(job: Job, questions: list[Question]) -> list[dict[str, Any]]:
    """Outcomes of one real question per task, before anything else runs; untimed, they wait for the engines."""
    return [o | {"started": math.nan} for o in asyncio.run(Solver(job).solve(questions))]
