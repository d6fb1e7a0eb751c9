"""The engines' client alone: stand-ins for Ray's actors that die, restart or stay away, in virtual time."""

import asyncio
from collections.abc import Callable
from math import inf, isqrt
from random import Random
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from ensemble.config import RayConfig
from ensemble.engine import ScoreReply, ScoreRequest
from ensemble.errors import EngineError
from pipelines.client import EngineClient, Settings
from pipelines.pool import Failure, Gate, Score
from tests.simulation import run

SETTINGS = Settings(tokens=100_000, retries=2, start=1800, request=1800)
NAN, POISON, HANGS = 1, 2, 3  # first token of a prompt
SECONDS = 0.1  # of an answer
LATENCY = Random(0)  # of messages, which overtake each other
UNAVAILABLE_SECONDS = 2.0  # after which Ray 2.60 says that an actor has no process
UNKNOWN_SECONDS = 0.05  # from the first call on, in which a process does not know yet where an actor is


class Standin:
    """One engine actor as the client sees it. load: seconds from a new process to ready. away: from a death to a new
    process; so often as `restarts` says, then never again."""

    def __init__(self, away: float = 3.0, load: float = 30.0, restarts: int = 10, seconds: float = SECONDS) -> None:
        self._away, self._load, self._restarts, self._seconds = away, load, restarts, seconds
        self.called: float | None = None  # for the first time
        self.known = asyncio.Event()  # of what was sent since
        self.deaths = self.under_way = self.most = 0
        self.asked: list[tuple[list[int], bool]] = []  # of each message the questions, and whether it was alone
        self.end: asyncio.Future[None] | None = None
        self._gate, self._ready = Gate(), 0.0

    def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self.end, self._gate = loop.create_future(), Gate()
        self._ready = loop.time() + self._load

    def die(self) -> None:
        self.deaths += 1
        assert self.end is not None
        self.end.set_result(None)
        self.end = None
        if self.deaths <= self._restarts and self._away < inf:
            asyncio.get_running_loop().call_later(self._away, self.begin)

    def __getattr__(self, name: str) -> Any:
        return Remote(self, getattr(type(self), f"remote_{name}"))

    async def remote_vitals(self) -> None:
        pass

    async def remote_start(self) -> None:
        await asyncio.sleep(max(0.0, self._ready - asyncio.get_running_loop().time()))

    async def remote_reserve(self) -> int:
        await self.remote_start()
        return await self._gate.reserve()

    async def remote_ask(self, calls: list[Score], ticket: int | None) -> list[Any]:
        await self.remote_start()
        async with self._gate.shared() if ticket is None else self._gate.alone(ticket):
            prompts = [call.requests[0].prompt for call in calls]
            self.asked.append(([prompt[1] for prompt in prompts], ticket is not None))
            tokens = sum(map(len, prompts)) + len(prompts)
            self.under_way += tokens
            self.most = max(self.most, self.under_way)
            try:
                if any(prompt[0] == POISON for prompt in prompts):
                    await asyncio.sleep(self._seconds / 2)
                    self.die()
                await asyncio.sleep(self._seconds)
                if any(prompt[0] in (POISON, HANGS) for prompt in prompts):
                    await asyncio.get_running_loop().create_future()
            finally:
                self.under_way -= tokens
            return [outcome(prompt) for prompt in prompts]


class Remote:
    def __init__(self, actor: Standin, method: Callable[..., Any]) -> None:
        self._actor, self._method = actor, method

    def remote(self, *args: Any) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(self._call(*args))

    async def _call(self, *args: Any) -> Any:
        """The method's result, unless the process ends before; as Ray does it without task retries. What is sent
        before it is known that there is no process is kept until more is sent."""
        at, actor = asyncio.get_running_loop().time(), self._actor
        actor.called = at if actor.called is None else actor.called
        if at > actor.called + UNKNOWN_SECONDS:
            actor.known.set()
        await asyncio.sleep(LATENCY.random() * 0.01)
        end = actor.end
        if end is None and (actor._restarts < actor.deaths):
            raise ActorDiedError()
        if end is None:
            await actor.known.wait()
            await asyncio.sleep(UNAVAILABLE_SECONDS)
            raise ActorUnavailableError("no process", b"0" * 16)
        work = asyncio.ensure_future(self._method(actor, *args))
        await asyncio.wait([work, end], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        work.cancel()
        raise ActorUnavailableError("the process ended", b"0" * 16)


def outcome(prompt: list[int]) -> Any:
    if prompt[0] == NAN:
        return Failure("EngineError", "not a number")
    return [ScoreReply([float(prompt[1])], len(prompt), 0)]


def call(number: int, kind: int = 0, tokens: int = 100) -> Score:
    return Score([ScoreRequest([kind, number] + [0] * (tokens - 3), [[0]])])


def ask_all(
    engines: list[Standin], kinds: dict[int, int], n: int = 60, settings: Settings = SETTINGS, clients: int = 1
) -> list[Any]:
    """What becomes of so many questions of 100 tokens; `kinds` of some of them. The n-th client asks each n-th."""

    async def main() -> list[Any]:
        for engine in engines:
            engine.begin()
        stages = [EngineClient(engines, settings) for _ in range(clients)]
        asks = [stages[i % clients].ask(call(i, kinds.get(i, 0)), 100) for i in range(n)]
        return await asyncio.gather(*asks, return_exceptions=True)

    return run(main())


def failed(outcomes: list[Any]) -> dict[int, str]:
    """Messages by question; all others have their own answer."""
    for i, found in enumerate(outcomes):
        assert isinstance(found, EngineError) or found[0].logprobs == [i]
    return {i: str(found) for i, found in enumerate(outcomes) if isinstance(found, EngineError)}


@pytest.mark.parametrize("retries", [1, 2, 3])
@pytest.mark.parametrize("engines", [1, 2])
def test_a_poison_question_is_isolated_on_the_engine_that_it_killed(engines, retries):
    actors = [Standin() for _ in range(engines)]
    errors = failed(ask_all(actors, {25: POISON}, settings=SETTINGS._replace(retries=retries)))
    assert list(errors) == [25]
    assert errors[25].startswith(f"the engine died {retries + 1} times on this question, the last time alone with it")
    assert sorted(actor.deaths for actor in actors) == [*[0] * (engines - 1), retries + 1]
    (killed,) = [actor for actor in actors if actor.deaths]
    asked = [(len(numbers), alone) for numbers, alone in killed.asked if 25 in numbers]
    # A message of 4,096 tokens holds 40 questions; what one engine has under way is 60 of them, with two it is 40.
    suspects = {1: 60, 2: 40}[engines]
    assert asked[0] == (40, False)
    assert all(alone for _, alone in asked[1:])
    if retries > 1:
        assert 1 < asked[1][0] <= isqrt(suspects)
    assert asked[-1][0] == 1


def test_questions_that_are_not_to_blame_die_twice_at_most():
    actor = Standin()
    ask_all([actor], {25: POISON})
    often = [sum(i in numbers for numbers, _ in actor.asked) for i in range(60)]
    assert often[25] == 3
    # the first batch, the group with the poison, alone: nobody else is asked more often
    assert max(often) == 3
    assert sum(times == 3 for times in often) <= isqrt(60)


def test_who_waits_for_another_stage_actors_suspects_is_not_to_blame():
    """Questions of actors that have one each, beside six that kill the engine: often suspected, and never to blame."""
    actor = Standin(restarts=50)

    async def main() -> list[Any]:
        actor.begin()
        stages = [EngineClient([actor], SETTINGS) for _ in range(7)]
        asks = [stages[min(i, 6)].ask(call(i, POISON if i >= 6 else 0), 100) for i in range(12)]
        return await asyncio.gather(*asks, return_exceptions=True)

    assert list(failed(run(main()))) == list(range(6, 12))
    assert actor.deaths > 6


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("clients", [2, 8])
def test_one_poison_question_costs_three_deaths_however_many_stage_actors_there_are(engines, clients):
    actors = [Standin() for _ in range(engines)]
    errors = failed(ask_all(actors, {25: POISON}, n=80, clients=clients))
    assert list(errors) == [25]
    assert sum(actor.deaths for actor in actors) == 3


def test_several_poison_questions_cost_three_deaths_each_at_most():
    actors = [Standin(), Standin()]
    errors = failed(ask_all(actors, {7: POISON, 25: POISON, 26: POISON}))
    assert sorted(errors) == [7, 25, 26]
    assert sum(actor.deaths for actor in actors) <= 9


def test_without_retries_what_was_under_way_is_given_up_and_the_rest_is_answered():
    actor = Standin()
    errors = failed(ask_all([actor], {0: POISON}, settings=SETTINGS._replace(tokens=2000, retries=0)))
    assert list(errors) == list(range(20))
    assert errors[1].startswith("the engine died once on this question (")
    assert actor.deaths == 1


def test_not_a_number_concerns_one_question_and_nobody_is_asked_twice():
    actor = Standin()
    errors = failed(ask_all([actor], {25: NAN}))
    assert errors == {25: "not a number"}
    assert sorted(i for numbers, _ in actor.asked for i in numbers) == list(range(60))


def test_suspects_of_an_engine_without_a_node_are_isolated_on_another():
    lost, other = Standin(away=inf), Standin(seconds=10.0)

    async def main() -> tuple[list[Any], float]:
        for actor in (lost, other):
            actor.begin()
        stage = EngineClient([lost, other], SETTINGS)
        asks = [asyncio.ensure_future(stage.ask(call(i), 100)) for i in range(60)]
        await asyncio.sleep(30.05)  # loaded and at work
        lost.die()
        return await asyncio.gather(*asks), asyncio.get_running_loop().time()

    outcomes, seconds = run(main())
    assert failed(outcomes) == {}
    suspects = {i for numbers, _ in lost.asked for i in numbers}
    assert suspects
    groups = [numbers for numbers, alone in other.asked if alone]
    assert {i for numbers in groups for i in numbers} == suspects
    assert max(map(len, groups)) <= isqrt(len(suspects))
    assert seconds < 200  # not the half hour that an engine may take to start


@pytest.mark.parametrize("n", [2, 60])
def test_an_engine_that_was_lost_before_the_first_question_keeps_nothing(n):
    lost, other = Standin(), Standin(load=0.0)

    async def main() -> tuple[list[Any], float]:
        other.begin()
        stage = EngineClient([lost, other], SETTINGS._replace(tokens=300))
        outcomes = await asyncio.gather(*(stage.ask(call(i), 100) for i in range(n)))
        return outcomes, asyncio.get_running_loop().time()

    outcomes, seconds = run(main())
    assert failed(outcomes) == {}
    assert seconds < 60


def test_a_question_that_kills_any_engine_is_given_up_after_as_many_deaths_elsewhere():
    actors = [Standin(away=inf), Standin()]
    errors = failed(ask_all(actors, {0: POISON}))
    assert list(errors) == [0]
    assert [actor.deaths for actor in actors] == [1, 2]


@pytest.mark.parametrize(
    ("engines", "poison"),
    [
        ([Standin(restarts=0)], {0: POISON}),
        ([Standin(away=inf)], {0: POISON}),  # pending for ever: Ray has no node for it
        ([Standin(restarts=0), Standin(away=inf)], {0: POISON, 59: POISON}),
        ([Standin(restarts=1, load=0.0), Standin(restarts=0, load=0.0)], dict.fromkeys(range(60), POISON)),
    ],
)
def test_without_engines_all_that_is_left_fails_and_nothing_waits(engines, poison):
    errors = failed(ask_all(engines, poison, settings=SETTINGS._replace(tokens=3000)))
    assert len(errors) == 60
    assert {text.split(" (")[0] for text in errors.values()} == {
        "every engine of the model is dead: see Ray's logs, then run the same command again"
    }


def test_an_engine_that_comes_back_late_works_again():
    actor = Standin(away=600.0)
    assert list(failed(ask_all([actor], {25: POISON}))) == [25]


def test_no_reply_is_an_error_of_the_message_that_was_sent():
    errors = failed(ask_all([Standin()], {0: HANGS}, n=3, settings=SETTINGS._replace(request=40)))
    assert list(errors) == [0, 1, 2]
    assert "no reply from the engine in 40 s: raise ray.request_seconds" in errors[0]


def test_questions_that_nobody_waits_for_are_not_asked_and_block_nobody():
    actor = Standin(load=0.0)

    async def main() -> Any:
        actor.begin()
        stage = EngineClient([actor], SETTINGS._replace(tokens=300))
        asks = [asyncio.ensure_future(stage.ask(call(i), 100)) for i in range(9)]
        await asyncio.sleep(SECONDS / 2)  # three are under way, six wait
        for i in (1, 3, 4, 6):
            asks[i].cancel()
        return await asyncio.gather(*asks, return_exceptions=True)

    outcomes = run(main())
    assert [i for i, found in enumerate(outcomes) if not isinstance(found, asyncio.CancelledError)] == [0, 2, 5, 7, 8]
    assert sorted(i for numbers, _ in actor.asked for i in numbers) == [0, 1, 2, 5, 7, 8]


def test_suspects_that_nobody_waits_for_are_let_go():
    actor = Standin()

    async def main() -> list[Any]:
        actor.begin()
        stage = EngineClient([actor], SETTINGS)
        asks = [asyncio.ensure_future(stage.ask(call(i, POISON if i < 2 else 0), 100)) for i in range(9)]
        await asyncio.sleep(31)
        for i in range(8):
            asks[i].cancel()
        return [await asks[8], await stage.ask(call(9), 100)]

    assert [reply[0].logprobs for reply in run(main())] == [[8.0], [9.0]]
    assert actor.deaths == 1


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("bound", [50, 1000, 9000])
def test_what_is_under_way_is_bounded_and_the_bound_is_used(clients, bound):
    actors = [Standin(load=0.0), Standin(load=0.0)]
    config = RayConfig()
    settings = Settings.of(config, bound, clients)
    assert bound <= settings.tokens * clients < bound + clients
    assert settings[1:] == (config.retries, config.engine_start_seconds, config.request_seconds)
    assert failed(ask_all(actors, {}, n=600, settings=settings, clients=clients)) == {}
    for actor in actors:  # a question larger than the bound goes alone; each client's share is whole questions
        assert max(bound - 100 * clients, 100) <= actor.most <= max(bound, 100 * clients)
