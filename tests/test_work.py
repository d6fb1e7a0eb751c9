"""How work is cut and handed out, everything once, to whoever asks, and small at the end; and who has room for it."""

import asyncio
from collections import Counter

import pytest

from pipelines.pool import cpu_share
from pipelines.stream import CALLS, STAGE_CPUS, turns
from pipelines.watch import Board
from pipelines.work import Part, shares

QUESTIONS = 512  # of a block


def questions(part: Part) -> list[tuple[str, int]]:
    """What `pipelines.stage.questions_of` takes of a block of QUESTIONS."""
    k, n = part.share
    return [(part.block, row) for row in range(QUESTIONS)[k::n]]


@pytest.mark.parametrize(("blocks", "stages"), [(1, 1), (1, 6), (6, 6), (40, 24), (3, 24)])
def test_every_question_is_in_one_item_and_no_item_is_large_beside_what_is_left(blocks, stages):
    items = shares([Part(str(i)) for i in range(blocks)], blocks * QUESTIONS, stages)
    found = Counter(row for item in items for row in questions(item))
    assert found == Counter((str(i), row) for i in range(blocks) for row in range(QUESTIONS))
    sizes = [len(questions(item)) for item in items]
    for i, size in enumerate(sizes):
        left = sum(sizes[i:]) + QUESTIONS  # the shares of a block are alike, and as fine as its first one has to be
        assert 8 <= size <= max(left / (4 * stages) + 1, 8 * 2)


def test_few_questions_in_many_blocks_are_not_cut_further():
    assert shares([Part("a"), Part("b")], 6, stages=24) == [Part("a"), Part("b")]


@pytest.mark.parametrize(
    ("items", "stages", "expected"),
    [
        (18, 6, (24, 4)),  # three each, and one more for those who are faster
        (1, 1, (2, 2)),
        (0, 3, (3, 1)),
        (500, 6, (506, CALLS)),
    ],
)
def test_nobody_holds_more_turns_than_a_share(items, stages, expected):
    assert turns(items, stages) == expected


def test_the_board_hands_out_each_item_once_and_nothing_to_an_earlier_attempt():
    async def told() -> list[object]:
        board = Board()
        first = await board.begin([[Part("a")], [Part("b")]])
        found = [await board.take(first)]
        second = await board.begin([[Part("b")], [Part("c")]])
        return [*found, await board.take(first), *[await board.take(second) for _ in range(3)]]

    assert asyncio.run(told()) == [[Part("a")], None, [Part("b")], [Part("c")], None]


@pytest.mark.parametrize(("engines", "cpus"), [(1, 1), (1, 2), (4, 2), (8, 2), (2, 64)])
def test_engines_on_cpus_leave_room_for_a_stage_actor(engines, cpus):
    share = cpu_share(engines, cpus)
    assert 0 < share <= 0.5
    assert cpus - engines * share >= STAGE_CPUS
