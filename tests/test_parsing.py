"""Final numbers and named options out of generated texts."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.parsing import chosen_option, final_number

LETTERS = ("A", "B", "C", "D")
CITIES = ("London", "Paris", "New York", "York")

NUMBERS = [
    # the form of the number
    ("18", "18"),
    ("$18.", "18"),
    ("1,234.50", "1234.5"),
    ("-3", "-3"),
    ("50%", "50"),
    ("007", "7"),
    ("0.0", "0"),
    ("-0.00", "0"),
    (".5", "0.5"),
    ("-.5", "-0.5"),
    ("18.0", "18"),
    ("100", "100"),
    ("1e+20", "100000000000000000000"),  # str() of a float
    ("1.5e3 m", "1500"),
    ("12,345,678", "12345678"),
    ("1,2,3", "3"),  # a list, no thousands
    ("in 1999, 2000 came", "2000"),
    ("1{,}234", "1234"),
    ("version 1.2.3", "3"),
    ("it was 3.Then", "3"),
    # signs
    ("10-12", "12"),
    ("covid-19", "19"),
    ("10–12", "12"),
    ("x = -5", "-5"),
    ("x = −5", "-5"),
    ("(-5)", "-5"),
    ("a loss of -$5", "-5"),
    ("a loss of -\\$5", "-5"),
    ("答えは-3です", "-3"),
    ("(2)-3", "3"),
    # full width and Japanese
    ("１８", "18"),
    ("答えは１８です", "18"),
    ("－１，２３４．５円", "-1234.5"),
    ("りんごは5個、みかんは7個です。", "7"),
    # fractions
    ("3/4", "3/4"),
    ("-3/4.", "-3/4"),
    ("6 / 8 of it", "6/8"),
    ("1,000/3", "1000/3"),
    ("2 1/2", "5/2"),
    ("\\frac{3}{4}", "3/4"),
    ("-\\dfrac{3}{4}", "-3/4"),
    ("2\\frac{1}{2}", "5/2"),
    ("for 2 12/4", "12/4"),  # no mixed number
    ("0/5", "0"),
    ("3/0", "0"),  # no fraction: the last number
    ("12/25/2024", "2024"),
    ("Answer: 12/25/2024", "12"),
    ("Answer: 3/4.5", "3"),
    # exponents are no answers
    ("18 cm^2", "18"),
    ("18 cm^{2}", "18"),
    ("18 cm²", "18"),
    # markers before the last number
    ("The answer is 18. I checked it 2 times.", "18"),
    ("the final answer is: $18$ out of 20", "18"),
    ("**Answer:** 18 of 20", "18"),
    ("Answer:\n18 of 20", "18"),
    ("Answer: 5. No, wait. Answer: 18 of 20", "18"),
    ("3 + 4\n#### 7\n\nThat took 2 steps", "7"),
    ("#### Step 2\nso 5 and 9", "9"),
    ("so \\boxed{18} in 20", "18"),
    ("so \\boxed{\\frac{3}{4}} in 20", "3/4"),
    ("the answer is $\\boxed{1,234}$ for 2", "1234"),
    ("\\boxed{18} = 3 * 6", "18"),
    ("答え：１８個（全部で２０個）", "18"),
    ("正解は18。次は19。", "18"),
    ("The answer is 3 + 4 = 7 of 9", "7"),
    ("The answer is 18 = x, of several", "18"),
    ("The answer is 18. I hope the answer is clear after 3 tries", "3"),
    ("The answer is 18. I hope the answer is clear. 3 tries", "18"),
    ("The answer is as follows.\n3 + 4\n7", "7"),
    # none
    ("", None),
    ("eighteen", None),
    ("- / . , % ####", None),
    ("The answer is clear", None),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_final_number(text: str, expected: str | None) -> None:
    assert final_number(text) == expected


PIECES = st.sampled_from(
    ["1", "12", ",", ".", "-", "/", "^", "{", "}", "e5", " ", "\n", "=", "####", "Answer:", "\\boxed{", "\\frac{1}{2}"]
)


@given(st.text() | st.lists(PIECES).map("".join))
def test_final_number_is_plain_and_its_own_final_number(text: str) -> None:
    number = final_number(text)
    if number is not None:
        Fraction(number)  # raises where it is neither a plain decimal nor a fraction
        assert final_number(number) == number


@given(st.integers(), st.sampled_from(["{}", "The answer is {:,}.", "x 5\n#### {}\n6", "so \\boxed{{{}}} 4"]))
def test_final_number_reads_back_what_was_written(n: int, template: str) -> None:
    assert final_number(template.format(n)) == str(n)


@pytest.mark.parametrize(
    "unit",
    ["9", "9,999,", "9/", "-", "9 ", "9.9.", "####", "#", "answer ", "Answer: ", "\\boxed{", "\\frac{1}", ",999", "= ",
     "９", "9e9", "^9", "\\", "   ", "$", "。"],
)  # fmt: skip
def test_final_number_takes_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    final_number(text)
    assert time.process_time() - start < 5  # about 0.5 s; a quadratic pattern takes hours


def test_final_number_of_a_number_beyond_pythons_integer_digits() -> None:
    assert final_number("1" * 10_000) == "1" * 10_000  # int() refuses more than 4300 digits


OPTIONS = [
    # labels
    ("B", 1),
    ("b", 1),
    ("(B)", 1),
    ("B.", 1),
    ("B) Paris", 1),
    ("B: Paris", 1),
    ("B, because it is the capital", 1),
    ("B - because", 1),
    ("B\nParis is ...", 1),
    ("B\nC", 1),
    ("**B**", 1),
    ("**B.** Paris", 1),
    ("「B」", 1),
    ("（Ｂ）", 1),
    ("B Paris", 1),
    ("B.Paris", 1),
    ("B) Rome", 1),
    ("B. A city with a tower", 1),
    ("Answer: B", 1),
    ("Answer: **B**", 1),
    ("The answer is (B)", 1),
    ("The answer is B. London is not the capital.", 1),
    ("London is big, so the answer is B", 1),
    ("A is wrong. The answer is C.", 2),
    ("The answer is A. No: the answer is B.", 1),
    ("so $\\boxed{\\text{B}}$", 1),
    ("Option B is right", 1),
    ("選択肢Bは正しい", 1),
    ("答えはBです。", 1),
    ("Bが正しい", 1),
    # several labels, or none of these
    ("A, B", None),
    ("(A) and (B)", None),
    ("A or B", None),
    ("E", None),
    ("A city is a big town", None),
    ("A.M. or P.M.", None),
    # texts
    ("Paris", 1),
    ("  paris. ", 1),
    ("The answer is Paris", 1),
    ("Paris\n\nQuestion: where is London?", 1),
    ("It must be Paris, I think", 1),
    ("A big city: Paris", 1),
    ("Not London. The answer is Paris. London is wrong.", 1),
    ("答えはParisです", 1),
    ("New York", 2),
    ("It is New York", 2),
    ("York", 3),
    ("New York or York", None),
    ("London or Paris", None),
    ("Parisian", None),
    ("", None),
    ("I do not know", None),
]


@pytest.mark.parametrize(("text", "expected"), OPTIONS)
def test_chosen_option(text: str, expected: int | None) -> None:
    assert chosen_option(text, LETTERS, CITIES) == expected


TWELVE = tuple(str(i) for i in range(1, 13))


@pytest.mark.parametrize(
    ("text", "labels", "options", "expected"),
    [
        ("A dog is a pet", ("A", "B"), ("cat", "dog"), 1),
        ("A dog", ("A", "B"), ("dog", "cat"), 0),
        ("I think not", tuple("ABCDEFGHI"), ("x",) * 9, None),
        ("ı", tuple("ABCDEFGHI"), tuple("abcdefgh!"), None),  # a dotless i is not I
        ("2", ("1", "2"), ("x", "y"), 1),
        ("2番", ("1", "2"), ("x", "y"), 1),
        ("答えは２番です", ("1", "2"), ("x", "y"), 1),
        ("10", TWELVE, tuple("abcdefghijkl"), 9),
        ("10) k", TWELVE, tuple("abcdefghijkl"), 9),
        ("13", TWELVE, tuple("abcdefghijkl"), None),
        ("1-2", ("1", "1-2"), ("x", "y"), 1),
        ("B same", ("A", "B"), ("same", "same"), 1),
        ("2 dogs", ("1", "2"), ("cat", "bird"), None),
        ("2", ("1", "2", "3"), ("2", "3", "1"), 1),  # a bare label is a label
        ("2.5", ("1", "2"), ("2.5", "3.5"), 0),
        ("25", LETTERS, ("2.5", "3", "4", "5"), None),
        ("It is -5", LETTERS, ("5", "-5", "15", "2.5"), 1),
        ("It is 2.5", LETTERS, ("5", "2", "-2.5", "2.5"), 3),
        ("It is -5 or 2.5", ("A", "B"), ("5", "7"), None),
        ("It costs 5.", LETTERS, ("2.5", "5", "15", "50"), 1),
        ("A. Lincoln", LETTERS, ("x", "y", "A. Lincoln", "z"), 2),
        ("C++", ("A", "B"), ("C", "C++"), 1),
        ("It is C++", ("A", "B"), ("C", "C++"), None),
        ("+", ("A", "B"), ("-", "+"), 1),
        ("同じ", ("A", "B"), ("同じ", "同じ"), None),
        ("首都はパリです", ("A", "B"), ("ロンドン", "パリ"), 1),
        ("don’t know", ("A", "B"), ("Don't know", "Know"), 0),
        ("dont know", ("A", "B"), ("Don't know", "Know"), 0),
        ("!!!", ("A", "B"), ("???", "x"), None),
        (".", ("", "B"), ("x", "y"), None),
        (".", (), (), None),
    ],
)
def test_chosen_option_with_other_options(
    text: str, labels: tuple[str, ...], options: tuple[str, ...], expected: int | None
) -> None:
    assert chosen_option(text, labels, options) == expected


@given(st.text(), st.lists(st.text(), min_size=1, max_size=26))
def test_chosen_option_never_raises_and_stays_in_range(text: str, options: list[str]) -> None:
    labels = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    assert chosen_option(text, labels, options) in {None, *range(len(options))}


@given(st.integers(0, 11), st.sampled_from(["{}", "({})", "{}.", "Answer: {}", "The answer is ({}).", "答えは{}です"]))
def test_chosen_option_reads_back_a_label(i: int, template: str) -> None:
    for labels in (TWELVE, tuple("ABCDEFGHIJKL")):
        assert chosen_option(template.format(labels[i]), labels, [f"option text {n}" for n in "abcdefghijkl"]) == i


WORDS = st.text(alphabet="mnopqr", min_size=1).map(lambda word: f"x{word}")  # no word is a label


@given(st.lists(st.lists(WORDS, min_size=1).map(" ".join), min_size=2, max_size=6, unique=True))
def test_chosen_option_reads_back_an_options_text(options: list[str]) -> None:
    for i, option in enumerate(options):
        assert chosen_option(f"{option.upper()}.", (*LETTERS, "E", "F"), options) == i
