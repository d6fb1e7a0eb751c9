"""Rows of JSONL files and JSON arrays: their lines, what is wrong with bad ones, and what reading costs."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ensemble.errors import InputError
from ensemble.rows import iter_rows

CHUNKS = (1, 2, 3, 7, 64, 4096)


def row(i: object, **fields: object) -> dict[str, object]:
    return {"id": i, "task": "math", "text": f"What is {i}?"} | fields


def rows_of(path: Path, content: str | bytes, chunk: int = 4096) -> tuple[list[tuple[int, object]], list[Any]]:
    """(line, id or value) of the rows, (line, message) of the errors."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = list(iter_rows(path, chunk))
    good = [(n, r.get("id") if isinstance(r, dict) else r) for n, r in found if not isinstance(r, InputError)]
    return good, [(n, str(r)) for n, r in found if isinstance(r, InputError)]


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
    monkeypatch.setattr("ensemble.rows.MAX_ROW", 100_000)
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
    monkeypatch.setattr("ensemble.rows._DECODER", counting)
    return counting


def test_many_rows_cut_in_two_are_not_searched_to_the_end_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: CountingDecoder
) -> None:
    monkeypatch.setattr("ensemble.rows.MIN_LIMIT", 10_000)
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
    monkeypatch.setattr("ensemble.rows.MAX_ROW", 10_000)
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
    monkeypatch.setattr("ensemble.rows.MIN_LIMIT", 1000)
    good, bad = rows_of(tmp_path / "q", '[{"id": 1 BAD},' + json.dumps([row(2, text="x" * 50_000)])[1:], 64)
    assert (good, [n for n, _ in bad]) == ([(1, 2)], [1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file has no rows"),
        (b"\xef\xbb\xbf", "the file has no rows"),
        (b" \n\r\n\t", "the file has no rows"),
        (b" [ \n ] \n", "the file has no rows"),
        (gzip.compress(b'{"id": 1}', mtime=0), "looks like gzip: decompress it first"),
        (b"PAR1" + bytes(99), "looks like Parquet and cannot be read (Parquet magic bytes not found"),
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
