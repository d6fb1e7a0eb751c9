"""Rows to questions: what is accepted, what is refused and with which cure, and the way to Arrow and back."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import InputError
from ensemble.questions import SCHEMA, content_hash, from_table, parse_question, readable_id, to_table
from ensemble.records import TASKS, Question

MATH: dict[str, Any] = {"id": 1, "task": "math", "text": "1 + 1?"}
LETTERS: dict[str, Any] = {"id": "q", "task": "multiple_choice", "text": "Which?", "choices": ["w", "x", "y", "z"]}
NUMBERED: dict[str, Any] = LETTERS | {
    "choices": [{"choice_id": 3, "text": "x"}, {"choice_id": "b", "text": "y"}, {"choice_id": "7", "text": "z"}]
}
HALF = "\ud83d"  # half of an emoji, as "\ud83d" in JSON gives


def parse(row: object) -> Question:
    return parse_question(row, 5, "in.jsonl", 9)


def without(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def test_a_full_row() -> None:
    row = LETTERS | {"context": "c", "answer": 2, "group": "g", "note": [1]}
    digest = content_hash("multiple_choice", "Which?", "c", ("w", "x", "y", "z"))
    expected = Question(
        5, "in.jsonl", 9, "q", "multiple_choice", "Which?", "c", ("w", "x", "y", "z"), None, 2, "g", digest
    )
    assert parse(row) == expected


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        (MATH, "id", 1),
        (MATH | {"id": "1"}, "id", "1"),
        (MATH | {"id": 0}, "id", 0),
        (MATH | {"id": 10**30}, "id", 10**30),
        (without(MATH, "task") | {"task_type": "generation"}, "task", "generation"),
        (MATH | {"task_type": "generation"}, "task", "math"),
        (MATH | {"task_type": "nonsense"}, "task", "math"),
        (MATH | {"task": None, "task_type": "generation"}, "task", "generation"),
        (MATH | {"text": " 問題\n"}, "text", " 問題\n"),
        (MATH, "context", None),
        (MATH | {"context": None}, "context", None),
        (MATH | {"context": ""}, "context", ""),
        (MATH | {"choices": "ignored"}, "choices", ()),
        (MATH | {"choices": [1, 2]}, "choice_ids", None),
        (LETTERS, "choices", ("w", "x", "y", "z")),
        (LETTERS, "choice_ids", None),
        (LETTERS | {"choices": [str(i) for i in range(26)]}, "choices", tuple(str(i) for i in range(26))),
        (LETTERS | {"choices": ["same", "same"]}, "choices", ("same", "same")),
        (NUMBERED, "choices", ("x", "y", "z")),
        (NUMBERED, "choice_ids", (3, "b", "7")),
        (MATH, "group", None),
        (MATH | {"group": "g"}, "group", "g"),
        (MATH | {"group": 4}, "group", "4"),
    ],
)
def test_fields(row: dict[str, Any], field: str, expected: object) -> None:
    value = getattr(parse(row), field)
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        (LETTERS, None),
        (LETTERS | {"answer": None}, None),
        (LETTERS | {"answer": 0}, 0),
        (LETTERS | {"answer": 3}, 3),
        (LETTERS | {"answer": "A"}, 0),
        (LETTERS | {"answer": "d"}, 3),
        (LETTERS | {"summary": "not for choices"}, None),
        (NUMBERED | {"answer": 3}, 0),
        (NUMBERED | {"answer": "3"}, 0),
        (NUMBERED | {"answer": "b"}, 1),
        (NUMBERED | {"answer": 7}, 2),
        # Equality goes before equality of the texts.
        (LETTERS | {"choices": [{"choice_id": "1", "text": "x"}, {"choice_id": 1, "text": "y"}], "answer": 1}, 1),
        (LETTERS | {"choices": [{"choice_id": 1, "text": "x"}, {"choice_id": "1", "text": "y"}], "answer": "1"}, 1),
        (MATH, None),
        (MATH | {"answer": "two"}, ("two",)),
        (MATH | {"answer": 2}, ("2",)),
        (MATH | {"answer": 2.5}, ("2.5",)),
        (MATH | {"answer": ["two", 2]}, ("two", "2")),
        (MATH | {"summary": "short"}, ("short",)),
        (MATH | {"answer": None, "summary": "short"}, ("short",)),
        (MATH | {"answer": "long", "summary": "short"}, ("long",)),
    ],
)
def test_gold(row: dict[str, Any], gold: object) -> None:
    assert parse(row).gold == gold


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["id", 1], 'a row must be an object {"id": ..., "task": ..., "text": ...}, this is a list'),
        ("text", "this is 'text'"),
        (None, "this is null"),
        (without(MATH, "id"), "id is missing; give every row a unique id"),
        (MATH | {"id": None}, "id is missing; give every row a unique id"),
        (MATH | {"id": ""}, "id is empty; give every row a unique id"),
        (MATH | {"id": True}, "id is true; write a string or a whole number"),
        (MATH | {"id": 1.0}, "id is 1.0; write a string or a whole number"),
        (MATH | {"id": [1]}, "id is a list; write a string or a whole number"),
        (MATH | {"id": HALF}, "id has half of a surrogate pair at character 1"),
        (without(MATH, "task"), "task is missing; available: generation, math, multiple_choice, summarization"),
        (
            MATH | {"task": "multiple_choise"},
            "unknown task 'multiple_choise'; did you mean 'multiple_choice'? "
            "available: generation, math, multiple_choice, summarization",
        ),
        (MATH | {"task": 3}, "task is 3; write a string"),
        (MATH | {"task": ["math"]}, "task is a list; write a string"),
        (without(MATH, "text"), "text is missing; write a string that holds the question"),
        (MATH | {"text": {"a": 1}}, "text is an object; write a string that holds the question"),
        (MATH | {"text": " \n"}, "text is blank; write the question there"),
        (MATH | {"text": "ab" + HALF}, "text has half of a surrogate pair at character 3"),
        (MATH | {"context": 5}, "context is 5; write a string, or leave it out"),
        (MATH | {"context": HALF}, "context has half of a surrogate pair"),
        (MATH | {"group": 1.5}, "group is 1.5; write a string or a whole number, or leave it out"),
        (MATH | {"group": False}, "group is false; write a string or a whole number, or leave it out"),
        (MATH | {"group": HALF}, "group has half of a surrogate pair"),
        (without(LETTERS, "choices"), "choices is missing; a multiple_choice row needs a list of 2 to 26 options"),
        (LETTERS | {"choices": {"A": "x"}}, "choices is an object; write a list of strings or of {choice_id, text}"),
        (LETTERS | {"choices": []}, "choices has 0 options; a question needs 2 to 26"),
        (LETTERS | {"choices": ["x"]}, "choices has 1 option; a question needs 2 to 26"),
        (LETTERS | {"choices": ["x"] * 27}, "choices has 27 options; a question needs 2 to 26"),
        (LETTERS | {"choices": ["x", 2]}, "the text of choices[1] is 2; write a string"),
        (LETTERS | {"choices": ["x", None]}, "the text of choices[1] is missing; write a string"),
        (LETTERS | {"choices": ["x", " "]}, "choices[1] is blank; write its text or remove the option"),
        (LETTERS | {"choices": ["x", HALF]}, "the text of choices[1] has half of a surrogate pair"),
        (
            LETTERS | {"choices": [{"choice_id": 1, "text": "x"}, "y"]},
            "choices[1] is 'y' among objects; write all as strings or all as objects",
        ),
        (
            LETTERS | {"choices": [{"choice_id": 1, "text": "x"}, {"text": "y"}]},
            "choices[1].choice_id is missing; write a string or a whole number",
        ),
        (
            LETTERS | {"choices": [{"choice_id": True, "text": "x"}, {"choice_id": 2, "text": "y"}]},
            "choices[0].choice_id is true; write a string or a whole number",
        ),
        (
            LETTERS | {"choices": [{"choice_id": HALF, "text": "x"}, {"choice_id": 2, "text": "y"}]},
            "choices[0].choice_id has half of a surrogate pair",
        ),
        (
            LETTERS | {"choices": [{"choice_id": 1, "text": "x"}, {"choice_id": 1, "text": "y"}]},
            "choice_id 1 is there twice; give every option its own",
        ),
        (
            LETTERS | {"choices": [{"choice_id": 1, "text": "x"}, {"choice_id": 2}]},
            "the text of choices[1] is missing; write a string",
        ),
        (LETTERS | {"answer": 7}, "answer 7 is out of range: the 4 choices have indices 0 to 3"),
        (LETTERS | {"answer": -1}, "answer -1 is out of range: the 4 choices have indices 0 to 3"),
        (LETTERS | {"answer": "E"}, "answer 'E' is out of range: the 4 choices have letters A to D"),
        (LETTERS | {"answer": "\u0131"}, "write the option's index (0 to 3) or letter (A to D)"),
        (LETTERS | {"answer": "2"}, "answer is '2'; write the option's index (0 to 3) or letter (A to D)"),
        (LETTERS | {"answer": ""}, "answer is ''; write the option's index (0 to 3) or letter (A to D)"),
        (LETTERS | {"answer": True}, "answer is true; write the option's index (0 to 3) or letter (A to D)"),
        (LETTERS | {"answer": 1.0}, "answer is 1.0; write the option's index (0 to 3) or letter (A to D)"),
        (
            LETTERS | {"choices": ["red", "blue"], "answer": "blue"},
            "answer is 'blue'; write the option's index (0 to 1), here 1 or letter (A to B)",
        ),
        (NUMBERED | {"answer": 4}, "answer is 4; write one of the choice_ids: 3, 'b', '7'"),
        (NUMBERED | {"answer": "A"}, "answer is 'A'; write one of the choice_ids: 3, 'b', '7'"),
        (NUMBERED | {"answer": 3.0}, "answer is 3.0; write one of the choice_ids: 3, 'b', '7'"),
        (MATH | {"answer": []}, "answer is an empty list; write at least one reference, or null"),
        (MATH | {"answer": ["a", None]}, "answer is missing; write a string, a number or a list of those"),
        (MATH | {"answer": {"a": 1}}, "answer is an object; write a string, a number or a list of those"),
        (MATH | {"answer": True}, "answer is true; write a string, a number or a list of those"),
        (MATH | {"answer": " "}, "answer is blank; write null or leave it out"),
        (MATH | {"answer": float("inf")}, "answer is a number too large to hold; write it as a string"),
        (MATH | {"summary": HALF}, "answer has half of a surrogate pair"),
        (MATH | {"task": "x" * 10_000}, "unknown task 'xxxxx"),
        (MATH | {"context": ["x" * 10_000]}, "context is a list"),
        (LETTERS | {"answer": "line\nbreak" * 1000}, "answer is 'line\\nbreak"),
    ],
)
def test_refused(row: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(row)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).encode()


@pytest.mark.parametrize(
    ("row", "expected"),
    [({"id": 0}, 0), ({"id": "a"}, "a"), ({"id": 1.5}, None), ({"id": HALF}, None), ({}, None), ([1], None)],
)
def test_readable_id(row: object, expected: object) -> None:
    assert readable_id(row) == expected


def test_content_hash_is_pinned() -> None:
    """Every score store is keyed by it."""
    assert content_hash("math", "1 + 1?", None, ()).hex() == "d2566383e176c860e4062737dec8de6a"
    assert content_hash("multiple_choice", "色", "c", ("赤", "青")).hex() == "4f7b94eb41171d2c9df20a98b48753d4"


def test_content_hash_tells_contents_apart() -> None:
    contents: list[tuple[str, str, str | None, tuple[str, ...]]] = [
        ("math", "a", None, ()),
        ("generation", "a", None, ()),
        ("math", "a", "", ()),
        ("math", "a", "null", ()),
        ("math", "ab", "c", ()),
        ("math", "a", "bc", ()),
        ("math", 'a","b', "c", ()),
        ("math", "a", 'b","c', ()),
        ("math", "a", None, ("b", "c")),
        ("math", "a", None, ("bc",)),
        ("math", "a", None, ("c", "b")),
        ("math", "a", "b", ("c",)),
    ]
    hashes = {content_hash(*content) for content in contents}
    assert len(hashes) == len(contents)
    assert {len(digest) for digest in hashes} == {16}


def test_content_hash_leaves_out_numbering_and_gold() -> None:
    one, other = parse(LETTERS), parse(LETTERS | {"id": 8, "group": "g", "answer": 1})
    assert one.hash == other.hash


ids = st.integers() | st.text(min_size=1)
questions = st.builds(
    Question,
    row_index=st.integers(0, 2**40),
    file=st.text(),
    line=st.integers(0, 2**40),
    id=ids,
    task=st.sampled_from(TASKS),
    text=st.text(),
    context=st.none() | st.text(),
    choices=st.lists(st.text(), max_size=4).map(tuple),
    choice_ids=st.none() | st.lists(ids, max_size=4).map(tuple),
    gold=st.none() | st.integers(0, 25) | st.lists(st.text(), max_size=3).map(tuple),
    group=st.none() | st.text(),
    hash=st.binary(max_size=16),
)


@settings(deadline=None)  # the first call imports pyarrow
@given(st.lists(questions, max_size=5))
def test_table_round_trip(written: list[Question]) -> None:
    read = from_table(to_table(written))
    assert read == written
    # 1 == True and 1 == 1.0 in Python: equality alone would not see a changed type.
    assert [repr(question) for question in read] == [repr(question) for question in written]


def test_table_columns() -> None:
    table = to_table([parse(MATH)])
    assert tuple(table.column_names) == tuple(SCHEMA) == tuple(f.name for f in dataclasses.fields(Question))
    assert to_table([]).schema == to_table([parse(LETTERS | {"answer": 1})]).schema
