"""The inference phase: engines start, one question per task is tried, then Ray Data streams all that is missing.

Where the models do not fit the GPUs at once this happens in waves, each with some of the models.
"""

import importlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError

from ensemble import costs, placement
from ensemble.errors import EngineError, ModelError, QuorumError
from ensemble.files import location
from ensemble.known import calibrated, calibrated_tasks
from ensemble.plan import Plan
from ensemble.tally import Tally
from pipelines.cluster import Node, await_gpus, connect, gpu_nodes, total, wait_for
from pipelines.deadline import Deadline, by_promise
from pipelines.pool import EngineSpec, start_engines
from pipelines.progress import Progress
from pipelines.sample import first_questions, sample_work
from pipelines.stage import Job, preflight
from pipelines.stream import STAGE_CPUS, by_name, stream, stream_until
from pipelines.watch import Board, Watch
from pipelines.work import everything, shares

CLOSE_SECONDS = 60.0  # for an engine to give its GPU's memory back before the next wave
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


def infer(plan: Plan, missing: Counter[str], run: Pass) -> None:
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
        waves = placement.place(plan, costs.needs(plan, run.blocks, missing), [node.gpus for node in nodes])
        with run.watch:
            for number, wave in enumerate(waves, start=1):
                names = ", ".join(f"{n} x {model}" for model, n in wave.engines.items())
                if len(waves) > 1:
                    run.progress.note(f"wave {number} of {len(waves)}: {names}")
                here = plan if len(waves) == 1 else plan._replace(here=frozenset(wave.engines))
                if not _wave(here, wave.engines, nodes, missing, run, last=number == len(waves)):
                    return
        run.tally.computed = min(run.tally.computed, missing.total())  # a question may be asked in several waves
    except RayError as e:
        raise EngineError(
            f"Ray: {type(e).__name__}: {' '.join(str(e).split())[:300]}; run the same command to go on"
        ) from e
    finally:
        ray.shutdown()


def _wave(
    plan: Plan, engines: Mapping[str, int], nodes: Sequence[Node], missing: Counter[str], run: Pass, last: bool
) -> bool:
    """With so many engines of each model, all that is missing of them; False where the deadline comes first."""
    config = plan.config
    missing = Counter({task: n for task, n in missing.items() if set(plan.models([task])) & engines.keys()})
    specs = [EngineSpec(m, config.models[m], plan.devices[m], os.getcwd(), config.ray.stall_seconds) for m in engines]
    actors = start_engines(specs, engines, nodes)
    with run.watch.wave(actors):
        board = ray.remote(num_cpus=0)(Board)
        stages = _stages(plan, engines)
        # Nobody there draws samples: their populations would be most of what is sent.
        sent = plan._replace(populations={})
        first = run.deadline is not None
        job = Job(sent, run.store, actors, board.remote(), os.getcwd(), stages, first, run.until)
        # Sent before the engines are ready: its imports and tokenizers load meanwhile.
        asked = first_questions(plan, run.blocks, list(missing))
        tried = ray.remote(num_cpus=STAGE_CPUS)(preflight).remote(job, asked)
        data = importlib.import_module("ray.data")  # takes seconds, spent while the engines load
        with run.timed("engines"):
            ready = _await_engines(actors, config.ray.engine_start_seconds, run)
        with run.timed("preflight"):
            if not ready or not _take_tried(tried, config.ray.engine_start_seconds, run):
                return False
        _solve(data, plan, job, missing, board, run)
        closing = [actor.close.remote() for each in actors.values() for actor in each]
        if not last:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
            for actor in (actor for each in actors.values() for actor in each):
                ray.kill(actor)
    return True


def _solve(data: Any, plan: Plan, job: Job, missing: Counter[str], board: Any, run: Pass) -> None:
    """The sample that votes are calibrated on, then everything, then with a deadline what promises most."""
    uncalibrated = [task for task in calibrated_tasks(plan) if task not in plan.calibrations and plan.whole(task)]
    if sampled := bool(uncalibrated):
        with run.timed("calibrate"):
            plan, missing = _calibrate(data, plan, job, missing, run)
        job = job._replace(plan=plan._replace(populations={}), board=board.remote())
    items = everything(plan, run.blocks, missing, job.stages)
    with run.timed("solve"):
        with run.watch.counting(job.board, missing, run.until):
            stream_until(data, job, items, run.tally, run.progress)
        if sampled:
            again = calibrated(plan, location(run.store), run.blocks, partly=True, failed=run.tally.errors)
            if not _same(again, plan):  # a question of the sample failed at first: the rest is held to the new gate
                job = job._replace(plan=again._replace(populations={}))
                stream(data, job, items, run.tally, run.progress)
        if run.deadline is not None and time.time() < run.deadline.until:
            promising = by_promise(plan, location(run.store), run.blocks)
            job = job._replace(first=False, board=board.remote(), until=run.deadline.until)
            if promising and time.time() < run.deadline.until:
                with run.watch.counting(job.board, sum((item.tasks for item in promising), Counter()), job.until):
                    stream_until(data, job, [item.parts for item in promising], run.tally, run.progress)


def _stages(plan: Plan, engines: Mapping[str, int]) -> int:
    """Stage actors for these engines: two for each GPU engine, which they must keep full; on a CPU one, because it
    takes its cores from the engine."""
    wanted = plan.config.ray.stage_actors
    if wanted != "auto":
        return wanted
    on_gpus = sum(n for model, n in engines.items() if plan.devices[model] == "cuda")
    return max(1, min(2 * on_gpus, int(ray.cluster_resources().get("CPU", 1))))


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans of the same questions are calibrated alike."""

    def told(plan: Plan) -> dict[str, object]:
        return {
            task: (found.gate, {key: prior.tolist() for key, prior in found.priors.items()})
            for task, found in plan.calibrations.items()
        }

    return told(one) == told(other)


def _calibrate(data: Any, plan: Plan, job: Job, missing: Counter[str], run: Pass) -> tuple[Plan, Counter[str]]:
    """The first phase: the sample is asked, and the plan calibrated on what came of it; with what is then left."""
    store = location(run.store)
    work = sample_work(plan, store, run.blocks)
    if work.parts:
        run.progress.note("calibrating the votes on a sample")
        parts = [share for p in work.parts for share in shares(p, len(work.parts), work.tasks.total(), job.stages)]
        with run.watch.counting(job.board, work.tasks, job.until):
            stream_until(data, job, [[part] for part in parts], run.tally, run.progress)
    plan = calibrated(plan, store, run.blocks, partly=True, failed=run.tally.errors)
    for task, calibration in plan.calibrations.items():
        if calibration.certificate is not None:
            run.progress.note(f"{task}: {calibration.certificate.sentence()}")
    return plan, missing - work.tasks


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


def _take_tried(tried: Any, seconds: float, run: Pass) -> bool:
    """Ends the run where a member cannot answer at all, say because its template does not fit its model; False where
    the deadline comes first."""
    run.progress.note("preflight: one question per task")
    try:
        found = wait_for(tried, seconds if run.until is None else max(0.0, run.until - time.time()))
    except GetTimeoutError:
        if run.until is None:
            raise ModelError(f"the preflight took over {seconds:g} s: raise ray.engine_start_seconds") from None
        return False
    for task, tally in found.items():
        for kind, message in tally.errors.values():
            if kind in FATAL:
                raise by_name(kind)(f"preflight, task {task}: {message}")
        mass = tally.letter_mass.get(task, 1.0)
        if mass < 0.1:
            run.progress.warn(
                f"task {task}: the option letters hold only {mass:.1%} of the "
                "probability: the template probably does not lead the model to answer by letter"
            )
        run.tally.add(tally)
    return True
