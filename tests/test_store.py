"""The score store: what goes in comes out, first writer wins, crashes lose at most what was not flushed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ensemble.errors import StoreError
from ensemble.records import PromptFacts, Sample, Score
from ensemble.store import StoreReader, StoreWriter, open_store, segments
from tests.conftest import cyclic, identity


def a_score(value: float, orders=None, n=3) -> Score:
    orders = orders or identity(n)
    table = (value + np.arange(len(orders) * n).reshape(len(orders), n) / 7).astype(np.float32)
    return Score(orders, table, np.arange(1, n + 1, dtype=np.int32), None, PromptFacts(9, "ab" * 8, 1, 2, 30, 40))


def key(i: int) -> bytes:
    return i.to_bytes(16, "little")  # trailing zero bytes on purpose


def equal(a: Score | None, b: Score) -> bool:
    return (
        a is not None
        and a.orders == b.orders
        and np.array_equal(a.logprobs, b.logprobs)
        and np.array_equal(a.tokens, b.tokens)
        and a.prompt == b.prompt
    )


def test_round_trip_of_many_rows_over_several_segments(tmp_path):
    root = open_store(tmp_path / "store")
    writer = StoreWriter(root, 100)
    values = {key(i): a_score(-i, n=2 + i % 4) for i in range(10_000)}
    for i, (k, v) in enumerate(values.items()):
        writer.add("m", k, v)
        if i % 3000 == 0:
            writer.flush()
    writer.flush()
    reader = StoreReader(root, "scores", "m")
    assert len(reader) == 10_000
    found = reader.scores([*list(values), b"absent".ljust(16)])
    assert all(equal(f, v) for f, v in zip(found, values.values(), strict=False))
    assert found[-1] is None


def test_a_small_cache_finds_the_same(tmp_path, monkeypatch):
    root = open_store(tmp_path)
    writer = StoreWriter(root, 100)
    for i in range(500):
        writer.add("m", key(i), a_score(-i))
        if i % 50 == 49:
            writer.flush()
    monkeypatch.setattr("ensemble.store.CACHED_BYTES", 10_000)  # of 10 groups one or two
    reader = StoreReader(root, "scores", "m")
    asked = [i * 37 % 500 for i in range(500)]
    found = reader.scores([key(i) for i in asked])
    assert all(equal(f, a_score(-i)) for i, f in zip(asked, found, strict=True))


@pytest.mark.parametrize("orders", [identity(3), cyclic(3), ()])
@pytest.mark.parametrize("unconditional", [None, (-1.5, -2.5, -3.5)])
def test_a_score_comes_back_with_its_types(tmp_path, orders, unconditional):
    root = open_store(tmp_path)
    bare = None if unconditional is None else np.array(unconditional, dtype=np.float32)
    table = np.linspace(-9, -1, 3 * len(orders), dtype=np.float32).reshape(len(orders), 3)
    value = Score(orders, table, np.array([4, 5, 300], dtype=np.int32), bare, PromptFacts(9, "", 1))
    writer = StoreWriter(root, 100)
    writer.add("m", key(1), value)
    writer.flush()
    found = StoreReader(root, "scores", "m").scores([key(1)])[0]
    assert found is not None
    assert (found.orders, found.prompt) == (orders, value.prompt)
    assert all(type(p) is int for order in found.orders for p in order)
    assert (found.logprobs.shape, found.logprobs.dtype) == ((len(orders), 3), np.float32)
    assert equal(found, value)
    if bare is None:
        assert found.unconditional is None
    else:
        assert np.array_equal(found.unconditional, bare)


def test_samples_are_found_by_seed(tmp_path):
    root = open_store(tmp_path)
    writer = StoreWriter(root, 100)
    texts = {seed: Sample(f"text {seed} 日本\n", 3, "stop", seed, 0, PromptFacts(7)) for seed in (0, 1, -5)}
    for sample in texts.values():
        writer.add("m", key(1), sample)
    writer.flush()
    reader = StoreReader(root, "samples", "m")
    assert [reader.samples([key(1)], seed)[0] for seed in texts] == [(text,) for text in texts.values()]
    assert reader.samples([key(1)], 99) == [()]


def test_of_duplicates_the_first_counts_and_new_orders_extend(tmp_path):
    root = open_store(tmp_path)
    for value, orders in ((-1.0, cyclic(3)[:1]), (-2.0, cyclic(3)), (-3.0, cyclic(3))):
        writer = StoreWriter(root, 100)
        writer.add("m", key(5), a_score(value, orders))
        writer.flush()
        time.sleep(0.001)
    merged = StoreReader(root, "scores", "m").scores([key(5)])[0]
    assert merged is not None
    assert merged.orders == cyclic(3)
    first, second = a_score(-1.0).logprobs, a_score(-2.0, cyclic(3)).logprobs
    assert np.array_equal(merged.logprobs, np.concatenate([first, second[1:]]))


def test_nothing_half_written_is_ever_read(tmp_path):
    root = open_store(tmp_path)
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from ensemble.store import StoreWriter\n"
        "from tests.test_store import a_score, key\n"
        "writer = StoreWriter(Path(sys.argv[1]), 100)\n"
        "for i in range(10**6):\n"
        "    writer.add('m', key(i), a_score(-i))\n"
        "    writer.flush()\n"
        "    print(i, flush=True)\n"
    )
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root), repository], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        lines = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        lines += [int(line) for line in process.stdout.read().split()]
    reader = StoreReader(root, "scores", "m")
    assert all(equal(s, a_score(-i)) for i, s in zip(lines, reader.scores([key(i) for i in lines]), strict=True))


def test_a_damaged_segment_is_named_with_its_cure(tmp_path):
    root = open_store(tmp_path)
    writer = StoreWriter(root, 100)
    writer.add("m", key(1), a_score(-1))
    writer.flush()
    (path,) = segments(root, "scores", "m")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"delete it: only its rows are computed again"):
        StoreReader(root, "scores", "m")


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "schema.json").write_text('{"schema": 99}')
    with pytest.raises(StoreError, match="schema 99"):
        open_store(tmp_path)


def test_a_full_disk_keeps_the_rows_for_another_try(tmp_path, monkeypatch):
    root = open_store(tmp_path)
    writer = StoreWriter(root, 100)
    writer.add("m", key(1), a_score(-1))
    real = os.fsync

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device.*not computed again"):
        writer.flush()
    monkeypatch.setattr(os, "fsync", real)
    assert not list((root / "scores" / "m").iterdir())
    writer.flush()
    assert equal(StoreReader(root, "scores", "m").scores([key(1)])[0], a_score(-1))


def test_the_store_is_refused_where_a_file_stands(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"give a writable folder with --set store.path"):
        open_store(tmp_path / "file" / "store")


def store_command(*arguments):
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, os.path.join(repository, "pipelines/store.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_store_command_lists_verifies_compacts_and_exports(tmp_path):
    import pyarrow.parquet as pq

    root = open_store(tmp_path / "store")
    for value in (-1.0, -2.0, -3.0):
        writer = StoreWriter(root, 100)
        for i in range(3):
            writer.add("k", key(i), a_score(value - i))
        writer.flush()
        time.sleep(0.001)
    before = StoreReader(root, "scores", "k").scores([key(i) for i in range(3)])
    assert "9 rows     3 segments" in store_command("ls", root).stdout
    assert store_command("gc", root).returncode == 0
    assert len(segments(root, "scores", "k")) == 1
    after = StoreReader(root, "scores", "k").scores([key(i) for i in range(3)])
    assert all(equal(a, b) for a, b in zip(after, before, strict=True))
    assert store_command("export", root, "k", tmp_path / "out.parquet").returncode == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 9
    (segment,) = segments(root, "scores", "k")
    segment.write_bytes(b"PAR1 damaged")
    verified = store_command("verify", root)
    assert verified.returncode == 1
    assert "delete it: only its rows are computed again" in verified.stdout
    missing = store_command("export", root, "other", tmp_path / "x")
    assert missing.returncode == 2
    assert "available: k" in missing.stderr
    assert store_command("ls", tmp_path).returncode == 2
