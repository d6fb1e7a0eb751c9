"""What the endpoint does, without HTTP: questions to results by the ensemble of a run config.

Plan, prompts, votes and grades are `solve.py`'s; only that nothing is stored, and each question comes alone.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ensemble import models
from ensemble.adaptive import EXACT
from ensemble.answer import Asker, answer
from ensemble.calibration import Calibration, Population
from ensemble.config import RunConfig
from ensemble.errors import ConfigError, QuorumError
from ensemble.evidence import Evidence, merge
from ensemble.models import fingerprint
from ensemble.outputs import prediction_row
from ensemble.plan import Plan, make_plan, sample_seed, stored_priors
from ensemble.prompts import Prompter
from ensemble.records import Question, Sample, Score, Task
from ensemble.tokens import load_tokenizer
from serve.remote import Model

ENSEMBLE = "ensemble:"


def served_plan(config: RunConfig) -> Plan:
    """The plan of all tasks. There is no input to calibrate votes on: priors come from files, adaptive voting stops
    where the rest cannot change the winner. Raises ConfigError where a member needs an input."""
    for task, wanted in config.tasks.items():
        if any(member.samples is not None for member in wanted.members):
            raise ConfigError(f"tasks.{task}: a file of samples answers only its own questions: it cannot be served")
    plan = make_plan(config, list(config.tasks))
    calibrations = {}
    for task in plan.tasks:
        priors = stored_priors(plan, task, Population({}), fingerprint)
        calibrations[task] = Calibration(priors, EXACT)
    return plan._replace(calibrations=calibrations)


class Gateway:
    """The ensemble and its models."""

    def __init__(self, name: str, plan: Plan, served: Mapping[str, Model]) -> None:
        """served: per model of the plan its engines."""
        self.name, self.plan, self.served = ENSEMBLE + name, plan, served
        self.started = int(time.time())
        self._turn = asyncio.Lock()
        self._voters = {task: plan.voter(task) for task in plan.tasks}
        self._tokenizers: dict[str, Any] = {}
        self._prompters: dict[tuple[Task, int], Prompter] = {}
        for task, members in plan.tasks.items():
            for i, planned in enumerate(members):
                member, config = planned.member, plan.config
                model, template = config.models[member.model], config.templates[member.template]
                self._prompters[task, i] = Prompter(member, model, template, self.tokenizer(member.model))

    @property
    def names(self) -> list[str]:
        """Of the models that can be asked, the ensemble first."""
        return [self.name, *self.served]

    def tokenizer(self, model: str) -> Any:
        """The model's own, loaded once."""
        if model not in self._tokenizers:
            config = self.plan.config.models[model]
            folder = models.prepare(model, config, lambda _: None, tokenizer_only=True)
            self._tokenizers[model] = load_tokenizer(Path(folder), config.trust_remote_code)
        return self._tokenizers[model]

    def writer(self) -> str:
        """The model that answers the ensemble's plain texts: the heaviest member of the task that writes them."""
        tasks = self.plan.config.tasks
        task = next(t for t in ("generation", "summarization", "math", "multiple_choice") if t in tasks)
        return max(tasks[task].members, key=lambda member: member.weight).model

    async def solve(self, question: Question) -> dict[str, Any]:
        """A line of predictions.jsonl, with seconds and detail. What is wrong with the question alone is in `error`."""
        started, asked = time.perf_counter(), _Asked(len(self.plan.tasks.get(question.task, ())))
        failures, decision = {}, None
        async with self._turn:  # a round of the event loop for each question, which what is quicker need not wait out
            await asyncio.sleep(0)
        try:
            decision = await answer(
                question, self._voters[question.task], self._askers(question), asked.known, asked.keep
            )
        except QuorumError as e:
            failures[question.row_index] = type(e).__name__, str(e)
        row = prediction_row(question, decision, failures, self.plan)
        return row | {"seconds": round(time.perf_counter() - started, 4), "detail": self._detail(question, asked.known)}

    def answers(self, task: str) -> bool:
        return task in self.plan.tasks

    def _askers(self, question: Question) -> list[Asker]:
        session = question.hash.hex()  # its orders share their prefix
        return [
            Asker(
                planned.member,
                self._prompters[question.task, i],
                self.served[planned.member.model].engine(session),
                sample_seed(planned.member, self.plan.config.seed),
            )
            for i, planned in enumerate(self.plan.tasks[question.task])
        ]

    def _detail(self, question: Question, known: list[Evidence]) -> list[dict[str, Any]]:
        """What each member said: per order the options' probabilities, or the texts."""
        voter, lines = self._voters[question.task], []
        for i, (planned, evidence) in enumerate(zip(self.plan.tasks[question.task], known, strict=True)):
            if evidence is None:
                continue
            line: dict[str, Any] = {"member": planned.name, "model": planned.member.model}
            if isinstance(evidence, Score):
                table = np.exp(voter.table(i, question, evidence))
                line["orders"] = [list(order) for order in evidence.orders]
                line["probabilities"] = [[round(float(p), 4) for p in row] for row in table]
            else:
                line["samples"] = [{"text": sample.text, "finish": sample.finish} for sample in evidence]
            lines.append(line)
        return lines


class _Asked:
    """What was said about a question so far; known: per member."""

    def __init__(self, members: int) -> None:
        self.known: list[Evidence] = [None] * members

    def keep(self, member: int, question: Question, value: Score | Sample) -> None:
        self.known[member] = merge(self.known[member], value)
