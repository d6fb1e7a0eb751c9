"""What the digest keeps of all rows of a run: numbers for the report, and examples."""

import math
import pickle
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ensemble.digest import KEPT, Calibration, Tally, bin_of, brief, pieces
from tests.predicted import choice, digest_of, text_row

# ---- numbers


def test_intervals_of_rights_and_wrongs_are_wilsons_as_scipy_has_them():
    for right, n in [(8, 10), (0, 10), (10, 10), (1, 1), (300, 1000)]:
        tally = Tally()
        for i in range(n):
            tally.add(float(i < right))
        peer = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert tally.interval() == pytest.approx((peer.low, peer.high), abs=1e-4)


def test_intervals_of_fractions_are_normal_as_scipy_has_them():
    values = [0.1, 0.25, 0.3, 0.7]
    tally, halves = Tally(), [Tally(), Tally()]
    for i, value in enumerate(values):
        tally.add(value)
        halves[i % 2].add(value)
    peer = stats.norm.interval(0.95, np.mean(values), stats.sem(values))
    assert tally.interval() == pytest.approx(peer, abs=1e-4)
    halves[0].merge(halves[1])
    assert halves[0].interval() == pytest.approx(peer, abs=1e-4)


@pytest.mark.parametrize(
    ("confidence", "index"),
    [(0, 0), (0.1, 0), (0.1001, 1), (0.2999, 2), (0.3, 2), (0.6, 5), (0.7, 6), (0.7001, 7), (0.95, 9), (1, 9)],
)
def test_bins_are_open_below_and_closed_above(confidence: float, index: int):
    assert bin_of(confidence) == index


def test_ece_of_a_case_worked_by_hand():
    # (0.6, 0.7] has 0.62 and 0.66, one of them right: |0.64 - 0.5| twice. 0.85 is wrong: 0.85. 0.95 is right: 0.05.
    calibration = Calibration()
    for confidence, right in [(0.62, 1), (0.66, 0), (0.85, 0), (0.95, 1)]:
        calibration.add(confidence, right)
    assert calibration.ece == pytest.approx((2 * 0.14 + 0.85 + 0.05) / 4)
    assert calibration.gap == pytest.approx((0.62 + 0.66 + 0.85 + 0.95) / 4 - 0.5)


def test_recalls_by_hand():
    # Gold A: 3 of 4 right, gold B: 1 of 4.
    rows = [choice(i, gold=gold, right=False) for i, gold in enumerate([0, 0, 0, 0, 1, 1, 1, 1])]
    predictions = [0, 0, 0, 1, 1, 0, 0, 0]
    rows = [(q, r | {"prediction": p}) for (q, r), p in zip(rows, predictions, strict=True)]
    task = digest_of(rows).tasks["multiple_choice"]
    assert task.recalls() == {0: 0.75, 1: 0.25}
    assert (task.picked, task.gold) == ({0: 6, 1: 2}, {0: 4, 1: 4})


def test_length_bins_cover_all_rows_in_order_and_are_about_equal():
    rng = random.Random(1)
    rows = [choice(i, prompt_tokens=round(math.exp(rng.uniform(3, 9)))) for i in range(4000)]
    bins = digest_of(rows).tasks["multiple_choice"].length_bins()
    assert sum(tally.n for tally in bins) == 4000
    assert len(bins) == 8
    assert all(400 < tally.n < 600 for tally in bins)
    assert all(a.high < b.low for a, b in pairwise(bins))
    tokens = sorted(row["prompt_tokens"] for _, row in rows)
    assert (bins[0].low, bins[-1].high) == (tokens[0], tokens[-1])


def test_cut_inputs_are_classed_by_what_was_cut():
    tokens = [0, 0, 1, 99, 100, 999, 1000, 10_000, 50_000]
    rows = [text_row(i, "math", cut_tokens=n, cut_characters=[0, 1] if n else None) for i, n in enumerate(tokens)]
    assert [tally.n for tally in digest_of(rows).tasks["math"].cuts] == [2, 2, 2, 1, 2]


@pytest.mark.parametrize(
    ("text", "cut", "expected"),
    [
        ("", None, []),
        ("abcdef", None, [("shown", "abcdef", 6)]),
        ("abcdef", (2, 4), [("shown", "ab", 2), ("cut", "cd", 2), ("shown", "ef", 2)]),
        ("abcdef", (0, 3), [("cut", "abc", 3), ("shown", "def", 3)]),
        ("abcdef", (4, 6), [("shown", "abcd", 4), ("cut", "ef", 2)]),
        ("a" * 30 + "b" * 30, None, [("shown", "a" * 8, 8), ("gap", "", 44), ("shown", "b" * 8, 8)]),
    ],
)
def test_pieces_of_a_text(text: str, cut: Any, expected: Any):
    assert pieces(text, 16, cut) == expected


def test_pieces_stay_within_their_limit_and_lose_no_character_silently():
    text = "".join(chr(0x3042 + i % 80) for i in range(50_000))
    found = pieces(text, 4000, (20_000, 30_000))
    assert sum(len(p.text) for p in found) < 4000 + 40  # 40 for what the cut part says of its own gap
    assert sum(p.characters for p in found) == 50_000
    assert [p.kind for p in found] == ["shown", "gap", "shown", "cut", "shown", "gap", "shown"]
    assert found[2].text.endswith(text[19_990:20_000])
    assert found[3].text.startswith(text[20_000:20_010])
    assert brief("x" * 5000, 10) == "xxxxx [… 4,990 characters …] xxxxx"


# ---- examples


def test_what_a_reader_needs_is_among_the_examples():
    rows = [choice(i, 0.9) for i in range(2000)]
    rows[100] = choice(100, 0.99, right=False)
    rows[200] = choice(200, 0.26)
    rows[300] = choice(300, near_tie=True)
    rows[400] = choice(400, text="long " * 50, cut_tokens=7, cut_characters=[10, 40])
    rows[500] = (rows[500][0], rows[500][1] | {"prediction": None, "confidence": None, "scores": None})
    rows[600] = (rows[600][0], rows[600][1] | {"error": {"type": "EngineError", "message": "m"}, "prediction": None})
    digest = digest_of(rows, slowest=[{"row_index": 700, "seconds": 12.5}])
    found = {e.row_index: e for e in digest.tasks["multiple_choice"].examples(40)}
    flags = {i: set(found[i].flags) for i in (100, 300, 400, 500, 600, 700)}
    assert flags == {100: {"wrong"}, 300: {"near_tie"}, 400: {"cut"}, 500: {"unread"}, 600: {"failed"}, 700: {"slow"}}
    assert found[700].seconds == 12.5
    assert 200 in found
    assert len(found) > 7  # and a sample of the rest


def test_the_lowest_of_fractional_grades_are_kept_and_flagged():
    rows = [text_row(i, "summarization", 0.3 + i / 1000) for i in range(500)]
    found = digest_of(rows).tasks["summarization"].examples(40)
    assert {e.row_index for e in found if "low" in e.flags} == set(range(KEPT["wrong"]))


def test_an_example_keeps_the_cut_context_and_samples():
    question, row = text_row(
        0, "math", context="before CUT after", cut_tokens=1, cut_characters=[7, 11], samples=["s1"]
    )
    (example,) = digest_of([(question, row)]).tasks["math"].examples(40)
    assert [(p.kind, p.text) for p in example.context] == [("shown", "before "), ("cut", "CUT "), ("shown", "after")]
    assert [p.kind for p in example.text] == ["shown"]
    assert example.samples == ["s1"]


def test_the_sample_depends_on_the_seed_and_the_rows_alone():
    rows = [choice(i) for i in range(1000)]
    chosen = [[e.row_index for e in digest_of(rows, seed).tasks["multiple_choice"].examples(40)] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_memory_does_not_grow_with_the_rows():
    def size(n: int) -> int:
        rows = (
            choice(i, round(0.3 + (i * 37 % 600) / 1000, 4), i % 3 > 0, text="a long text " * 3000) for i in range(n)
        )
        digest = digest_of(rows)
        kept = [list(reason) for task in digest.tasks.values() for reason in task.kept.values()]
        return len(pickle.dumps([kept, [vars(task) | {"kept": 0, "calibration": 0} for task in digest.tasks.values()]]))

    assert size(8000) < 1.1 * size(1000) < 400_000
