"""Where the device seconds went: cases worked by hand, and what holds of any."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.idle import CAUSES, account, facts, histories, sentence
from ensemble.vitals import Vitals
from tests.lives import life


def of(**seconds: float) -> dict[str, float]:
    return {"busy": 0.0, **dict.fromkeys(CAUSES, 0.0)} | {k.replace("_", " "): v for k, v in seconds.items()}


WHOLE = [(0.0, 100.0)]
CASES = {
    "one engine on one GPU": (
        [life("m", 5, 25, 99, first=30, last=90, busy=50)],
        1,
        WHOLE,
        of(between=5, loading=20, before_work=5, busy=50, starved=10, tail=10),
    ),
    "two GPUs of four by tensor parallel": (
        [life("m", 0, 20, 99, gpus=2, first=20, last=100, busy=80)],
        4,
        WHOLE,
        of(loading=40, busy=160, unused=200),
    ),
    "a straggler ends the run": (
        [
            life("m", 0, 10, 99, first=10, last=60, busy=50),
            life("m", 0, 10, 99, replica=1, first=10, last=100, busy=90),
        ],
        2,
        WHOLE,
        of(loading=20, busy=140, tail=40),
    ),
    "killed at 40, ready again at 65": (
        [
            life("m", 0, 10, 40, first=10, last=38, busy=28, pid=7),
            life("m", 45, 65, 99, first=66, last=100, busy=34, pid=8),
        ],
        1,
        WHOLE,
        of(loading=10, busy=62, starved=2, restart=25, before_work=1),
    ),
    "killed at 40 while it loaded": (
        [life("m", 0, None, 40), life("m", 45, 65, 99, first=65, last=100, busy=35, pid=2)],
        1,
        WHOLE,
        of(loading=40, restart=25, busy=35),
    ),
    "given up at 40": (
        [life("m", 0, 10, 40, first=10, last=40, busy=30, status="dead")],
        1,
        WHOLE,
        of(loading=10, busy=30, restart=60),
    ),
    "nothing to do": ([life("m", 0, 10, 99)], 1, WHOLE, of(loading=10, before_work=90)),
    "not ready by the end": ([life("m", 20, None, 90)], 1, WHOLE, of(between=20, loading=80)),
    "two models in waves on one GPU": (
        [
            life("a", 2, 12, 50, first=12, last=45, busy=33),
            life("b", 55, 70, 99, first=70, last=100, busy=30),
        ],
        1,
        [(2, 50), (52, 100)],
        of(between=2 + 2 + 3, loading=25, busy=63, tail=5),
    ),
    "the second wave leaves a GPU": (
        [
            life("a", 0, 10, 50, first=10, last=50, busy=40),
            life("a", 0, 10, 50, replica=1, first=10, last=50, busy=40),
            life("b", 50, 70, 99, first=70, last=100, busy=30),
        ],
        2,
        [(0, 50), (50, 100)],
        of(loading=40, busy=110, unused=50),
    ),
    "an engine that stays for the second wave": (
        [
            life("a", 0, 10, 99, first=10, last=40, busy=30),
            life("b", 50, 70, 99, first=70, last=100, busy=30),
        ],
        2,
        [(0, 50), (50, 100)],
        of(loading=30, busy=60, tail=60, unused=50),
    ),
    "two engines on CPU, where GPUs do not count": (
        [
            life("m", 0, 0, 99, gpus=0, first=0, last=100, busy=90),
            life("m", 0, 0, 99, gpus=0, replica=1, first=0, last=100, busy=100),
        ],
        8,
        WHOLE,
        of(busy=190, starved=10),
    ),
    "clocks that differ by a little": (
        [
            life("a", 0.05, 10, 50.05, first=10, last=50.05, busy=40.05),
            life("b", 49.95, 60, 99.9, first=60, last=100.05, busy=40.05),
        ],
        1,
        [(0, 50), (50, 100)],
        of(loading=9.95 + 10.05, busy=80.0, between=0.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_device_seconds_of_cases_worked_by_hand(case: str):
    lives, gpus, waves, expected = CASES[case]
    found = account(lives, gpus, (0, 100), waves)
    assert found == pytest.approx(expected, abs=1e-6)


@st.composite
def pools(draw: Any) -> tuple[list[Vitals], int]:
    """Engines of two GPUs at most each, whose lives follow each other, in no order."""
    second = st.floats(0, 100)
    lives = []
    for replica in range(draw(st.integers(1, 3))):
        gpus = draw(st.integers(0, 2))
        moments = sorted(draw(st.lists(second, min_size=5, max_size=15)))
        for pid, start in enumerate(range(0, len(moments) - 4, 5)):
            created, ready, first, last, at = moments[start : start + 5]
            known = draw(st.integers(0, 2))
            lives.append(
                life("m", created, ready if known else None, at, replica=replica, gpus=gpus, pid=pid,
                     first=first if known == 2 else None, last=last if known == 2 else None,
                     busy=(last - first) * draw(st.floats(0, 1)) if known == 2 else 0.0)
            )  # fmt: skip
    return draw(st.permutations(lives)), draw(st.integers(0, 9))


@given(pools())
def test_device_seconds_add_up_and_none_is_negative(pool: tuple[list[Vitals], int]):
    lives, gpus = pool
    span = (10.0, 90.0)
    found = account(lives, gpus, span)
    devices = sum(found.values()) / 80
    assert devices == pytest.approx(round(devices))
    assert min(found.values()) > -1e-6
    assert round(devices) >= (gpus if any(v.gpus for v in lives) else 0)
    assert all(
        sum(one.seconds.values()) == pytest.approx(one.window[1] - one.window[0]) for one in histories(lives, span)
    )


def test_the_manifest_tells_each_life_and_the_printed_line_the_whole():
    done = {"requests": 960, "prompt_tokens": 90_000, "cached_tokens": 72_000, "output_tokens": 10_000}
    lives = [
        life("m", 0, 10, 40, first=10, last=40, busy=30, pid=7, **done),
        life("m", 45, 60, 99, first=60, last=100, busy=40, pid=8, memory_gib=20.123),
        life("m", 0, 10, 99, replica=1, first=10, last=80, busy=70),
    ]
    told = facts(lives, 2, (0, 100), [(0, 100)])
    first, second, third = told["engines"]
    assert first["seconds"] == {"busy": 30, "loading": 10}
    assert first["cached_share"] == 0.8
    assert first["tokens_per_second"] == 3333.3
    assert second["seconds"] == {"busy": 40, "restart": 20}
    assert (second["memory_gib"], third["replica"], third["seconds"]["tail"]) == (20.12, 1, 20)
    assert told["idle"]["devices"] == 2
    # Of 200 s: busy 140, loading 20, restart 20, tail 20.
    assert sentence(told["idle"]) == "GPUs busy 70% of 100 s x 2; idle: loading 10%, restart 10%, tail 10%"
    cpu = facts([life("m", 0, 0, 9, gpus=0, first=0, last=10, busy=10)], 0, (0, 10), [])
    assert sentence(cpu["idle"]) == "Engines busy 100% of 10 s x 1"
