"""Simulated L4s in virtual time: the pool's balance, scaling and bounds, and the scripted engine itself."""

import asyncio
from functools import cache

import pytest

from benchmarks.competition import rows
from ensemble.config import Sampling
from ensemble.engine import ScoreRequest
from ensemble.errors import EngineError
from ensemble.fake import FakeEngine
from ensemble.presets import CHIPS
from ensemble.prompts import Prompter
from tests.simulation import Demand, Run, Work, demand, prepare, run, simulate

# The competition 50 times takes eight engines 130 s, 10 times one engine 210 s. A text takes 2 s to write and some 5 s
# beside others: what takes much less than a minute ends with engines that wait for the last texts.
TIMES = {8: 50, 1: 10}
EQUAL = (1.0,) * 8
LAMED = (*EQUAL[1:], 0.5)


@pytest.fixture(scope="module", autouse=True)
def prompts_once():
    """The same prompts are made in every simulation: all but the first take them from here."""
    made, letters = {}, Prompter.letters

    def remembered(self, question, order):
        key = question.hash, order
        if key not in made:
            made[key] = letters(self, question, order)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prompter, "letters", remembered)
        yield


@pytest.fixture(scope="module")
def competition(tmp_path_factory):
    """times -> the work, and what it asks of engines; made once."""

    @cache
    def made(times: int) -> tuple[Work, Demand]:
        work = prepare(tmp_path_factory.mktemp("competition"), rows(times))
        return work, demand(work)

    return made


@pytest.fixture(scope="module")
def solved(competition):
    """speeds -> the run with them, made once."""

    @cache
    def found(speeds: tuple[float, ...]) -> Run:
        work, _ = competition(TIMES[len(speeds)])
        done = simulate(work, speeds)
        assert not done.errors
        assert done.computed == work.tasks.total()
        return done

    return found


@pytest.mark.parametrize("engines", [1, 8])
def test_a_mixed_competition_takes_hardly_longer_than_its_compute(solved, competition, engines):
    speeds = EQUAL[:engines]
    done, (_, wanted) = solved(speeds), competition(TIMES[engines])
    assert done.seconds <= 1.05 * wanted.seconds(speeds), done.timeline()


def test_an_engine_at_half_speed_gets_half_the_work(solved, competition):
    done, (_, wanted) = solved(LAMED), competition(TIMES[8])
    assert done.seconds <= 1.10 * wanted.compute / 7.5, done.timeline()


def test_no_engine_has_more_under_way_than_the_preset_says(solved):
    bound = CHIPS["L4"].tokens_in_flight
    for speeds in (EQUAL[:1], EQUAL, LAMED):
        for engine in solved(speeds).engines:
            assert 0 < engine.most <= bound + engine.message


def test_a_small_bound_holds_too(tmp_path):
    few = prepare(tmp_path, rows(1), tokens_in_flight=8000)
    done = simulate(few, EQUAL[:2])
    assert done.computed == few.tasks.total()
    for engine in done.engines:
        assert engine.most <= 8000 + engine.message


def fake(**options) -> FakeEngine:
    """Reads 1,000 tokens a second in batches of 100, writes 100 a second in all and 10 in one text."""
    speed = {"prefill_tokens_per_second": 1000, "decode_tokens_per_second": 100, "decode_seconds_per_token": 0.1}
    return FakeEngine(**speed, max_num_batched_tokens=100, text="a b c d e f g h i j", **options)


def prompt(number: int, tokens: int = 1000) -> list[int]:
    return [number] * tokens


async def text(engine: FakeEngine, number: int) -> float:
    """When it is there."""
    await engine.generate(prompt(number), Sampling(), 0)
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("texts", "options", "seconds"),
    [
        (1, {}, [2.0]),  # 10 steps of 0.1 s that read 100 tokens each, and 10 that write one
        (1, {"speed": 0.5}, [4.0]),
        # The second prompt is read in 11 steps beside the first text, which leaves room for 99 tokens in 10 of them:
        # 1.0 + 10 * (0.099 + 0.01) for the first; then 10 tokens more (at least 0.1 s), and 10 steps.
        (2, {}, [2.09, 3.19]),
        (2, {"max_num_seqs": 1}, [2.0, 4.0]),  # one after the other
    ],
)
def test_a_scripted_engine_takes_the_time_of_its_steps(texts, options, seconds):
    async def main():
        engine = fake(**options)
        return await asyncio.gather(*(text(engine, i) for i in range(texts)))

    assert run(main()) == pytest.approx(seconds)


def test_what_the_prefix_cache_has_takes_no_time():
    async def main():
        engine = fake()
        requests = [ScoreRequest(prompt(1, 160), [[1]]), ScoreRequest(prompt(1, 160), [[1]])]
        replies = await engine.score(requests)
        return [reply.cached_tokens for reply in replies], asyncio.get_running_loop().time()

    cached, seconds = run(main())
    assert cached == [0, 144]  # nine blocks of ten: the last token is always computed
    assert seconds == pytest.approx(0.2)  # 176 tokens in two steps, of which each takes 0.1 s at least


def test_the_prefix_cache_forgets_what_was_used_least_recently():
    async def main():
        engine = fake(cache_tokens=320)
        asked = [prompt(1, 160), prompt(2, 160), prompt(1, 160), prompt(3, 160), prompt(1, 160), prompt(2, 160)]
        return [(await engine.score([ScoreRequest(p, [[1]])]))[0].cached_tokens for p in asked]

    assert run(main()) == [0, 0, 144, 0, 144, 0]


@pytest.mark.parametrize("option", ["poison", "nan_on"])
def test_a_bad_prompt_fails_alone(option):
    async def main():
        engine = FakeEngine(**{option: 7})
        bad, good = (engine.score([ScoreRequest(prompt(token), [[1]])]) for token in (7, 8))
        with pytest.raises(EngineError):
            await bad
        return await good

    assert run(main())[0].prompt_tokens == 1000


def test_an_engine_that_hangs_replies_to_nobody(tmp_path):
    async def main(engine: FakeEngine) -> int:
        calls = [engine.score([ScoreRequest(prompt(token), [[1]])]) for token in (8, 7, 9)]
        done, waiting = await asyncio.wait([asyncio.ensure_future(call) for call in calls], timeout=1000)
        for call in waiting:
            call.cancel()
        return len(done)

    once = str(tmp_path / "hung")
    assert run(main(fake(hang_on=7, once=once))) == 0
    assert run(main(fake(hang_on=7, once=once))) == 3  # the next engine goes on


@pytest.mark.parametrize("option", [{"die_on": 7}, {"die_after": 2}])
def test_an_engine_dies_once(option, tmp_path, monkeypatch):
    class DeadError(Exception):
        pass

    def die(status):
        raise DeadError

    async def main():
        engine = FakeEngine(**option, once=str(tmp_path / "dead"))
        for token in (8, 7):
            await engine.score([ScoreRequest(prompt(token), [[1]])])

    monkeypatch.setattr("ensemble.fake.os._exit", die)
    with pytest.raises(DeadError):
        run(main())
    run(main())


def test_an_engine_starts_as_slowly_as_it_is_told():
    async def main():
        await fake(start_seconds=45.0).start()
        return asyncio.get_running_loop().time()

    assert run(main()) == 45.0
