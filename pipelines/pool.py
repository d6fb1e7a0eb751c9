"""Engine actors: each one engine in a process of its own, restarted by Ray where it dies."""

import asyncio
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ensemble.config import ModelConfig, Sampling
from ensemble.engine import GenerateReply, ScoreReply, ScoreRequest
from ensemble.errors import by_name
from ensemble.placement import cpu_share, pack
from ensemble.running import start_engine
from ensemble.vitals import Recorder, Vitals
from pipelines.cluster import Node, enter
from pipelines.metrics import Exporter

RESTARTS = 10  # of one engine in a run
LEASE_SECONDS = 10.0  # for who reserved an engine to ask it


class EngineSpec(NamedTuple):
    """All that an engine actor needs; plain data. stall: seconds without progress after which it is restarted."""

    model: str
    config: ModelConfig
    device: str
    cwd: str
    stall: float

    @property
    def gpus(self) -> int:
        return self.config.engine.tensor_parallel_size if self.device == "cuda" else 0


class Score(NamedTuple):
    """A question's prompts, in the sequence in which they share the longest prefixes."""

    requests: Sequence[ScoreRequest]


class Generate(NamedTuple):
    prompt: Sequence[int]
    sampling: Sampling
    seed: int


Call = Score | Generate


class Failure(NamedTuple):
    """An error as plain data: its type keeps its name on the way through Ray."""

    type: str
    message: str

    def error(self) -> Exception:
        kind = by_name(self.type)
        return kind(self.message if kind.__name__ == self.type else f"{self.type}: {self.message}")


Outcome = list[ScoreReply] | GenerateReply | Failure


class Gate:
    """Lets many in together, or one alone; who wants to be alone goes first."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = self._wishes = 0
        self._tickets = secrets.randbits(62)  # those of the process before must not be taken for new ones
        self._holder = 0  # the ticket of who has it alone
        self._lease: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        if self._holder or self._wishes:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._holder and not self._wishes)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            await self._tell()

    async def reserve(self) -> int:
        """A ticket for `alone`, once nobody is inside; nobody else gets in until it is used, or LEASE_SECONDS."""
        self._wishes += 1
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._holder and not self._inside)
                self._tickets += 1
                self._holder = self._tickets
        finally:
            self._wishes -= 1
        self._lease = asyncio.create_task(self._lapse())
        return self._holder

    @asynccontextmanager
    async def alone(self, ticket: int) -> AsyncIterator[None]:
        if ticket != self._holder:  # it has lapsed
            await self.reserve()
        assert self._lease is not None, "who holds it has a lease"
        self._lease.cancel()
        try:
            yield
        finally:
            self._holder = 0
            await self._tell()

    async def _lapse(self) -> None:
        await asyncio.sleep(LEASE_SECONDS)
        self._holder = 0
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class EngineActor:
    """One engine. It starts at the first call, so a restarted actor starts itself."""

    def __init__(self, spec: EngineSpec, replica: int) -> None:
        self._spec = spec
        self._engine: Any = None
        self._starting, self._gate = asyncio.Lock(), Gate()
        self._recorder, self._exporter = Recorder(spec.model, replica, spec.gpus), Exporter(spec.model, replica)
        threading.Thread(target=self._guard, daemon=True).start()

    async def start(self) -> None:
        async with self._starting:
            if self._engine is None:
                enter(self._spec.cwd)
                spec = self._spec
                self._engine = await start_engine(spec.model, spec.config, spec.device, self._recorder)

    async def vitals(self) -> Vitals:
        """What the engine does; Ray's metrics get it too."""
        vitals = self._recorder.snapshot()
        self._exporter.update(vitals)
        return vitals

    async def reserve(self) -> int:
        """A ticket to ask alone, once nothing else is under way."""
        await self.start()
        return await self._gate.reserve()

    async def ask(self, calls: Sequence[Call], ticket: int | None = None) -> list[Outcome]:
        """The calls' outcomes once all are there. With a ticket the engine does nothing else meanwhile."""
        await self.start()
        async with self._gate.shared() if ticket is None else self._gate.alone(ticket):
            with self._recorder.working(len(calls)):
                return await asyncio.gather(*map(self._outcome, calls))

    async def close(self) -> None:
        """Ends the engine's processes and frees its memory."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)

    async def _outcome(self, call: Call) -> Outcome:
        try:
            if isinstance(call, Score):
                return await self._engine.score(call.requests)  # type: ignore[no-any-return]
            return await self._engine.generate(*call)  # type: ignore[no-any-return]
        except Exception as e:
            return Failure(type(e).__name__, str(e))

    def _guard(self) -> None:
        """Ends the process of an engine that hangs, so that Ray starts it again."""
        while self._recorder.stalled() < self._spec.stall:
            time.sleep(min(1.0, self._spec.stall / 4))
        os._exit(1)


def start_engines(
    specs: Sequence[EngineSpec], engines: Mapping[str, int], nodes: Sequence[Node]
) -> dict[str, list[Any]]:
    """Engine actors per model, so many of each, all starting at once, on the nodes that `placement.pack` gives them:
    left to itself Ray may put small engines where then no room is left for a large one."""
    actor = ray.remote(EngineActor)
    wanted = [(spec, replica) for spec in specs for replica in range(engines[spec.model])]
    on_gpus = [(spec.model, replica) for spec, replica in wanted if spec.gpus]
    places = pack([spec.gpus for spec, _ in wanted if spec.gpus], [node.gpus for node in nodes])
    assert places is not None, "a wave fits its GPUs"
    node_of = {engine: nodes[place].id for engine, place in zip(on_gpus, places, strict=True)}
    cpus = cpu_share(len(wanted) - len(on_gpus), ray.cluster_resources().get("CPU", inf))  # none: they are to come
    started: dict[str, list[Any]] = {spec.model: [] for spec in specs}
    for spec, replica in wanted:
        options: dict[str, Any] = {"num_cpus": cpus}
        if spec.gpus:  # soft: where its node is lost it may start on another one
            near = NodeAffinitySchedulingStrategy(node_of[spec.model, replica], soft=True)
            options = {"num_gpus": spec.gpus, "scheduling_strategy": near}
        started[spec.model].append(
            actor.options(max_concurrency=10_000, max_restarts=RESTARTS, max_task_retries=0, **options).remote(
                spec, replica
            )
        )
    return started
