"""Which orders a config names: how many, which ones, and what is refused."""

import itertools
import math
from collections import Counter

import pytest

from ensemble.errors import ConfigError
from ensemble.orders import Orders, check_orders, count_orders, make_orders, parse_orders, positions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("identity", Orders("identity")),
        ("cyclic", Orders("cyclic")),
        ("full", Orders("full")),
        ("adaptive", Orders("adaptive")),
        ("latin:2", Orders("latin", 2)),
        ("sampled:24", Orders("sampled", 24)),
    ],
)
def test_orders_are_named_in_a_config(text, expected):
    assert parse_orders(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cylic", "unknown orders 'cylic'; did you mean 'cyclic'?"),
        ("random", "available: "),
        ("latin", "orders latin needs a number, such as latin:2"),
        ("latin:", "such as latin:2"),
        ("latin:0", "such as latin:2"),
        ("latin:-1", "such as latin:2"),
        ("latin:1.5", "such as latin:2"),
        ("sampled:²", "such as sampled:2"),
        ("sampled:x", "such as sampled:2"),
        ("cyclic:3", "orders cyclic takes no number; write cyclic"),
        ("full:", "write full"),
    ],
)
def test_what_names_no_orders_is_refused_with_the_cure(text, message):
    with pytest.raises(ValueError, match="orders") as e:
        parse_orders(text)
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("text", "n", "count"),
    [
        ("identity", 4, 1),
        ("cyclic", 2, 2),
        ("cyclic", 26, 26),
        ("latin:3", 4, 12),
        ("latin:24", 4, 24),  # capped at 4! = 24
        ("latin:24", 3, 6),
        ("latin:24", 26, 624),
        ("sampled:24", 3, 6),
        ("sampled:24", 26, 24),
        ("full", 2, 2),
        ("full", 5, 120),
        ("adaptive", 7, 1),
    ],
)
def test_how_many_orders_a_question_takes(text, n, count):
    assert count_orders(text, n) == count
    assert len(make_orders(text, n, 0)) == count


@pytest.mark.parametrize("n", range(2, 27))
@pytest.mark.parametrize("text", ["identity", "cyclic", "latin:1", "latin:3", "sampled:5"])
def test_orders_are_distinct_permutations(text, n):
    for seed in (0, 7):
        orders = make_orders(text, n, seed)
        assert len(set(orders)) == len(orders)
        assert all(sorted(order) == list(range(n)) for order in orders)


@pytest.mark.parametrize("n", range(2, 27))
def test_latin_blocks_put_each_option_equally_often_at_each_position(n):
    for k in (1, 2, 5):
        orders = make_orders(f"latin:{k}", n, 3)
        blocks = min(k, math.factorial(n - 1))
        for place in range(n):
            assert Counter(order[place] for order in orders) == dict.fromkeys(range(n), blocks)
        assert orders[:n] == make_orders("cyclic", n, 0)  # the first block is the given order's, whatever the seed


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8, 26])
def test_more_orders_begin_with_the_fewer(n):
    for kind in ("latin", "sampled"):
        for k in range(1, 8):
            fewer, more = make_orders(f"{kind}:{k}", n, 1), make_orders(f"{kind}:{k + 1}", n, 1)
            assert more[: len(fewer)] == fewer


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_full_is_every_order_once_in_latin_blocks(n):
    assert set(make_orders("full", n, 0)) == set(itertools.permutations(range(n)))
    assert make_orders("full", n, 5) == make_orders("latin:24", n, 5)  # (n-1)! blocks, 24 of five options
    assert set(make_orders("sampled:120", n, 0)) == set(itertools.permutations(range(n)))


def test_a_seed_picks_the_orders():
    # Those of seed 0 are what stores hold: another version of this code that drew others would waste them.
    assert make_orders("latin:2", 4, 0)[4] == (0, 1, 3, 2)
    assert make_orders("sampled:1", 8, 0) == ((6, 7, 3, 1, 4, 2, 5, 0),)
    for text in ("sampled:6", "latin:3"):
        assert len({make_orders(text, 8, seed) for seed in range(20)}) == 20
    # Uniform over the six orders of three options: 600 draws of one order, expected 100 each, deviation 9.1.
    drawn = Counter(make_orders("sampled:1", 3, seed)[0] for seed in range(600))
    assert len(drawn) == 6
    assert all(60 < times < 140 for times in drawn.values())


def test_the_position_of_each_option():
    assert positions(((0, 1, 2), (2, 0, 1))).tolist() == [[0, 1, 2], [1, 2, 0]]  # of order (2, 0, 1) option 2 is first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({4: 10, 6: 3}, "orders: full is 720 prompts for each of 3 questions with 6 options (2,160 in all)"),
        ({8: 1000}, "full is 40,320 prompts for each of 1,000 questions with 8 options (40,320,000 in all)"),
    ],
)
def test_full_is_refused_above_five_options_with_its_cost(options, message):
    with pytest.raises(ConfigError) as e:
        check_orders("full", options)
    assert message in str(e.value)
    assert "use latin:4" in str(e.value)


@pytest.mark.parametrize("text", ["latin:24", "cyclic", "sampled:24", "adaptive", "identity"])
def test_other_orders_take_any_number_of_options(text):
    check_orders(text, {2: 1, 26: 1000})
    check_orders("full", {2: 1, 5: 1_000_000})
