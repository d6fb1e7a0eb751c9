"""What a stage actor reaches the engines of one model through: who gets which request, and what follows a death.

A request goes to the engine with the least work, and waits here while every engine has enough: what is under way is
bounded in tokens, so that engines stay full, and who is faster gets more.

An engine that dies takes all down that it was working on, and one of those questions may be the cause. So they are
suspects: they are asked again on an engine that does nothing else meanwhile, in groups of the square root of their
number, and after a second death one by one. A question that is alone with its last engine's death is given up. Other
stage actors have suspects of the same engine: only whom the engine has let in answers for its death.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from math import isqrt
from typing import Any, NamedTuple

from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from ensemble.config import RayConfig, Sampling
from ensemble.engine import GenerateReply, ScoreReply, ScoreRequest
from pipelines.cluster import first_line, root_cause
from pipelines.pool import Call, Failure, Generate, Outcome, Score

ENOUGH_TOKENS = 16_384  # in an engine: tens of milliseconds of the fastest one's time, many times what a message takes
AHEAD_TOKENS = 16_384  # of prompts that may wait here for an engine with room: enough for the next messages
MESSAGE_TOKENS = 4096  # of questions that are sent to an engine together: one message costs a millisecond
BACKOFF_SECONDS = (1.0, 30.0)  # between two looks at an engine that is down or silent: the first, and the longest
ABSENT_SECONDS = 20.0  # without a process, after which another engine gets the suspects: Ray needs a few to start one

NO_ENGINE = Failure("EngineError", "every engine of the model is dead: see Ray's logs, then run the same command again")


class Settings(NamedTuple):
    """tokens: that may be under way in one engine from here. retries: of a question whose engine died. start and
    request: the longest waits, in seconds, for an engine and for a reply."""

    tokens: int
    retries: int
    start: float
    request: float

    @staticmethod
    def of(config: RayConfig, tokens: int, stages: int) -> "Settings":
        """The share of one of so many stage actors in an engine with so many tokens in flight."""
        return Settings(-(-tokens // stages), config.retries, config.engine_start_seconds, config.request_seconds)


class Usage:
    """What one member's engines were sent and gave back, in tokens."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.cached_tokens = self.output_tokens = 0

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        counts = dict(vars(self))
        self.__init__()  # type: ignore[misc]
        return counts


class MemberEngine:
    """An `Engine` for one member: its model's client, with a count of its own."""

    def __init__(self, client: "EngineClient") -> None:
        self._client = client
        self.usage = Usage()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        tokens = sum(len(r.prompt) + sum(map(len, r.continuations)) for r in requests)
        replies: list[ScoreReply] = await self._client.ask(Score(requests), tokens)
        self.usage.requests += sum(len(r.continuations) for r in requests)
        self.usage.prompt_tokens += sum(r.prompt_tokens for r in replies)
        self.usage.cached_tokens += sum(r.cached_tokens for r in replies)
        return replies

    async def generate(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> GenerateReply:
        tokens = len(prompt) + sampling.max_tokens
        reply: GenerateReply = await self._client.ask(Generate(prompt, sampling, seed), tokens)
        self.usage.requests += 1
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.cached_tokens += reply.cached_tokens
        self.usage.output_tokens += reply.tokens
        return reply


class _Waiting(NamedTuple):
    """A call that waits for its outcome; deaths: of engines that were working on it."""

    call: Call
    tokens: int
    outcome: "asyncio.Future[Any]"
    deaths: int = 0

    def settle(self, outcome: Outcome) -> None:
        if self.outcome.done():  # its question ran out of time
            return
        if isinstance(outcome, Failure):
            self.outcome.set_exception(outcome.error())
        else:
            self.outcome.set_result(outcome)


class _Engine:
    """One engine as seen from here; outstanding: tokens that are under way."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.outstanding = 0
        self.up, self.gone = True, False
        self.suspects: list[_Waiting] = []
        self.isolating = False


class EngineClient:
    """The engines of one model. All orders of a question come in one call and so reach one engine, whose prefix cache
    they share. What several questions score at the same moment travels in one message of up to MESSAGE_TOKENS."""

    def __init__(self, actors: Sequence[Any], settings: Settings) -> None:
        self._engines = [_Engine(actor) for actor in actors]
        self._settings = settings
        self._queue: deque[_Waiting] = deque()
        self._queued = 0  # tokens in it
        self._wanting = asyncio.Event()
        self._wanting.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = self._met = False

    async def wanting(self) -> None:
        """Until more calls are wanted: those that wait are no more than the next messages."""
        await self._wanting.wait()

    async def ask(self, call: Call, tokens: int) -> Any:
        """The call's reply. Raises EngineError, or what the engine raised."""
        waiting = _Waiting(call, tokens, asyncio.get_running_loop().create_future())
        if not self._met:
            self._met = True
            for engine in self._engines:
                self._start(self._meet(engine))
        self._queue.append(waiting)
        self._count(tokens)
        self._wake()
        try:
            return await waiting.outcome
        finally:  # a call whose question ran out of time makes room too
            self._wake()

    def _count(self, tokens: int) -> None:
        self._queued += tokens
        if self._queued < AHEAD_TOKENS:
            self._wanting.set()
        else:
            self._wanting.clear()

    def _take(self) -> _Waiting:
        self._count(-self._queue[0].tokens)
        return self._queue.popleft()

    def _wake(self) -> None:
        """Once the loop has run what is ready: what comes at the same moment can go together."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._queue:
            if self._queue[0].outcome.done():
                self._take()
                continue
            if all(engine.gone for engine in self._engines):
                self._take().settle(NO_ENGINE)
                continue
            engine = self._least_busy(self._queue[0].tokens)
            if engine is None:
                return
            # An engine that has enough for the time being can wait until a message of scores is full.
            few = isinstance(self._queue[0].call, Score) and self._queued < MESSAGE_TOKENS
            if few and engine.outstanding >= ENOUGH_TOKENS:
                return
            self._start(self._send(engine, self._message(engine)))

    def _least_busy(self, tokens: int) -> _Engine | None:
        """The engine with the least under way, if it has room; one that is asked about suspects only where no other is
        up."""
        up = [e for e in self._engines if e.up and not e.isolating] or [e for e in self._engines if e.up]
        if not up:
            return None
        engine = min(up, key=lambda e: e.outstanding)
        return engine if self._has_room(engine, tokens) else None

    def _has_room(self, engine: _Engine, tokens: int) -> bool:
        return engine.outstanding == 0 or engine.outstanding + tokens <= self._settings.tokens

    def _message(self, engine: _Engine) -> list[_Waiting]:
        """What goes to the engine together: one text, or scores from the front of the queue."""
        message = [self._take()]
        tokens = message[0].tokens
        while self._queue and isinstance(message[-1].call, Score) and isinstance(self._queue[0].call, Score):
            if self._queue[0].outcome.done():
                self._take()
                continue
            tokens += self._queue[0].tokens
            if tokens > MESSAGE_TOKENS or engine.outstanding + tokens > self._settings.tokens:
                break
            message.append(self._take())
        return message

    def _start(self, sending: Any) -> None:
        task = asyncio.get_running_loop().create_task(sending)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    def _send(self, engine: _Engine, message: list[_Waiting], ticket: int | None = None) -> Any:
        """Counted at once, so that the next look sees it; the coroutine does the rest."""
        engine.outstanding += sum(waiting.tokens for waiting in message)
        return self._deliver(engine, message, ticket)

    async def _meet(self, engine: _Engine) -> None:
        """Calls the engine until anything comes back. Ray 2.60 keeps what a process sends to an actor before it knows
        where that is; where it then learns that the actor has no process, it tells so only when more is sent."""
        pause = BACKOFF_SECONDS[0]
        calls: list[asyncio.Future[Any]] = []
        while not calls or not any(call.done() for call in calls):
            calls.append(asyncio.ensure_future(engine.actor.vitals.remote()))
            await asyncio.wait(calls, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            pause = min(2 * pause, BACKOFF_SECONDS[1])
        await asyncio.gather(*calls, return_exceptions=True)

    async def _deliver(self, engine: _Engine, message: list[_Waiting], ticket: int | None) -> None:
        try:
            calls = [waiting.call for waiting in message]
            sent = engine.actor.ask.remote(calls, ticket)
            outcomes: list[Outcome] = await asyncio.wait_for(sent, self._settings.request)
            for waiting, outcome in zip(message, outcomes, strict=True):
                waiting.settle(outcome)
        except RayActorError as e:
            self._died(engine, message, e)
        except Exception as e:
            failure = self._failure(e)
            if failure.type == "ModelError" and not all(other.gone or other is engine for other in self._engines):
                self._cannot_load(engine, message)
            else:
                for waiting in message:
                    waiting.settle(failure)
        finally:
            engine.outstanding -= sum(waiting.tokens for waiting in message)
            self._wake()

    def _failure(self, error: Exception) -> Failure:
        if isinstance(error, TimeoutError):
            seconds = self._settings.request
            return Failure(
                "EngineError", f"no reply from the engine in {seconds:g} s: raise ray.request_seconds, or see its log"
            )
        cause = root_cause(error) if isinstance(error, RayTaskError) else error
        return Failure(type(cause).__name__, str(cause))

    def _cannot_load(self, engine: _Engine, message: list[_Waiting]) -> None:
        """An engine that died while nobody here was asking it, and does not start again: others are to answer."""
        engine.up, engine.gone = False, True
        for waiting in reversed(message):
            self._queue.appendleft(waiting)
            self._count(waiting.tokens)
        self._hand_over(engine)

    def _died(self, engine: _Engine, message: list[_Waiting], error: RayActorError) -> None:
        for waiting in message:
            again = waiting._replace(deaths=waiting.deaths + 1)
            if again.deaths <= self._settings.retries:
                engine.suspects.append(again)
                continue
            times = "once" if again.deaths == 1 else f"{again.deaths} times"
            last = ", the last time alone with it" if len(message) == 1 and again.deaths > 1 else ""
            reason = f"the engine died {times} on this question{last} ({first_line(error)})"
            waiting.settle(Failure("PoisonError", reason))
        if engine.up:
            engine.up = False
            self._start(self._revive(engine))
        elif engine.gone:  # its suspects have been handed over: these follow
            self._hand_over(engine)

    async def _revive(self, engine: _Engine) -> None:
        """Until Ray has started the engine again, or it is given up; its suspects follow."""
        clock, pause = asyncio.get_running_loop().time, BACKOFF_SECONDS[0]
        began = clock()
        while not engine.up and not engine.gone:
            try:
                await asyncio.wait_for(engine.actor.start.remote(), self._settings.start)
                engine.up = True
            except ActorUnavailableError:  # it has no process: not yet, or for want of a node
                engine.gone = clock() - began > self._settings.start
                if clock() - began > ABSENT_SECONDS:
                    self._hand_over(engine)
                await asyncio.sleep(pause)
                pause = min(2 * pause, BACKOFF_SECONDS[1])
            except Exception:  # dead for good, or it cannot load
                engine.gone = True
        if engine.gone:
            self._hand_over(engine)
        self._ask_suspects(engine)
        self._wake()

    def _hand_over(self, engine: _Engine) -> None:
        """The suspects of an engine that is down, to one that is up or, if this one is gone, may come up; to nobody
        where there is none."""
        others = [e for e in self._engines if e.up] or [e for e in self._engines if engine.gone and not e.gone]
        if others:
            heir = min(others, key=lambda e: (len(e.suspects), e.outstanding))
            heir.suspects += engine.suspects
            engine.suspects = []
            self._ask_suspects(heir)
        elif engine.gone:
            for waiting in engine.suspects:
                waiting.settle(NO_ENGINE)
            engine.suspects = []

    def _ask_suspects(self, engine: _Engine) -> None:
        if engine.up and engine.suspects and not engine.isolating:
            engine.isolating = True
            self._start(self._isolate(engine))

    async def _isolate(self, engine: _Engine) -> None:
        """Asks the suspects group by group. Who waits to be let in is not to blame for a death."""
        while engine.suspects and engine.up:
            try:
                ticket = await asyncio.wait_for(engine.actor.reserve.remote(), self._settings.request)
            except RayActorError as e:
                self._died(engine, [], e)
            except Exception as e:
                failure = self._failure(e)
                for waiting in engine.suspects:
                    waiting.settle(failure)
                engine.suspects = []
            else:
                await self._send(engine, self._group(engine), ticket)
        engine.isolating = False
        self._wake()

    def _group(self, engine: _Engine) -> list[_Waiting]:
        """Takes from the suspects those to ask together: as often suspected as the first."""
        engine.suspects = [waiting for waiting in engine.suspects if not waiting.outcome.done()]
        same = [waiting for waiting in engine.suspects if waiting.deaths == engine.suspects[0].deaths]
        size = 1 if same and same[0].deaths >= self._settings.retries else isqrt(len(same))
        group = same[:size]
        engine.suspects = [waiting for waiting in engine.suspects if waiting not in group]
        return group
