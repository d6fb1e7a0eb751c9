"""An engine's gate alone, in virtual time: many together, or one alone."""

import asyncio

import pytest

from pipelines.pool import LEASE_SECONDS, Gate
from tests.simulation import run


class Log:
    """Who was inside together, at each entry."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.entries: list[str] = []

    async def visit(self, gate: Gate, name: str, seconds: float = 1.0) -> None:
        async with gate.shared() if name.islower() else gate.alone(await gate.reserve()):
            self.inside.append(name)
            self.entries.append("".join(sorted(self.inside)))
            await asyncio.sleep(seconds)
            self.inside.remove(name)


@pytest.mark.parametrize(
    ("visitors", "entries"),
    [
        ("abc", ["a", "ab", "abc"]),
        ("abAc", ["a", "ab", "A", "c"]),  # who comes after a wish waits for it
        ("Aab", ["A", "a", "ab"]),
        ("AB", ["A", "B"]),
        ("aABbc", ["a", "A", "B", "b", "bc"]),
    ],
)
def test_the_gate_lets_many_in_or_one_alone(visitors, entries):
    log = Log()

    async def main() -> None:
        gate = Gate()
        tasks = []
        for name in visitors:
            tasks.append(asyncio.ensure_future(log.visit(gate, name)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)

    run(main())
    assert log.entries == entries


def test_a_reservation_that_is_not_used_lapses():
    async def main() -> tuple[float, list[str]]:
        log, gate = Log(), Gate()
        ticket = await gate.reserve()
        await log.visit(gate, "a")
        at = asyncio.get_running_loop().time()
        async with gate.alone(ticket):  # too late, and yet alone
            other = asyncio.ensure_future(log.visit(gate, "b"))
            await asyncio.sleep(5)
            assert log.entries == ["a"]
        await other
        return at, log.entries

    at, entries = run(main())
    assert at == pytest.approx(LEASE_SECONDS + 1.0)
    assert entries == ["a", "b"]


def test_whoever_gives_up_waiting_to_be_alone_lets_others_in():
    async def main() -> list[str]:
        log, gate = Log(), Gate()
        first = asyncio.ensure_future(log.visit(gate, "a", 3.0))
        await asyncio.sleep(0.1)
        wish = asyncio.ensure_future(gate.reserve())
        await asyncio.sleep(0.1)
        wish.cancel()
        await asyncio.wait([wish])
        await log.visit(gate, "b")
        await first
        return log.entries

    assert run(main()) == ["a", "ab"]
