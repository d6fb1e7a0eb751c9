"""What the driver sees of a run under way: questions that are done, and what each engine does."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from ensemble import idle
from ensemble.vitals import Vitals
from pipelines.progress import Progress

LOOK_SECONDS = 0.5


class Board:
    """An actor between the driver and the stage actors: it counts finished questions, and opens the gate to them."""

    def __init__(self) -> None:
        self._done: Counter[tuple[str, bool]] = Counter()
        self._gate: asyncio.Future[list[int] | None] = asyncio.get_running_loop().create_future()

    async def open(self, done: list[int] | None) -> None:
        """done: rows that are not to be asked (again); None tells those who wait that there is nothing left to do."""
        if not self._gate.done():
            self._gate.set_result(done)

    async def opened(self) -> list[int] | None:
        """What `open` was told, once it was called."""
        return await asyncio.shield(self._gate)

    async def add(self, done: Counter[tuple[str, bool]]) -> None:
        self._done.update(done)

    async def read(self) -> Counter[tuple[str, bool]]:
        """(task, failed) -> questions."""
        return self._done


class Watch:
    """While open, a thread looks at the engines and at the board and tells the live view.

    lives: the last vitals of each engine's lives, by (model, replica, pid). waves: begin and end of each wave of
    engines, epoch seconds. gpus: of the cluster.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.lives: dict[tuple[str, int, int], Vitals] = {}
        self.waves: list[tuple[float, float]] = []
        self.gpus = 0
        self._actors: dict[tuple[str, int], Any] = {}
        self._asked: dict[tuple[str, int], Any] = {}
        self._heard: dict[tuple[str, int], tuple[float, Vitals]] = {}
        self._board: Any = None
        self._end, self._looking = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @contextlib.contextmanager
    def wave(self, engines: Mapping[str, list[Any]]) -> Iterator[None]:
        """Looks at these engines, by model."""
        self._asked, self._heard = {}, {}
        self._actors = {(model, i): actor for model, actors in engines.items() for i, actor in enumerate(actors)}
        self.waves.append((time.time(), time.time()))
        try:
            yield
        finally:
            self._look()
            self.waves[-1] = (self.waves[-1][0], time.time())
            self._actors = {}

    @contextlib.contextmanager
    def counting(self, board: Any, totals: Counter[str], until: float | None) -> Iterator[None]:
        """Shows the board's counts, of so many questions per task."""
        self._progress.start(totals, until)
        self._board = board
        try:
            yield
        finally:
            self._board = None
            self._show(board)

    def status(self, model: str, replica: int) -> str | None:
        """What an engine says that it is doing; None where it has been too busy to say, as when it loads weights."""
        at, vitals = self._heard.get((model, replica), (0.0, None))
        return vitals.status if vitals and time.time() - at < 3 * LOOK_SECONDS else None

    def facts(self) -> dict[str, object]:
        """For the manifest: what each engine did, and where the device seconds went; empty where none started."""
        if not self.waves:
            return {}
        span = (self.waves[0][0], self.waves[-1][1])
        return idle.facts(list(self.lives.values()), self.gpus, span, self.waves)

    def _watch(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception):  # a view that fails must not end the run; the run says what is wrong
                self._look()
                if (board := self._board) is not None:
                    self._show(board)

    def _look(self) -> None:
        """One question to each engine is under way at a time: an engine that loads answers them all when it is done."""
        with self._looking:  # the thread, or the driver at a wave's end
            for key, actor in self._actors.items():
                if key not in self._asked:
                    self._asked[key] = actor.vitals.remote()
            if not self._asked:
                return
            ready, _ = ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=LOOK_SECONDS / 2)
            for key in [key for key, ref in self._asked.items() if ref in ready]:
                try:
                    vitals: Vitals = ray.get(self._asked.pop(key))
                except ActorUnavailableError:  # it is being restarted
                    continue
                except RayActorError:  # given up
                    if key not in self._heard:
                        continue
                    vitals = self._heard.pop(key)[1]._replace(status="dead")
                else:
                    self._heard[key] = time.time(), vitals
                self.lives[vitals.model, vitals.replica, vitals.pid] = vitals
            self._progress.engines([vitals for _, vitals in self._heard.values()])

    def _show(self, board: Any) -> None:
        with contextlib.suppress(RayError):
            self._progress.update(ray.get(board.read.remote(), timeout=5))
