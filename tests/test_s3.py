"""solve.py with its input, store and output in a bucket: complete, killed and resumed, and replayed."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemble.config import ROOT
from ensemble.files import location, parquet_file
from tests.test_files import local_s3
from tests.test_solve import Sandbox, good

pytestmark = pytest.mark.slow

QUESTIONS = [good(i) for i in range(60)]
FILES = ("predictions.jsonl", "grades.json", "submission.json", "errors.jsonl")
BUCKET = f"s3://quorum/a folder/{os.getpid()}"  # the lock of a run's folder holds for all of the machine


@pytest.fixture
def sandbox(tmp_path: Path, word_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with local_s3() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield Sandbox(tmp_path, word_tokenizer)


def put_inputs() -> None:
    """The questions as a folder of one JSONL, one CSV and one Parquet file, with one bad row."""
    folder = location(f"{BUCKET}/in")
    lines = [json.dumps(row) for row in QUESTIONS[:20]]
    (folder / "a.jsonl").write_bytes("\n".join([*lines, '{"id": "bad"']).encode())
    table = io.StringIO()
    writer = csv.DictWriter(table, ["id", "task", "text", "choices", "answer", "group"])
    writer.writeheader()
    writer.writerows(row | ({"choices": json.dumps(row["choices"])} if "choices" in row else {}) for row in rows(20))
    (folder / "b.csv").write_bytes(table.getvalue().encode())
    texts = [row | {"id": str(row["id"]), "answer": str(row["answer"])} for row in rows(40)]
    with (buffer := io.BytesIO()):
        pq.write_table(pa.Table.from_pylist(texts), buffer)
        (folder / "c.parquet").write_bytes(buffer.getvalue())


def rows(start: int) -> list[dict]:
    return QUESTIONS[start : start + 20]


def command(sandbox: Sandbox, fake: str, *more: str) -> list[str]:
    script = [sys.executable, str(ROOT / "pipelines/solve.py"), "--config", str(sandbox.config(fake))]
    places = ["--input", f"{BUCKET}/in", "--output", f"{BUCKET}/run", "--set", f"store.path={BUCKET}/store"]
    return [*script, *places, "--set", "store.flush_seconds=0.2", *more]


def solve(sandbox: Sandbox) -> dict:
    done = subprocess.run(
        command(sandbox, "{}"), capture_output=True, text=True, env=sandbox.env(), cwd=sandbox.folder, timeout=200
    )
    assert done.returncode == 1, done.stderr  # the bad row
    assert "1 bad rows" in done.stdout
    return json.loads((location(BUCKET) / "run/manifest.json").read_text())["questions"]


def stored_rows() -> int:
    return sum(parquet_file(path).metadata.num_rows for path in location(f"{BUCKET}/store").glob("*/*/*.parquet"))


def test_everything_in_a_bucket(sandbox: Sandbox) -> None:
    put_inputs()
    run = location(f"{BUCKET}/run")
    slow = command(sandbox, "{seconds: 0.3}", "--set", "ray.questions_in_flight=2")
    with open(sandbox.folder / "log", "w") as log:
        killed = subprocess.Popen(slow, env=sandbox.env(), cwd=sandbox.folder, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 100
    while stored_rows() < 10:
        assert killed.poll() is None, (sandbox.folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept, last = stored_rows(), -1
    while kept != last:  # Ray's processes end a moment later
        time.sleep(2)
        kept, last = stored_rows(), kept
    assert 10 <= kept < 108
    assert not (run / "predictions.jsonl").exists()

    first = solve(sandbox)
    assert (first["total"], first["answered"], first["failed"], first["bad_rows"]) == (60, 60, 0, 1)
    assert first["from_store"] > 0
    assert first["computed"] == 60 - first["from_store"]
    assert stored_rows() == 48 * 2 + 12  # two members of multiple choice, one of math: nothing is there twice
    written = {name: (run / name).read_bytes() for name in FILES}
    predictions = [json.loads(line) for line in written["predictions.jsonl"].splitlines()]
    assert [str(p["id"]) for p in predictions] == [str(q["id"]) for q in QUESTIONS]
    assert all(p["grade"] for p in predictions)
    (error,) = map(json.loads, written["errors.jsonl"].splitlines())
    assert (error["file"], error["line"]) == (f"{BUCKET}/in/a.jsonl", 21)
    assert "<html" in (run / "report.html").read_text()

    again = solve(sandbox)
    assert (again["from_store"], again["computed"]) == (60, 0)
    assert {name: (run / name).read_bytes() for name in FILES} == written
    store = [sys.executable, str(ROOT / "pipelines/store.py")]
    for verb, said in (("gc", "segments -> 1, 48 rows"), ("verify", "48 rows     1 segments  tiny/choice")):
        done = subprocess.run(
            [*store, verb, f"{BUCKET}/store"], capture_output=True, text=True, env=sandbox.env(), cwd=sandbox.folder
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    local = [str(path) for path in sandbox.folder.iterdir() if path.name not in ("home", "q", "run.yaml", "log")]
    assert local == []  # nothing was written beside the bucket
