"""Files to blocks: which files, bad rows with their lines, selections, and totals."""

import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from ensemble import read
from ensemble.errors import InputError, StoreError
from ensemble.read import InputSummary, Selection, find_inputs, iter_blocks, read_questions
from ensemble.records import Question, RowError


def row(i: object, **fields: object) -> dict[str, object]:
    return {"id": i, "task": "math", "text": f"What is {i}?"} | fields


def lines(rows: Iterable[object]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


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
        ("empty", "the folder 'empty' holds no question file (*.jsonl, *.json, *.parquet, *.csv, *.tsv); name"),
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
        by_block=[{"math": 2}, {"math": 1, "multiple_choice": 1}, {"multiple_choice": 1}],
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


def test_a_share_is_even_over_groups_too(tmp_path: Path) -> None:
    # 40 groups of 5 and one of 200: a tenth is 20 of the small ones' 200 rows, from as many groups, and 20 of the other
    small = [row(i, group=f"g{i // 5}") for i in range(200)]
    path = tmp_path / "q.jsonl"
    path.write_text(lines([*small, *(row(200 + i, group="large") for i in range(200))]))
    result = read_all(path, tmp_path / "out", Selection(limit=0.1))
    by_group = Counter(q.group for q in result.questions)
    assert by_group.pop("large") == 20
    assert 18 <= sum(by_group.values()) <= 22
    assert max(by_group.values()) == 1


@pytest.mark.parametrize("choices", [["a", "b", "a"], ["a ", " a"]])
def test_options_that_repeat_are_refused_where_orders_are_voted_on(tmp_path: Path, choices: list[str]) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(lines([row(1), row(2, task="multiple_choice", choices=choices)]))
    assert not read_all(path, tmp_path / "out").errors
    errors: list[RowError] = []
    read_questions(str(path), tmp_path / "out", Selection(), errors.append, distinct=True)
    (error,) = errors
    assert (error.line, error.id) == (2, 2)
    assert f"choices[{len(choices) - 1}] repeats choices[0]" in error.message


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
