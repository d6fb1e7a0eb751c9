"""Parquet and CSV rows: the same questions as from JSON, lines of bad rows, and what reading costs."""

import csv
import io
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemble.errors import InputError
from ensemble.questions import parse_question
from ensemble.records import Question
from ensemble.rows import iter_rows

IDS = [{"choice_id": 1, "text": "ice"}, {"choice_id": 2, "text": "iron"}]
ROWS: list[dict[str, Any]] = [
    {"id": 1, "task": "multiple_choice", "text": "What melts first?", "choices": ["ice", "iron"], "answer": 0},
    {"id": 2, "task": "multiple_choice", "text": "And,\nlast?", "choices": ["ice", "iron", "x, y"], "answer": "C"},
    {"id": 3, "task_type": "multiple_choice", "text": "Which?", "choices": IDS, "answer": 2},
    {"id": "q-4", "task": "summarization", "text": 'He said "no".', "summary": "No.", "group": "news"},
    {"id": "005", "task": "math", "text": "3 + 4?", "context": "Tom has\r\n3.", "answer": ["7", "seven"]},
    {"id": -6, "task": "generation", "text": "日本の首都は？", "answer": "東京", "group": 7},
    {"id": "0", "task": "generation", "text": "Where?"},
]


def parsed(row: object, line: int) -> Question:
    if isinstance(row, InputError):
        raise row
    return parse_question(row, 0, "", line)


def read(path: Path) -> tuple[list[tuple[int, Question]], list[tuple[int, str]]]:
    """(line, question) and (line, message)."""
    good, bad = [], []
    for line, row in iter_rows(path):
        try:
            good.append((line, parsed(row, 0)))
        except InputError as error:
            bad.append((line, str(error)))
    return good, bad


def from_json(rows: list[dict[str, Any]]) -> list[Question]:
    return [parsed(row, 0) for row in rows]


# --- CSV ---

COLUMNS = ("id", "task", "task_type", "text", "context", "choices", "answer", "summary", "group")


def cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list) else value


def as_csv(rows: list[dict[str, Any]], **options: Any) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, **options)
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


@pytest.mark.parametrize("name", ["q.csv", "q", "q.txt"])
@pytest.mark.parametrize("options", [{}, {"delimiter": "\t"}, {"delimiter": ";"}, {"quoting": csv.QUOTE_ALL}])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n  \n"])
def test_csv_gives_the_questions_of_json(tmp_path: Path, name: str, options: dict[str, Any], start: str) -> None:
    rows = [row | {"id": 0} if row["id"] == "0" else row for row in ROWS]  # its ids that look like numbers are numbers
    path = tmp_path / name
    path.write_text(start + as_csv(rows, **options), encoding="utf-8", newline="")
    good, bad = read(path)
    assert bad == []
    assert [question for _, question in good] == from_json(rows)
    # The second row's text and the fifth's context hold a line break.
    assert [line for line, _ in good] == [n + start.count("\n") for n in (2, 3, 5, 6, 7, 9, 10)]


def test_csv_options_one_to_a_column(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(
        "ID, Text ,task,answer,choices.0,choices.1,choices.2,note\n"
        "1,Which?,multiple_choice,B,ice,iron,,x\n"
        "2,Which?,multiple_choice,2,ice,iron,7,x\n"
        "3,How many?,math,7,,,,\n"
        "4,Which?,multiple_choice,A,ice,,iron,x\n"
    )
    good, bad = read(path)
    assert [(q.id, q.choices, q.gold) for _, q in good] == [
        (1, ("ice", "iron"), 1),
        (2, ("ice", "iron", "7"), 2),
        (3, (), ("7",)),
    ]
    assert bad == [(5, "the text of choices[1] is missing; write a string")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("7", 7), ("-7", -7), ("123456789012345678", 123456789012345678)),
        *((text, text) for text in ("007", "-0", "+1", "1.0", "1e3", " 1", "1_000", "９", "x1", "9" * 30)),
    ],
)
def test_csv_ids(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "q.csv").write_text(f"id,task,text\n{text},math,x\n", encoding="utf-8")
    (((_, question),), _) = read(tmp_path / "q.csv")
    assert (question.id, type(question.id)) == (value, type(value))


# A line of CSV after the header `id,task,text,choices,answer`, and the message for it.
BAD_LINES: dict[str, tuple[bytes, str]] = {
    "few": (b"2,math,x", "the row has 3 cells and the header 5; quote cells that hold a comma, and leave empty"),
    "many": (b"2,math,x, y, z,,7", "the row has 7 cells and the header 5; quote cells that hold a comma"),
    "latin": (b"2,math,caf\xe9,,", "not valid UTF-8; save the file as UTF-8 (Excel: CSV UTF-8)"),
    "quote": (b'2,math,"x"y,,', "not valid CSV: text follows the end of a quoted cell; double the quotes inside it"),
    "open quote": (b'2,math,"x,,', "not valid CSV: "),
    "choices": (b"2,multiple_choice,x,ice iron,1", 'choices is no JSON list; write ["ice", "iron"], or a column for'),
    "broken choices": (b'2,multiple_choice,x,"[""ice"", ",1', "choices is no JSON list"),
    "id": (b",math,x,,", "id is missing"),
    "task": (b"2,maths,x,,", "did you mean 'math'?"),
    "gold": (b'2,multiple_choice,x,"[""a"", ""b""]",2', "answer 2 is out of range"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("after", [b'4,math,"y",,7\n5,math,"z, ""z""",,8\n', b"4,math,y,,7\n5,math,z,,8\n"])
def test_bad_csv_rows_do_not_stop_the_rows_after_them(tmp_path: Path, kind: str, after: bytes) -> None:
    line, message = BAD_LINES[kind]
    path = tmp_path / "q.csv"
    path.write_bytes(b"id,task,text,choices,answer\n1,math,x,,7\n\n" + line + b"\n,,,,\n" + after)
    good, bad = read(path)
    assert [(n, q.id) for n, q in good] == [(2, 1), (6, 4), (7, 5)]
    assert [n for n, _ in bad] == [4]
    assert message in bad[0][1]


def test_open_quotes_do_not_take_the_rows_after_them_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.tabular.MAX_ROW", 100_000)
    monkeypatch.setattr("ensemble.tabular.MIN_LIMIT", 1000)
    lines = [f"{i},math,{'x' * 50}" for i in range(20_000)]
    for i in range(0, 20_000, 100):
        lines[i] = f'{i},math,"x'
    (tmp_path / "q.csv").write_text("id,task,text\n" + "\n".join(lines))
    good, bad = read(tmp_path / "q.csv")
    assert [q.id for _, q in good] == [i for i in range(20_000) if i % 100]
    assert [n for n, _ in bad] == [i + 2 for i in range(0, 20_000, 100)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", "1,math,What?\n2,math,Who?\n", "no column is named id (the first are '1', 'math', 'what?'); name"),
        ("q.tsv", "question\tanswer\nWhat?\t7\n", "no column is named id (the first are 'question', 'answer')"),
        ("q.csv", "id,task,text,text\n1,math,x,y\n", "column 'text' is there twice; rename one"),
        ("q.csv", "id,task,text\n", "the file has no rows"),
        ("q.csv", "", "the file has no rows"),
    ],
)
def test_csv_files_that_cannot_be_used_give_one_error(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    good, bad = read(tmp_path / name)
    assert (good, len(bad)) == ([], 1)
    assert message in bad[0][1]


def test_json_in_a_file_named_csv_is_json(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('{"id": 1, "task": "math", "text": "id, text"}\n')
    assert [q.id for _, q in read(tmp_path / "q.csv")[0]] == [1]


# --- Parquet ---


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("name", ["q.parquet", "q"])
def test_parquet_gives_the_questions_of_json(tmp_path: Path, name: str) -> None:
    """A column has one type: ids and answers of several kinds are text."""
    rows = [row | {"id": str(row["id"])} for row in ROWS]
    texts = {key: [cell(row.get(key)) for row in rows] for key in COLUMNS}
    for key in ("answer", "group"):
        texts[key] = [None if value is None else str(value) for value in texts[key]]
    good, bad = read(write(tmp_path / name, texts, row_group_size=3))
    assert bad == []
    assert good == list(enumerate(from_json(rows), 1))


@pytest.mark.parametrize(
    ("column", "choices"),
    [
        (pa.array([["ice", "iron"]] * 2), None),
        (pa.array([["ice", "iron"]] * 2, pa.large_list(pa.large_string())), None),
        (pa.array([IDS] * 2), (1, 2)),
        (pa.array([[{"choice_id": "a", "text": "ice"}, {"choice_id": "b", "text": "iron"}]] * 2), ("a", "b")),
        (pa.array(['["ice", "iron"]'] * 2), None),
    ],
)
def test_parquet_choices(tmp_path: Path, column: Any, choices: tuple[object, ...] | None) -> None:
    columns = {"id": [1, 2], "task": ["multiple_choice"] * 2, "text": ["x", "y"], "choices": column}
    good, bad = read(write(tmp_path / "q", columns))
    assert bad == []
    assert {(q.choices, q.choice_ids) for _, q in good} == {(("ice", "iron"), choices)}


@pytest.mark.parametrize(
    ("column", "golds"),
    [
        (pa.array([1, 0, None], pa.int64()), [1, 0, None]),
        (pa.array([1, 0, None], pa.int8()), [1, 0, None]),
        (pa.array([1.0, 0.0, math.nan]), [1, 0, None]),  # what pandas makes of a missing integer
        (pa.array(["1", "a", None]), [1, 0, None]),
        (pa.array(["1", "a", None]).dictionary_encode(), [1, 0, None]),
        (pa.array(["1", "a", None], pa.large_string()), [1, 0, None]),
    ],
)
def test_parquet_answers(tmp_path: Path, column: Any, golds: list[int | None]) -> None:
    n = len(golds)
    choices = [["ice", "iron"]] * n
    columns = {"id": range(n), "task": ["multiple_choice"] * n, "text": ["x"] * n, "choices": choices, "answer": column}
    good, bad = read(write(tmp_path / "q", columns))
    assert bad == []
    assert [q.gold for _, q in good] == golds


@pytest.mark.parametrize(
    ("column", "golds"),
    [
        (pa.array([3.0, 2.5, None]), [("3",), ("2.5",), None]),
        (pa.array([["a", "b"], ["c"], None]), [("a", "b"), ("c",), None]),
        (pa.array(['["a", "b"]', "[1, 2]", "7"]), [("a", "b"), ("[1, 2]",), ("7",)]),
    ],
)
def test_parquet_references(tmp_path: Path, column: Any, golds: list[object]) -> None:
    columns = {"id": ["a", "b", "c"], "task": ["math"] * 3, "text": ["x"] * 3, "answer": column}
    good, bad = read(write(tmp_path / "q", columns))
    assert bad == []
    assert [q.gold for _, q in good] == golds


def test_bad_parquet_rows_do_not_stop_the_rows_after_them(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c", None, b"", b"f"]).view(pa.binary())
    columns = {"id": [1, 2, 3, 4, None, 6], "task": ["math"] * 6, "text": texts.cast(pa.string(), safe=False)}
    good, bad = read(write(tmp_path / "q", columns))
    assert [(n, q.id) for n, q in good] == [(1, 1), (3, 3), (6, 6)]
    assert [n for n, _ in bad] == [2, 4, 5]
    assert "write it as UTF-8 text" in bad[0][1]
    assert "text is missing" in bad[1][1]
    assert "id is missing" in bad[2][1]


def test_a_broken_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    n = 300
    texts = [f"{i} " + "x" * (i % 50) for i in range(n)]
    columns = {"id": range(n), "task": ["math"] * n, "text": texts}
    path = write(tmp_path / "q", columns, row_group_size=100, compression="zstd", use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(1).column(2).data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 30 : start + 200] = bytes(170)
    path.write_bytes(data)
    good, bad = read(path)
    assert [q.id for _, q in good] == [*range(100), *range(200, 300)]
    assert [n for n, _ in good][100] == 201
    assert bad[0][0] == 101
    assert "rows 101 to 200 cannot be read" in bad[0][1]
    assert "write them again" in bad[0][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1", "the file looks like Parquet and cannot be read"),
        (b"PAR1" + bytes(1000) + b"PAR1", "the file looks like Parquet and cannot be read"),
    ],
)
def test_parquet_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "q").write_bytes(content)
    good, bad = read(tmp_path / "q")
    assert (good, len(bad)) == ([], 1)
    assert message in bad[0][1]
    write(tmp_path / "q", {"question": ["x"] * 9})
    assert read(tmp_path / "q") == (
        [],
        [(1, "no column is named id (the first are 'question'); name them id, task, text, choices, answer")],
    )


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """60 MB in one row group, read in batches of at most 8 MB."""
    n = 6000
    columns = {"id": range(n), "task": ["math"] * n, "text": [f"{i} " + "x" * 10_000 for i in range(n)]}
    path = write(tmp_path / "q.parquet", columns, row_group_size=n, use_dictionary=False)
    del columns
    before = pa.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    try:
        for line, _ in iter_rows(path):
            if line % 100 == 0:
                peak = max(peak, pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert line == n
    assert peak < 40e6


def test_csv_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    with path.open("w") as file:
        file.write("id,task,text\n")
        for i in range(4000):
            file.write(f'{i},math,"{"x" * 5000}\n{"y" * 5000}"\n')
    list(iter_rows(path))
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_rows(path)) == 4000
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
