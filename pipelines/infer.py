"""The inference phase: engines start, one question per task is tried, then Ray Data streams all that is missing.

Where the models do not fit the GPUs at once this happens in waves, each with some of the models.
"""

import importlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ensemble import costs, placement
from ensemble.errors import EngineError, ModelError, QuorumError, by_name
from ensemble.files import location
from ensemble.known import calibrated, calibrated_tasks
from ensemble.models import hardware
from ensemble.plan import Plan
from ensemble.presets import tokens_in_flight
from ensemble.tally import Tally
from pipelines.cluster import Node, await_gpus, connect, gpu_nodes, release_gpus, total, wait_for
from pipelines.deadline import Deadline, by_promise
from pipelines.missing import Missing, per_task
from pipelines.pool import EngineSpec, start_engines
from pipelines.progress import Progress
from pipelines.sample import SampleWork, first_questions, sample_work
from pipelines.stage import Job
from pipelines.stream import Stream
from pipelines.watch import Board, Watch
from pipelines.work import Part, everything, shares

CLOSE_SECONDS = 60.0  # for an engine to give its GPU's memory back before the next wave
END_SECONDS = 3.0  # for the stage actors of a pass that is given up
FATAL = ("ModelError", "ConfigError", "PromptError")


class Pass(NamedTuple):
    """What a run's inference works with; `tally` gets what was done, question errors included."""

    store: str
    blocks: Sequence[str]
    progress: Progress
    tally: Tally
    deadline: Deadline | None
    watch: Watch

    @property
    def until(self) -> float | None:
        return self.deadline.until if self.deadline else None

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of a step."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.tally.seconds[name] = round(self.tally.seconds.get(name, 0) + time.monotonic() - started, 3)


def infer(plan: Plan, missing: Missing, run: Pass) -> None:
    """Answers what the store lacks.

    Raises QuorumError where nothing can go on. With a deadline each question is first answered once, then the rest
    of the plan follows where it is expected to change most.
    """
    plan = calibrated(plan, location(run.store), run.blocks, partly=run.deadline is not None)
    if run.until is not None and time.time() >= run.until:
        run.progress.warn("the deadline leaves no time to ask")
        return
    run.progress.note("starting Ray")
    with run.timed("connect"):
        connect(plan.config.ray)
    try:
        nodes = gpu_nodes()
        if plan.config.ray.gpus:
            nodes = await_gpus(plan.config.ray.gpus, plan.config.ray.engine_start_seconds, run.progress.note)
        run.watch.gpus = total(nodes)
        waves = placement.place(plan, costs.needs(plan, run.blocks, missing.tasks), [node.gpus for node in nodes])
        with run.watch:
            for number, wave in enumerate(waves, start=1):
                names = ", ".join(f"{n} x {model}" for model, n in wave.engines.items())
                if len(waves) > 1:
                    run.progress.note(f"wave {number} of {len(waves)}: {names}")
                here = plan if len(waves) == 1 else plan._replace(here=frozenset(wave.engines))
                try:
                    if not _wave(here, wave.engines, nodes, missing, run, last=number == len(waves)):
                        return
                except ModelError as e:
                    if number == 1:
                        raise
                    raise EngineError(str(e)) from e  # what the waves before have answered is written
        run.tally.computed = min(run.tally.computed, missing.tasks.total())  # a question may be asked in several waves
    except RayError as e:
        raise EngineError(
            f"Ray: {type(e).__name__}: {' '.join(str(e).split())[:300]}; run the same command to go on"
        ) from e
    finally:
        release_gpus()
        ray.shutdown()


def _wave(
    plan: Plan, engines: Mapping[str, int], nodes: Sequence[Node], missing: Missing, run: Pass, last: bool
) -> bool:
    """With so many engines of each model, all that is missing of them; False where the deadline comes first."""
    config = plan.config
    specs = [EngineSpec(m, config.models[m], plan.devices[m], os.getcwd(), config.ray.stall_seconds) for m in engines]
    actors = start_engines(specs, engines, nodes)
    with run.watch.wave(actors):
        with _Wave(plan, actors, missing, run) as wave:
            with run.timed("engines"):
                ready = _await_engines(actors, config.ray.engine_start_seconds, run)
            with run.timed("preflight"):
                if not ready or not wave.preflight():
                    return False
            wave.solve(last)
        if run.until is not None and time.time() >= run.until:
            return False
        _close(actors, wait=not last)
    return True


class _Wave:
    """The passes over the questions with the engines of a wave: the sample that votes are calibrated on, everything,
    and with a deadline what promises most. The first one starts at once: its actors get ready while engines load."""

    def __init__(self, plan: Plan, actors: dict[str, list[Any]], missing: Missing, run: Pass) -> None:
        self._plan, self._actors, self._run = plan, actors, run
        here = {task for task in missing.tasks if set(plan.models([task])) & actors.keys()}
        self._blocks = {
            block: {task: n for task, n in counts.items() if task in here}
            for block, counts in zip(run.blocks, missing.blocks, strict=True)
        }
        self._missing = per_task(self._blocks.values())
        self._stages = _stages(plan, {model: len(each) for model, each in actors.items()})
        self._tokens = {model: _tokens_in_flight(plan, model) for model in actors}
        self._data = importlib.import_module("ray.data")  # takes seconds, spent while the engines load
        self._uncalibrated = any(t not in plan.calibrations and plan.whole(t) for t in calibrated_tasks(plan))
        self._sample = SampleWork([], Counter())
        if self._uncalibrated:
            self._sample = sample_work(plan, location(run.store), run.blocks)
        self._tried = first_questions(plan, run.blocks, list(self._missing))
        self._board = _board()
        self._stream = self._pass(self._sampled() or self._everything(), gate=self._board, until=run.until)

    def __enter__(self) -> "_Wave":
        return self

    def __exit__(self, *_: object) -> None:
        """Where a pass is still under way nobody waits for it, but it must end before its connection to Ray does."""
        if self._stream.running():
            _kill(self._actors)
            self._board.open.remote(None)
            self._stream.wait(END_SECONDS)

    def preflight(self) -> bool:
        """Ends the run where a member cannot answer at all, say because its template does not fit its model; False
        where the deadline comes first."""
        run, seconds = self._run, self._plan.config.ray.engine_start_seconds
        run.progress.note("preflight: one question per task")
        ends = min(time.time() + seconds, run.until or inf)
        for _ in self._tried:
            tally = self._stream.tried(ends - time.time())
            if tally is None:
                if run.until is None:
                    raise ModelError(f"the preflight took over {seconds:g} s: raise ray.engine_start_seconds")
                return False
            _judge(tally, run.progress)
        asked = [row for part in self._tried for row in part.rows or []]
        self._board.open.remote([row for row in asked if row not in run.tally.errors] + self._given_up())
        return True

    def solve(self, last: bool) -> None:
        """last: no wave follows, whose questions would have to be answered once before what is left here."""
        run = self._run
        if self._uncalibrated:
            with run.timed("calibrate"):
                self._calibrate()
        with run.timed("solve"):
            if self._missing:  # else all of it was the sample
                self._finish(self._missing)
            if self._uncalibrated:
                before, self._plan = self._plan, self._calibrated()
                # One of the sample failed at first: the rest is held to the new gate.
                if not _same(before, self._plan) and not self._late():
                    self._stream = self._pass(self._everything(), until=run.until)
                    self._stream.join()
            if last and run.deadline is not None and not self._late():
                self._promising(run.deadline)

    def _calibrate(self) -> None:
        """The sample is asked, and the plan calibrated on what came of it."""
        if self._sample.parts:
            self._run.progress.note("calibrating the votes on a sample")
            self._finish(self._sample.tasks)
        self._plan = self._calibrated()
        for task, calibration in self._plan.calibrations.items():
            if calibration.certificate is not None:
                self._run.progress.note(f"{task}: {calibration.certificate.sentence()}")
        self._missing -= self._sample.tasks
        if self._sample.parts and self._missing and not self._late():
            self._board = _board()
            self._stream = self._pass(self._everything(), until=self._run.until)

    def _late(self) -> bool:
        return self._run.until is not None and time.time() >= self._run.until

    def _promising(self, deadline: Deadline) -> None:
        """All questions have an answer: what is left of their plans."""
        items = by_promise(self._plan, location(self._run.store), self._run.blocks, self._stages)
        if items and time.time() < deadline.until:
            self._board = _board()
            self._stream = self._pass([item.parts for item in items], until=deadline.until, whole=True)
            self._finish(sum((item.tasks for item in items), Counter()), deadline.until)

    def _finish(self, totals: Counter[str], until: float | None = None) -> None:
        with self._run.watch.counting(self._board, totals, until or self._run.until):
            self._stream.join()

    def _pass(
        self, items: Sequence[Sequence[Part]], gate: Any = None, until: float | None = None, whole: bool = False
    ) -> Stream:
        """gate: closed until the preflight is over, which then comes first. whole: of each question all of its plan,
        else with a deadline only as much as makes a decision possible."""
        run = self._run
        job = Job(
            # Nobody there draws samples: their populations would be most of what is sent.
            plan=self._plan._replace(populations={}), store=run.store, engines=self._actors, board=self._board,
            cwd=os.getcwd(), stages=self._stages, tokens=self._tokens, tasks=tuple(self._missing), gate=gate,
            first=run.deadline is not None and not whole, until=until, skip=self._given_up(),
        )  # fmt: skip
        return Stream(self._data, job, items, run.tally, run.progress, self._tried if gate else ())

    def _given_up(self) -> list[int]:
        """Rows that engines died of: each further time would cost as many engine starts."""
        return [row for row, (kind, _) in self._run.tally.errors.items() if kind == "PoisonError"]

    def _sampled(self) -> list[list[Part]]:
        parts = [(part, len(part.rows or ())) for part in self._sample.parts]
        return shares(parts, self._stages)

    def _everything(self) -> list[list[Part]]:
        return everything(self._plan, self._blocks, self._stages)

    def _calibrated(self) -> Plan:
        run = self._run
        return calibrated(self._plan, location(run.store), run.blocks, partly=True, failed=run.tally.errors)


def _close(actors: Mapping[str, list[Any]], wait: bool) -> None:
    """wait: until their memory is free."""
    closing = [actor.close.remote() for each in actors.values() for actor in each]
    if wait:
        ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        _kill(actors)


def _kill(actors: Mapping[str, list[Any]]) -> None:
    for actor in (actor for each in actors.values() for actor in each):
        ray.kill(actor)


def _board() -> Any:
    """On the driver's node, with which the run ends anyway: of another one's loss the run must not die."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here, max_concurrency=100_000).remote()


def _tokens_in_flight(plan: Plan, model: str) -> int:
    return tokens_in_flight(plan.config.ray, plan.config.models[model].engine, hardware(plan.devices[model]))


def _stages(plan: Plan, engines: Mapping[str, int]) -> int:
    """Stage actors for these engines: three for each GPU engine, which they must keep full; on a CPU one, because it
    takes its cores from the engine."""
    wanted = plan.config.ray.stage_actors
    if wanted != "auto":
        return wanted
    on_gpus = sum(n for model, n in engines.items() if plan.devices[model] == "cuda")
    return max(1, min(3 * on_gpus, int(ray.cluster_resources().get("CPU", 1))))


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans of the same questions are calibrated alike."""

    def told(plan: Plan) -> dict[str, object]:
        return {
            task: (found.gate, {key: prior.tolist() for key, prior in found.priors.items()})
            for task, found in plan.calibrations.items()
        }

    return told(one) == told(other)


def _await_engines(actors: Mapping[str, list[Any]], seconds: float, run: Pass) -> bool:
    """Until every engine is ready, showing what each is doing; False where the deadline comes first."""
    waiting = {(model, i): a.start.remote() for model, each in actors.items() for i, a in enumerate(each)}
    patience = time.time() + seconds
    while waiting:
        for (model, i), ref in list(waiting.items()):
            try:
                wait_for(ref, 0.3)
                del waiting[model, i]
                run.progress.loading(model, "ready", done=True)
            except GetTimeoutError:
                run.progress.loading(model, run.watch.status(model, i))
            except QuorumError as e:
                raise type(e)(f"model {model}: {e}") from None
            if run.until is not None and time.time() > run.until:
                run.progress.warn(f"model {model} was not ready before the deadline")
                return False
            if time.time() > patience:
                raise ModelError(f"model {model} was not ready after {seconds:g} s: raise ray.engine_start_seconds")
    return True


def _judge(tried: Tally, progress: Progress) -> None:
    """Raises what of a preflight's errors every question would meet; warns of letters that nobody expects."""
    for kind, message in tried.errors.values():
        if kind in FATAL:
            raise by_name(kind)(f"preflight, task {tried.preflight}: {message}")
        progress.warn(f"preflight, task {tried.preflight}: {message}")
    for task, mass in tried.letter_mass.items():
        if mass < 0.1:
            progress.warn(
                f"task {task}: the option letters hold only {mass:.1%} of the "
                "probability: the template probably does not lead the model to answer by letter"
            )
