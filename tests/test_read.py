"""Files to rows to blocks: formats, bad rows with their lines, selections, and totals."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ensemble import read
from ensemble.errors import InputError, StoreError
from ensemble.read import InputSummary, Selection, find_inputs, iter_blocks, iter_rows, read_questions
from ensemble.records import Question, RowError

CHUNKS = (1, 2, 3, 7, 64, 4096)


def row(i: object, **fields: object) -> dict[str, object]:
    return {"id": i, "task": "math", "text": f"What is {i}?"} | fields


def lines(rows: Iterable[object]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


def rows_of(path: Path, content: str | bytes, chunk: int = 4096) -> tuple[list[tuple[int, object]], list[Any]]:
    """(line, id or value) of the rows, (line, message) of the errors."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = list(iter_rows(path, chunk))
    good = [(n, r.get("id") if isinstance(r, dict) else r) for n, r in found if not isinstance(r, InputError)]
    return good, [(n, str(r)) for n, r in found if isinstance(r, InputError)]


class Result(NamedTuple):
    summary: InputSummary
    questions: list[Question]
    errors: list[RowError]


def read_all(spec: Path | str, out: Path, selection: Selection = Selection(), block_rows: int = 512) -> Result:  # noqa: B008
    errors: list[RowError] = []
    summary = read_questions(str(spec), out, selection, errors.append, block_rows)
    return Result(summary, [q for block in iter_blocks(summary.blocks) for q in block], errors)


# --- which files ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.jsonl", "a.json", "sub/c.jsonl", "sub/d.JSONL", "note.txt", ".hidden.jsonl", ".git/e.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(lines([row(name)]))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("b.jsonl", ["b.jsonl"]),
        ("note.txt", ["note.txt"]),
        (".hidden.jsonl", [".hidden.jsonl"]),
        (".", ["a.json", "b.jsonl", "sub/c.jsonl", "sub/d.JSONL"]),
        ("sub", ["sub/c.jsonl", "sub/d.JSONL"]),
        ("*.jsonl", ["b.jsonl"]),
        ("*", ["a.json", "b.jsonl", "note.txt"]),
        ("**/*.jsonl", ["b.jsonl", "sub/c.jsonl"]),
        ("[ab].json*", ["a.json", "b.jsonl"]),
    ],
)
def test_find_inputs(folder: Path, spec: str, names: list[str]) -> None:
    assert [str(path) for path in find_inputs(spec)] == names
    if spec != ".":
        assert find_inputs(str(folder / spec)) == [folder / name for name in names]


def test_a_file_whose_name_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "q[1].jsonl").touch()
    assert find_inputs(str(tmp_path / "q[1].jsonl")) == [tmp_path / "q[1].jsonl"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bb.jsonl", "no file or folder matches 'bb.jsonl'; did you mean 'b.jsonl'?"),
        ("sub/c.json", "no file or folder matches 'sub/c.json'; did you mean 'sub/c.jsonl'?"),
        ("nothing/like/it", "no file or folder matches 'nothing/like/it'; check the path (from /"),
        ("zzzzzz*", "no file or folder matches 'zzzzzz*'; check the path (from /"),
        ("empty", "the folder 'empty' holds no *.jsonl or *.json file; name the file or another folder"),
        (" ", "the input is empty; name a file, a folder or a glob"),
        ("x" * 5000, "cannot be read: File name too long; check the path"),
    ],
)
def test_find_inputs_refuses(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_inputs(spec)
    assert message in str(caught.value)


def test_a_closed_folder_is_an_input_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))  # as root tests may read everything

    monkeypatch.setattr("os.scandir", closed)
    with pytest.raises(InputError, match="'sub' cannot be read: Permission denied; check the path and its permissions"):
        find_inputs("sub")


# --- rows of a file ---


@pytest.mark.parametrize(
    "content",
    [
        '{"id": 1}\n\n  \n{"id": 2}\n',
        '{"id": 1}\n\n\n{"id": 2}',
        '\ufeff{"id": 1}\r\n\r\n\r\n{"id": 2}\r\n',
        '[{"id": 1},\n\n\n{"id": 2}]',
        '\ufeff[{"id": 1}\r\n\r\n\r\n, {"id": 2}\r\n]\r\n',
        '[{"id": 1,\n"a": [\n1\n]}, {"id": 2},]',
    ],
)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_formats(tmp_path: Path, content: str, chunk: int) -> None:
    good, bad = rows_of(tmp_path / "any.name", content, chunk)
    assert [i for _, i in good] == [1, 2]
    assert [n for n, _ in good] in ([1, 4], [1, 1] if '"a"' in content else [1, 4])
    assert bad == []


def test_array_after_much_white_space(tmp_path: Path) -> None:
    good, bad = rows_of(tmp_path / "q.json", " \n" * 2_000_000 + '[{"id": 1},\n{"id": 2}]')
    assert (good, bad) == ([(2_000_001, 1), (2_000_002, 2)], [])


@pytest.mark.parametrize("chunk", CHUNKS)
def test_array_elements_across_chunks(tmp_path: Path, chunk: int) -> None:
    values: list[Any] = [
        *(123456789, -1.5e-7, 1e22, True, None, "plain", 'a "quoted" \\ back', "\n\t\u2028", "😀 é 漢字", ""),
        *({}, {"a": [[], [{}]]}, {"id": 7, "text": "x, {y}\n, [z]", "e": "😀"}, {"text": "漢" * 100}),
    ]
    for indent, ascii_only in ((None, True), (None, False), (1, True), (3, False)):
        path = tmp_path / "values.json"
        path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        assert [value for _, value in iter_rows(path, chunk)] == values


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_array_lines(tmp_path: Path, chunk: int, indent: int | None) -> None:
    rows = [row(i, text="x" * (i * 7 % 50), choices=[{"choice_id": 1}] * (i % 3)) for i in range(60)]
    text = "\n\n" + json.dumps(rows, indent=indent)
    starts, position = [], 0
    for i in range(60):  # where the rows start, found in the text itself
        position = text.index(f'"id": {i},', position)
        starts.append(text.count("\n", 0, text.rindex("{", 0, position)) + 1)
    good, bad = rows_of(tmp_path / "q.json", text, chunk)
    assert (good, bad) == (list(zip(starts, range(60), strict=True)), [])


# Each line of JSONL and the message for it; `good` rows stand before and after.
BAD_LINES: dict[str, tuple[str | bytes, str]] = {
    "half": ('{"id": 2, "text": "x"', "not valid JSON: Expecting ',' delimiter at column 22"),
    "comma": ('{"id": 2},', 'Extra data at column 10, near \'{"id": 2},'),
    "two": ('{"id": 2} {"id": 3}', "write one JSON object per line and nothing behind it"),
    "quotes": ("{'id': 2}", "Expecting property name enclosed in double quotes at column 2"),
    "string": ('{"id": "2}', "Unterminated string starting at column 8"),
    "tab": ('{"id": "2\t"}', "write line breaks and tabs inside strings as \\n and \\t"),
    "escape": ('{"id": "\\x"}', "double the backslash"),
    "value": ('{"id": }', "Expecting value at column 8"),
    "word": ("id,task,text", "Expecting value at column 1"),
    "nan": ('{"id": NaN}', "NaN is not JSON; write null, or a number"),
    "infinity": ('{"id": [-Infinity]}', "-Infinity is not JSON; write null, or a number"),
    "deep": ("[" * 100_000, "the row is nested too deep"),
    "long number": ('{"id": ' + "9" * 5000 + "}", "a number is too long; write it as a string"),
    "latin": (b'{"id": "\xe9"}', "not valid UTF-8 at column 9 (byte 0xe9); save the file as UTF-8"),
    "surrogate": (b'{"id": "\xed\xa0\x80"}', "not valid UTF-8 at column 9 (byte 0xed)"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_bad_lines(tmp_path: Path, kind: str, newline: bytes) -> None:
    line, message = BAD_LINES[kind]
    raw = line if isinstance(line, bytes) else line.encode()
    good, bad = rows_of(tmp_path / "q", newline.join([b'{"id": 1}', b"", raw, b'{"id": 4}']))
    assert good == [(1, 1), (4, 4)]
    assert [n for n, _ in bad] == [3]
    assert message in bad[0][1]


def test_columns_count_characters(tmp_path: Path) -> None:
    _, bad = rows_of(tmp_path / "q", '{"漢字": "é"'.encode() + b"\xff}\n" + '{"漢字": é}'.encode())
    assert ["column 11 (" in bad[0][1], "column 8," in bad[1][1]] == [True, True]


def test_a_line_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_ROW", 100_000)
    longest = '{"id": 2, "text": "' + "x" * (100_000 - 21) + '"}'
    assert len(longest) == 100_000
    content = f'{{"id": 1}}\n{longest}\n{longest} \n{{"id": 4}}\n{"y" * 1_000_000}\n{{"id": 6}}\n{"z" * 100_001}'
    good, bad = rows_of(tmp_path / "q", content)
    assert good == [(1, 1), (2, 2), (4, 4), (6, 6)]
    assert [n for n, _ in bad] == [3, 5, 7]
    assert bad[0][1] == "the line is longer than 100000 bytes; write one row per line, or shorten it"


BAD_ELEMENTS: dict[str, str | bytes] = {
    "comma": '{"id": 2 "task": "math"}',
    "nested": '{"id": 2, "choices": [{"choice_id": 1, "text": "x"}, {"choice_id": 2 "text": "y"}, {"choice_id": 3,'
    ' "text": "z"}, {"choice_id": 4, "text": "z"}], "answer": 1}',
    "quote": '{"id": 2, "text": "x}',
    "quotes": "{'id': 2, 'text': 'x'}",
    "bracket": '{"id": 2, "choices": ["x", "y"}',
    "word": "oops",
    "nothing": "",
    "nan": '{"id": NaN}',
    "deep": '{"id": 2, "text": ' + "[" * 5000 + "]" * 5000 + "}",
    "long number": '{"id": ' + "9" * 5000 + "}",
    "escape": '{"id": 2, "text": "\\x"}',
    "latin": b'{"id": 2, "text": "\xe9"}',
    "latin outside": b'{"id": 2, \xe9: "x"}',
    "inner": '{"id": 2, "text": "a, {b}, [c", "x": {"text": 3}, "y": [1, {"z": 1}, {"z"}], "w": 1}',
    "trailing comma": '{"id": 2, "text": "x",}',
}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("separator", [",\n", ", ", ","])
@pytest.mark.parametrize("kind", BAD_ELEMENTS)
def test_bad_elements(tmp_path: Path, kind: str, separator: str, chunk: int) -> None:
    """One error where the element starts; the rows around it are read. First, last, in the middle."""
    element = BAD_ELEMENTS[kind]
    raw = element if isinstance(element, bytes) else element.encode()
    before, after = b'{"id": 1, "text": "x"}', b'{"id": 3, "text": "x"}'
    newlines = separator.count("\n")
    for parts in ([before, raw, after, after], [raw, after], [before, raw]):
        good, bad = rows_of(tmp_path / "q", b"[\n" + separator.encode().join(parts) + b"\n]\n", chunk)
        at = [2 + i * newlines for i in range(len(parts))]
        if parts[-1] == b"":
            assert bad == []  # a comma before the closing bracket does no harm
        else:
            # Nothing stands there: the next thing is the comma behind it, on the same line.
            assert [n for n, _ in bad] == [at[parts.index(raw)]], bad
        assert good == [(n, 1 if part is before else 3) for n, part in zip(at, parts, strict=True) if part is not raw]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_bad_elements_side_by_side(tmp_path: Path, chunk: int) -> None:
    content = '[\n{"id": 1 BAD},\n{"id": 2 BAD},\n{"task": "math" BAD},\n{"id": 4},\n{"id": 5 BAD}, {"id": 6 BAD}\n]'
    good, bad = rows_of(tmp_path / "q", content, chunk)
    assert (good, [n for n, _ in bad]) == ([(5, 4)], [2, 3, 4, 6, 6])
    assert "not valid JSON: Expecting ',' delimiter on line 2, near '{\"id\": 1 BAD" in bad[0][1]


def test_the_message_names_the_line_of_the_fault(tmp_path: Path) -> None:
    _, bad = rows_of(tmp_path / "q", '[\n{"id": 1,\n "text": "x",\n "group" "y"\n}]')
    assert [n for n, _ in bad] == [2]
    assert "Expecting ':' delimiter on line 4, near" in bad[0][1]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("content", "good", "errors"),
    [
        ('[\n{"id": 1},\n{"id": 2}\n', [1, 2], [(3, "the array is not closed; add ]")]),
        ('[\n{"id": 1},\n{"id": 2},\n\n\n', [1, 2], [(3, "the array is not closed; add ]")]),
        ('[\n{"id": 1},\n{"id": 2, "text": "x', [1], [(3, "Unterminated string")]),
        ('[\n{"id": 1},\n{"id": 2, "text": [', [1], [(3, "Expecting value")]),
        ("[", [], [(1, "the array is not closed; add ]")]),
        ('[{"id": 1}\n{"id": 2},\n{"id": 3}]', [1, 2, 3], [(2, "a comma is missing before this row")]),
        ('[{"id": 1} oops,\n{"id": 2}]', [1, 2], [(1, "a comma is missing before this row")]),
        ('[{"id": 1}]\n[\n{"id": 2}]', [1, 2], [(2, "text follows the end of the array")]),
        ('[{"id": 1}]\noops', [1], [(2, "text follows the end of the array")]),
        ('[{"id": 1}, "id", 3, null, 4.5]', [1, "id", 3, None, 4.5], []),
        ('[{"id": 1}, [4],\n{"id": 2}]', [1, 2], [(1, "this is a list; take its brackets away")]),
        ('[{"id": 1},\n[\n{"id": 2},\n{"id": 3}]', [1, 2, 3], [(2, "this is a list; take its brackets away")]),
    ],
)
def test_faults_of_the_array_itself(
    tmp_path: Path, content: str, good: list[object], errors: list[tuple[int, str]], chunk: int
) -> None:
    found, bad = rows_of(tmp_path / "q", content, chunk)
    assert [value for _, value in found] == good
    assert [n for n, _ in bad] == [n for n, _ in errors]
    assert all(message in text for (_, text), (_, message) in zip(bad, errors, strict=True)), bad


def test_a_row_cut_in_two_does_not_take_the_rest_along(tmp_path: Path) -> None:
    """Its open brackets would hold all rows that follow."""
    rows = [json.dumps(row(i)) for i in range(2000)]
    rows[3] = '{"id": 3, "task": "math", "choices": ["a", "b"'
    good, bad = rows_of(tmp_path / "q", "[\n" + ",\n".join(rows) + "\n]", 64)
    assert [i for _, i in good] == [i for i in range(2000) if i != 3]
    assert [n for n, _ in bad] == [5]


class CountingDecoder(json.JSONDecoder):
    """What decoding costs, in characters that were handed to it."""

    decoded = 0

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        self.decoded += len(s)
        return super().raw_decode(s, idx)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> CountingDecoder:
    counting = CountingDecoder()
    monkeypatch.setattr(read, "_DECODER", counting)
    return counting


def test_many_rows_cut_in_two_are_not_searched_to_the_end_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: CountingDecoder
) -> None:
    monkeypatch.setattr(read, "MIN_LIMIT", 10_000)
    rows = [json.dumps(row(i, text="x" * 500)) for i in range(2000)]
    for i in range(0, 2000, 50):
        rows[i] = f'{{"id": {i}, "choices": ["a"'
    content = "[\n" + ",\n".join(rows) + "\n]"
    good, bad = rows_of(tmp_path / "q", content, 1024)
    assert [i for _, i in good] == [i for i in range(2000) if i % 50]
    assert [n for n, _ in bad] == list(range(2, 2002, 50))
    assert decoder.decoded < 8 * len(content)


@pytest.mark.parametrize("element", ['{"id": 2 "x"},', '{"id": 2, "x": ["a",', '{"id": "2},', '{"a":\n{', ',{"a":[1'])
def test_files_full_of_faults_take_linear_time(tmp_path: Path, decoder: CountingDecoder, element: str) -> None:
    """Four times the faults cost about four times as much, not 16 times."""

    def cost(count: int) -> int:
        before = decoder.decoded
        good, _ = rows_of(tmp_path / "q", "[" + element * count + ',\n{"id": 1}]')
        assert [i for _, i in good] == [1]
        return decoder.decoded - before

    assert cost(4000) < 8 * cost(1000)


def test_an_element_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_ROW", 10_000)
    content = json.dumps([row(1), row(2, text="x" * 100_000), row(3)])
    good, bad = rows_of(tmp_path / "q", content, 64)
    assert [i for _, i in good] == [1, 3]
    assert bad == [(1, "the row does not end within 10000 characters; close its brackets and quotes")]


@pytest.mark.parametrize("between", [",   ", ",\t\r ", "\n   ", "\n\t"])
def test_the_next_row_is_found_across_reads(tmp_path: Path, between: str) -> None:
    for length in range(1, 64):  # so that a read ends in each place between the rows
        good, bad = rows_of(tmp_path / "q", "[" + "o" * length + between + '{"id": 3}]', 1)
        assert ([i for _, i in good], [n for n, _ in bad]) == ([3], [1])


def test_a_long_row_after_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MIN_LIMIT", 1000)
    good, bad = rows_of(tmp_path / "q", '[{"id": 1 BAD},' + json.dumps([row(2, text="x" * 50_000)])[1:], 64)
    assert (good, [n for n, _ in bad]) == ([(1, 2)], [1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file has no rows"),
        (b"\xef\xbb\xbf", "the file has no rows"),
        (b" \n\r\n\t", "the file has no rows"),
        (b" [ \n ] \n", "the file has no rows"),
        (gzip.compress(b'{"id": 1}'), "looks like gzip: decompress it first"),
        (b"PAR1" + bytes(99), "looks like Parquet, which is not read: convert to JSONL"),
        (b"PK\x03\x04 and so on", "looks like a zip archive: unpack it first"),
        (b"\x28\xb5\x2f\xfd and so on", "looks like zstd: decompress it first"),
        ('{"id": 1}'.encode("utf-16"), "looks like UTF-16 text: save it as UTF-8"),
        ('{"id": 1}\n'.encode("utf-16-le") * 9, "looks like binary data (it has NUL bytes)"),
        (b'{"id": 1}\n' * 6000 + b"\0", "looks like binary data (it has NUL bytes)"),
        (json.dumps({"data": [row(i) for i in range(99)]}, indent=1).encode(), "make its list 'data' a file"),
        (b'{"data": [\n' + b'{"id": 1, "task": "math"},\n' * 99 + b"]}", "make its list 'data' a file"),
        (b'{"data": [\n{"id": 1},\n{"id": 2}\n]}', "make its list 'data' a file"),
        (b'{"version": 1,\n"data": [\n' + b'{"id": 1},\n' * 99 + b"]}", "make its list 'data' a file"),
        (b'{\n "id": 1\n}\n{\n "id": 2\n}\n', "one JSON object over several lines; make its rows a file"),
    ],
)
def test_unusable_files_give_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    good, bad = rows_of(tmp_path / "q", content)
    assert good == []
    assert len(bad) == 1
    assert bad[0][0] == 1
    assert message in bad[0][1]


@pytest.mark.parametrize(
    "first",
    ['{"id": 1, "task": "math",', '{"id": 1, "choices": [', '{"id": 1},', "{", '{"text": "a,\nb,\nc", "id": 1}'],
)
def test_a_broken_first_row_is_no_object_over_several_lines(tmp_path: Path, first: str) -> None:
    n = first.count("\n") + 1
    good, bad = rows_of(tmp_path / "q", first + '\n{"id": 2}\n{"id": 3}\n')
    assert (good, [line for line, _ in bad]) == ([(n + 1, 2), (n + 2, 3)], list(range(1, n + 1)))


def test_commas_between_lines_are_named(tmp_path: Path) -> None:
    good, bad = rows_of(tmp_path / "q", '{"id": 1},\n{"id": 2},\n{"id": 3}\n')
    assert (good, [line for line, _ in bad]) == ([(3, 3)], [1, 2])
    assert "nothing behind it, no comma either" in bad[0][1]


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    ((line, error),) = iter_rows(tmp_path)
    assert (line, str(error)) == (1, "cannot be read: Is a directory; check the file and its permissions")
    ((_, missing),) = iter_rows(tmp_path / "missing")
    assert "No such file" in str(missing)


# --- the whole step ---


BAD_ROWS: list[tuple[str | bytes, str]] = [
    ('{"id": "b0", "task": "math", "text": "x"', "not valid JSON"),
    (b'{"id": "b1", "task": "math", "text": "\xff"}', "not valid UTF-8"),
    ('"just a string"', "a row must be an object"),
    ('{"task": "math", "text": "x"}', "id is missing"),
    ('{"id": 1.5, "task": "math", "text": "x"}', "id is 1.5"),
    ('{"id": "g0", "task": "math", "text": "x"}', "id 'g0' is there already on line 1; give every row its own id"),
    ('{"id": "b6", "task": "maths", "text": "x"}', "did you mean 'math'?"),
    ('{"id": "b7", "text": "x"}', "task is missing"),
    ('{"id": "b8", "task": "math", "text": ""}', "text is blank"),
    ('{"id": "b9", "task": "math", "text": "\\ud83d"}', "half of a surrogate pair"),
    ('{"id": "b10", "task": "multiple_choice", "text": "x"}', "choices is missing"),
    ('{"id": "b11", "task": "multiple_choice", "text": "x", "choices": ["a"]}', "choices has 1 option"),
    ('{"id": "b12", "task": "multiple_choice", "text": "x", "choices": ["a", "b"], "answer": 2}', "out of range"),
    ('{"id": "b13", "task": "math", "text": "x", "answer": []}', "answer is an empty list"),
    ('{"id": "b14", "task": "math", "text": "x", "context": NaN}', "NaN is not JSON"),
]


@pytest.mark.parametrize("array", [False, True])
def test_bad_rows_never_stop_good_ones(tmp_path: Path, array: bool) -> None:
    contents: list[bytes] = [json.dumps(row(f"g{i}", answer=i)).encode() for i in range(25)]
    order = list(range(1, 25)) + [-1 - i for i in range(15)]
    random.Random(3).shuffle(order)
    # The row whose id the duplicate repeats comes first, and the row that is a string not after a broken one: in an
    # array only an object is taken for the next row there.
    order.remove(-3)
    order = [0, -3, *order]
    bad = [text if isinstance(text, bytes) else text.encode() for text, _ in BAD_ROWS]
    raw = [contents[i] if i >= 0 else bad[-1 - i] for i in order]
    path = tmp_path / "q"
    path.write_bytes(b"[" + b",\n".join(raw) + b"]" if array else b"\n".join(raw))

    result = read_all(path, tmp_path / "out")

    good = [i for i in order if i >= 0]
    assert [(q.row_index, q.id, q.line, q.file) for q in result.questions] == [
        (k, f"g{i}", order.index(i) + 1, str(path)) for k, i in enumerate(good)
    ]
    expected = [(n + 1, BAD_ROWS[-1 - i][1]) for n, i in enumerate(order) if i < 0]
    assert [error.line for error in result.errors] == [line for line, _ in expected]
    assert all(text in error.message for error, (_, text) in zip(result.errors, expected, strict=True)), result.errors
    assert {error.type for error in result.errors} == {"InputError"}
    ids = {error.line: error.id for error in result.errors}
    assert ids[order.index(-7) + 1] == "b6"
    assert ids[order.index(-4) + 1] is None
    assert ids[order.index(-1) + 1] is None
    summary = result.summary
    assert (summary.rows, summary.bad, summary.duplicates, summary.with_gold, summary.files) == (25, 15, 1, 25, 1)


def test_totals(tmp_path: Path) -> None:
    choice = {"task": "multiple_choice", "text": "abc", "choices": ["d", "ef"]}
    rows = [
        row(1, text="1234", context="56"),
        row(2, text="1234", context="56", answer=3),
        row(3, text="1"),
        row(4) | choice,
        row("4", answer="b") | choice,
    ]
    path = tmp_path / "q.jsonl"
    path.write_text(lines(rows))
    result = read_all(path, tmp_path / "out", block_rows=2)
    assert result.summary == InputSummary(
        rows=5,
        by_task={"math": 3, "multiple_choice": 2},
        characters={"math": 13, "multiple_choice": 12},
        bad=0,
        duplicates=0,
        repeated_content=2,
        files=1,
        blocks=[str(tmp_path / "out" / f"block-0000{i}.parquet") for i in range(3)],
        with_gold=2,
        longest={"math": 6, "multiple_choice": 6},
        missing_ids=[],
    )
    assert [len(block) for block in iter_blocks(result.summary.blocks)] == [2, 2, 1]
    assert [q.id for q in result.questions] == [1, 2, 3, 4, "4"]


def test_long_rows_make_short_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "BLOCK_CHARACTERS", 1000)
    path = tmp_path / "q.jsonl"
    path.write_text(lines(row(i, text="x" * 400) for i in range(7)))
    result = read_all(path, tmp_path / "out")
    assert [len(block) for block in iter_blocks(result.summary.blocks)] == [3, 3, 1]
    assert [q.row_index for q in result.questions] == list(range(7))


def test_several_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In sorted order, named as the user named them; ids must differ over all of them."""
    (folder / "sub/c.jsonl").write_text("\n" + lines([row("c"), row("b.jsonl"), row("c")]))
    result = read_all(".", tmp_path_factory.mktemp("out"))
    assert [(q.row_index, q.file, q.line) for q in result.questions] == [
        (0, "a.json", 1),
        (1, "b.jsonl", 1),
        (2, "sub/c.jsonl", 2),
        (3, "sub/d.JSONL", 1),
    ]
    assert [(e.file, e.line, e.id, e.message) for e in result.errors] == [
        ("sub/c.jsonl", 3, "b.jsonl", "id 'b.jsonl' is there already on line 1 of b.jsonl; give every row its own id"),
        ("sub/c.jsonl", 4, "c", "id 'c' is there already on line 2; give every row its own id"),
    ]
    assert (result.summary.files, result.summary.duplicates) == (4, 2)


def test_a_bad_row_does_not_take_its_id(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(lines([row(1, text=""), row(1)]))
    result = read_all(path, tmp_path / "out")
    assert ([q.line for q in result.questions], [e.line for e in result.errors]) == ([2], [1])


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.jsonl"
    try:
        path.write_text(lines([row(1)]))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert [q.file for q in read_all(path, tmp_path / "out").questions] == [str(tmp_path / "caf\\xe9.jsonl")]


MIXED = [row(i, task="math" if i % 3 else "generation") for i in range(30)]


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        (Selection(), list(range(30))),
        (Selection(limit=4), [0, 1, 2, 3]),
        (Selection(limit=30), list(range(30))),
        (Selection(limit=31), list(range(30))),
        (Selection(task="generation"), list(range(0, 30, 3))),
        (Selection(limit=2, task="generation"), [0, 3]),
        (Selection(ids=frozenset(["4", "17"])), [4, 17]),
        (Selection(limit=1, ids=frozenset(["4", "17"])), [4]),
        (Selection(ids=frozenset(["4", "18"]), task="math"), [4]),
        # 10 of generation are 0, 3, 6, ...; every second one from the second. 20 of math are 1, 2, 4, 5, ...
        (Selection(limit=0.5, task="generation"), [3, 9, 15, 21, 27]),
        (Selection(limit=0.1), [14, 27, 29]),
        (Selection(limit=0.5, ids=frozenset(["4", "17"])), [17]),
    ],
)
def test_selection(tmp_path: Path, selection: Selection, ids: list[int]) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(lines(MIXED))
    result = read_all(path, tmp_path / "out", selection)
    assert [q.id for q in result.questions] == ids
    assert [q.row_index for q in result.questions] == list(range(len(ids)))
    assert result.summary.rows == sum(result.summary.by_task.values()) == len(ids)


@pytest.mark.parametrize(
    ("selection", "missing"),
    [
        (Selection(ids=frozenset(["4", "x", "None", "31"])), ["None", "x"]),
        # Row 18 is there, the task leaves it out; row 31 is there, but bad.
        (Selection(ids=frozenset(["4", "18", "31"]), task="math"), []),
        # Reading ended at row 4: whether x comes later is not known.
        (Selection(limit=1, ids=frozenset(["4", "x"])), []),
    ],
)
def test_missing_ids(tmp_path: Path, selection: Selection, missing: list[str]) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(lines([*MIXED, row(31, text=""), row(None)]))
    assert read_all(path, tmp_path / "out", selection).summary.missing_ids == missing


def test_a_limit_ends_the_reading(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text(lines([row(f"{name}{i}") for i in range(3)]) + "broken")
    result = read_all(str(tmp_path / "*.jsonl"), tmp_path / "out", Selection(limit=5))
    assert [q.id for q in result.questions] == ["a0", "a1", "a2", "b0", "b1"]
    assert (result.summary.files, [e.line for e in result.errors]) == (2, [4])


def test_rows_outside_the_selection_count_only_when_bad(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(lines([row(1), row(2, task="generation", text=""), row(3, task="generation"), row(1)]))
    summary = read_all(path, tmp_path / "out", Selection(task="math")).summary
    assert (summary.rows, summary.bad, summary.duplicates, summary.by_task) == (1, 2, 1, {"math": 1})


@pytest.mark.parametrize(
    ("content", "selection", "message", "errors"),
    [
        ("", Selection(), "no usable row in 'q'; first error, q line 1: the file has no rows", 1),
        ("\noops\noops\n", Selection(), "no usable row in 'q'; first error, q line 2: not valid JSON", 2),
        (
            lines([row(1)]),
            Selection(ids=frozenset("xy")),
            "none of the 1 valid rows in 'q' is selected; widen ids (x, y)",
            0,
        ),
        (lines([row(1)]), Selection(task="generation"), "is selected; widen task (generation)", 0),
        (lines([row(1)]), Selection(limit=0.5), "is selected; widen limit (0.5)", 0),
        (lines([row(1)]), Selection(limit=0), "limit 0 is no selection; write a number of rows from 1", 0),
        (lines([row(1)]), Selection(limit=1.5), "limit 1.5 is no selection", 0),
        (lines([row(1)]), Selection(task="maths"), "unknown task 'maths'; did you mean 'math'?", 0),
    ],
)
def test_nothing_usable(folder: Path, content: str, selection: Selection, message: str, errors: int) -> None:
    Path("q").write_text(content)
    seen: list[RowError] = []
    with pytest.raises(InputError) as caught:
        read_questions("q", folder / "out", selection, seen.append)
    assert message in str(caught.value)
    assert len(seen) == errors


def test_stale_blocks_are_removed(tmp_path: Path) -> None:
    path, out = tmp_path / "q.jsonl", tmp_path / "deep" / "out"
    path.write_text(lines(MIXED))
    assert len(read_all(path, out, block_rows=4).summary.blocks) == 8
    (out / "other.txt").touch()
    summary = read_all(path, out, block_rows=20).summary
    assert sorted(str(p) for p in out.iterdir()) == [*summary.blocks, str(out / "other.txt")]
    assert len(summary.blocks) == 2


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(lines(MIXED))
    with pytest.raises(StoreError, match="name another folder"):
        read_all(path, path)
    with pytest.raises(StoreError, match="run the reading step again"):
        list(iter_blocks([str(tmp_path / "missing.parquet")]))
    (tmp_path / "half.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="run the reading step again"):
        list(iter_blocks([str(tmp_path / "half.parquet")]))


@pytest.mark.parametrize("array", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, array: bool) -> None:
    """40 MB of rows take a few MB, once the buffers stand: what is left grows with the number of rows only."""
    path = tmp_path / "q"
    with path.open("w") as file:
        file.write("[" * array)
        for i in range(4_000):
            file.write(("," * (i > 0 and array)) + json.dumps(row(i, text=f"{i} " + "x" * 10_000)) + "\n")
        file.write("]" * array)
    list(iter_rows(path))  # imports and caches
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_rows(path)) == 4_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


def test_memory_of_each_row(tmp_path: Path) -> None:
    """What stays of a row is twice a hash and a place, 24 to 48 bytes each time; repetitions take nothing."""
    seen = read._Seen()
    tracemalloc.start()
    try:
        for i in range(50_000):
            assert seen.first(random.Random(i).randbytes(8), i + 1) == 0
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size < 50 * 50_000
    slots = len(seen.places)
    assert {seen.first(random.Random(0).randbytes(8), 7) for _ in range(50_000)} == {1}
    assert len(seen.places) == slots
    assert [seen.first(random.Random(i).randbytes(8), 1) for i in (0, 1, 49_999)] == [1, 2, 50_000]


# --- real data ---


def test_real_files(data: Path, tmp_path: Path) -> None:
    """Row counts from the data's README."""
    counts = {
        **{"mmlu_dev": 285, "mmlu_test_a": 6913, "arc_challenge_dev": 299, "arc_easy_a": 983, "commonsenseqa_a": 609},
        **{"jcommonsenseqa_train": 8939, "jcommonsenseqa_valid": 1119, "bbq_a": 8968, "truthfulqa_a": 400},
        **{"piqa_validation": 1838, "aqua": 100, "bigbench_mc": 2058, "gsm8k_train": 1000, "gsm8k_test_a": 500},
        **{"bbh_object_counting": 250, "bbh_boolean_expressions": 250, "cnndm_sample": 100, "dialogsum": 200},
        **{"xlsum_ja_validation": 441},
    }
    files = sorted(data.glob("*.jsonl"))
    assert {path.stem for path in files} == set(counts)
    for path in files:
        result = read_all(path, tmp_path)
        assert (path.stem, result.summary.rows, result.errors) == (path.stem, counts[path.stem], [])
        assert result.summary.with_gold == result.summary.rows


@pytest.mark.parametrize(("name", "with_gold"), [("matsuo_style.json", 0), ("matsuo_style_gold.json", 120)])
def test_real_array(data: Path, tmp_path: Path, name: str, with_gold: int) -> None:
    result = read_all(data / name, tmp_path)
    assert (result.errors, result.summary.with_gold) == ([], with_gold)
    assert result.summary.by_task == {"multiple_choice": 100, "summarization": 20}
    first = result.questions[0]
    assert (first.line, first.choice_ids) == (2, (1, 2, 3, 4, 5))
    raw = json.loads((data / name).read_text(encoding="utf-8"))
    assert [q.id for q in result.questions] == [r["id"] for r in raw]
    if with_gold:
        assert first.gold == 3  # the choice_id 4
