"""The file layer: the same behaviour on disk and in a bucket of a local S3, and errors that say what to do."""

import json
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ensemble import files, store
from ensemble.errors import ConfigError, InputError, StoreError
from ensemble.files import ObjectPath, ahead, location, lock_file, remove_tree, replacing, whole_file, write_json
from ensemble.read import Selection, find_inputs, iter_blocks, read_questions
from ensemble.records import PromptFacts, Sample, Score
from ensemble.rows import iter_rows
from ensemble.store import StoreReader, StoreWriter, compact, export, open_store, segments, verify

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
REQUESTS: list[str] = []  # method and path of each request to the local S3


@contextmanager
def local_s3() -> Iterator[dict[str, str]]:
    """An S3 of this process on a free port of 127.0.0.1, with the empty bucket `quorum`: the variables that name it."""
    import boto3
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    def log_request(handler: WSGIRequestHandler, *_: object) -> None:
        REQUESTS.append(f"{handler.command} {handler.path.split('?')[0]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WSGIRequestHandler, "log_request", log_request)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        try:
            endpoint = "http://{}:{}".format(*server.get_host_and_port())
            client = boto3.client(
                "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
            )
            client.create_bucket(Bucket="quorum")
            yield {**KEYS, "AWS_ENDPOINT_URL": endpoint}
        finally:
            server.stop()


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with local_s3() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty folder."""
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("s3")
    return location(f"s3://quorum/{tmp_path.name}")


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("runs/mine", "runs/mine", None),
        ("/a/b: c/", "/a/b: c", None),
        ("s3://bucket/a/b.json", "s3://bucket/a/b.json", "bucket/a/b.json"),
        ("s3://bucket/a b%20#?/", "s3://bucket/a b%20#?", "bucket/a b%20#?"),
        ("gs://bucket", "gs://bucket", "bucket"),
        (Path("s3://bucket/a"), "s3://bucket/a", "bucket/a"),  # a Path that swallowed a slash
    ],
)
def test_locations(name: str | Path, text: str, key: str | None) -> None:
    path = location(name)
    assert str(path) == text
    assert (path.key if isinstance(path, ObjectPath) else None) == key
    again = pickle.loads(pickle.dumps(path))
    assert (again, type(again), str(again)) == (path, type(path), text)
    assert str(path / "x" / "y.json") == f"{text}/x/y.json"
    assert (path / "x").parent == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/q.jsonl", "https:// is not known here; give a local path, s3://"),
        ("hdfs://host/q", "hdfs:// is not known here"),
        ("s3://", "names no bucket; write s3://BUCKET/FOLDER"),
    ],
)
def test_locations_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        location(name)
    assert message in str(caught.value)


def test_what_is_written_can_be_read_listed_and_removed(root: Path) -> None:
    folder = root / "a folder"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("b.json", "a.json", "c.txt", ".hidden.json"):
        files.write_atomically(folder / name, name.encode())
    files.write_atomically(folder / "deep" / "d.json", "é日本".encode())
    assert (folder / "a.json").read_bytes() == b"a.json"
    assert (folder / "deep/d.json").read_text(encoding="utf-8") == "é日本"
    with (folder / "deep/d.json").open(encoding="utf-8") as file:
        assert list(file) == ["é日本"]
    assert [(p.exists(), p.is_file(), p.is_dir()) for p in (folder, folder / "a.json", folder / "nothing")] == [
        (True, False, True),
        (True, True, False),
        (False, False, False),
    ]
    assert sorted(p.name for p in folder.glob("[ab].json")) == ["a.json", "b.json"]
    assert [p.name for p in folder.glob("*/*.json")] == ["d.json"]
    assert {p.name for p in folder.glob("**/*.json")} >= {"a.json", "b.json", "d.json"}
    assert list((root / "nothing").glob("*")) == []
    (folder / "a.json").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "a.json").unlink()
    (folder / "a.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (folder / "a.json").read_bytes()
    remove_tree(folder)
    remove_tree(folder)
    assert list(root.glob("**/*.json")) == []


def test_files_appear_whole_or_not_at_all(root: Path) -> None:
    path = root / "results.jsonl"
    with replacing(path) as file:
        file.write("first\n")
        assert not path.exists()

    def fails(error: Exception) -> None:
        with replacing(path) as file:
            file.write("second\n" * 100_000)
            raise error

    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())
    with pytest.raises(StoreError, match=r"output folder .*: No space left; free space.*the same command goes on"):
        fails(OSError(28, "No space left"))
    assert path.read_text() == "first\n"
    with replacing(path):
        pass
    assert path.read_bytes() == b""
    write_json(path, {"a": "é"})
    assert json.loads(path.read_text()) == {"a": "é"}
    large = np.random.default_rng(0).bytes(25 << 20)  # sent in several parts
    with whole_file(path, "wb") as file:
        file.write(large)
    assert path.read_bytes() == large
    assert [p.name for p in root.glob("*")] == ["results.jsonl"]


def test_ahead_keeps_the_order_and_raises_the_first_error(root: Path) -> None:
    def slow(i: int) -> int:
        time.sleep((20 - i) * 1e-3)
        if i == 18:
            raise ValueError(i)
        return i

    results = ahead(slow, range(20), root)
    assert [next(results) for _ in range(18)] == list(range(18))
    with pytest.raises(ValueError, match="18"):
        next(results)


def test_runs_lock_each_other_out_by_folder(root: Path) -> None:
    assert lock_file(root) == lock_file(location(str(root)))
    assert lock_file(root) != lock_file(root / "other")
    assert not isinstance(lock_file(root), ObjectPath)


# --- questions ---


def question(i: int) -> dict[str, object]:
    return {"id": i, "task": "math", "text": f"What is {i}?", "answer": i}


@pytest.fixture
def inputs(root: Path) -> Path:
    for name in ("b.jsonl", "a.json", "sub/c.jsonl", "sub/d.JSONL", "note.txt", ".hidden.jsonl", ".git/e.txt"):
        files.write_atomically(root / "in" / name, json.dumps(question(len(name))).encode())
    return root / "in"


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("/b.jsonl", ["b.jsonl"]),
        ("", ["a.json", "b.jsonl", "sub/c.jsonl", "sub/d.JSONL"]),
        ("/", ["a.json", "b.jsonl", "sub/c.jsonl", "sub/d.JSONL"]),
        ("/*.jsonl", ["b.jsonl"]),
        ("/**/*.jsonl", ["b.jsonl", "sub/c.jsonl"]),
        ("/s*/?.jsonl", ["sub/c.jsonl"]),
        ("/[ab].json*", ["a.json", "b.jsonl"]),
    ],
)
def test_inputs_are_found(inputs: Path, spec: str, names: list[str]) -> None:
    assert find_inputs(f"{inputs}{spec}") == [inputs / name for name in names]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/bb.jsonl", r"no file or folder matches '.*bb\.jsonl'; did you mean '.*/in/b\.jsonl'\?"),
        ("/zzz*", r"no file or folder matches '.*zzz\*'; check the path"),
        ("/.git", r"the folder '.*' holds no question file \(\*\.jsonl, \*\.json, \*\.parquet, \*\.csv, \*\.tsv\)"),
    ],
)
def test_inputs_that_are_not_there(inputs: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_inputs(f"{inputs}{spec}")


def test_questions_are_read_and_their_blocks_written(root: Path) -> None:
    rows = [json.dumps(question(i)) for i in range(50)]
    rows[7] = '{"id": 7, "task": "math"'
    source = root / "q.jsonl"
    files.write_atomically(source, "\n".join(rows).encode())
    errors: list = []
    for size in (4, 10):  # the second run has fewer blocks
        errors.clear()
        read = read_questions(str(source), root / "out" / "questions", Selection(), errors.append, size)
    assert [(e.file, e.line) for e in errors] == [(str(source), 8)]
    assert read.blocks == [str(root / "out/questions" / f"block-0000{i}.parquet") for i in range(5)]
    assert sorted(map(str, (root / "out/questions").glob("*"))) == read.blocks
    assert [q.id for block in iter_blocks(read.blocks) for q in block] == [i for i in range(50) if i != 7]


def test_long_files_stream(root: Path) -> None:
    rows = [question(i) | {"text": f"{i} " + "x" * 1000} for i in range(30_000)]
    path = root / "long.jsonl"
    files.write_atomically(path, "\n".join(map(json.dumps, rows)).encode())
    assert [row for _, row in iter_rows(path)] == rows


# --- the store ---


def score(value: float, n: int = 3) -> Score:
    table = (value + np.arange(n).reshape(1, n)).astype(np.float32)
    return Score((tuple(range(n)),), table, np.ones(n, dtype=np.int32), None, PromptFacts(9, "ab" * 8, 1, 2, 30, 40))


def key(i: int) -> bytes:
    return i.to_bytes(16, "little")


def test_the_store_keeps_compacts_and_exports(root: Path) -> None:
    place = open_store(root / "store")
    assert open_store(str(place)) == place
    store.describe_member(place, "m", {"name": "a/b"})
    for segment in range(5):
        writer = StoreWriter(place, 100)
        for i in range(20):
            writer.add("m", key(i + 10 * segment), score(-i - segment))
        writer.add("m", key(segment), Sample(f"text {segment}", 2, "stop", 0, 0))
        writer.flush()
        time.sleep(0.001)
    assert len(segments(place, "scores", "m")) == 5
    asked = [key(i) for i in range(70)]
    before = StoreReader(place, "scores", "m").scores(asked)
    first = [-i if i < 20 else 10 * (i // 10 - 1) - i - (i // 10 - 1) for i in range(60)]
    assert [None if s is None else s.logprobs[0, 0] for s in before] == [*first, *[None] * 10]
    assert verify(place, "scores", "m") == (100, [])
    assert export(place, "scores", "m", root / "out.parquet") == 100
    assert compact(place, "scores", "m") == 100
    assert len(segments(place, "scores", "m")) == 1
    after = StoreReader(place, "scores", "m").scores(asked)
    assert [s and s.logprobs.tolist() for s in after] == [s and s.logprobs.tolist() for s in before]
    samples = StoreReader(place, "samples", "m").samples([key(3), key(9)], 0)
    assert samples == [(Sample("text 3", 2, "stop", 0, 0),), ()]
    files.parquet_file(root / "out.parquet")


def test_look_ups_in_a_bucket_take_a_few_requests_not_one_a_row(s3: None, tmp_path: Path) -> None:
    place = open_store(f"s3://quorum/{tmp_path.name}")
    writer = StoreWriter(place, 100)
    for i in range(9000):
        writer.add("m", key(i), score(-i))
    writer.flush()
    REQUESTS.clear()
    reader = StoreReader(place, "scores", "m")
    found = [s for i in range(0, 9000, 500) for s in reader.scores([key(j) for j in range(i, i + 500)])]
    assert [s.logprobs[0, 0] for s in found if s] == [-i for i in range(9000)]
    assert len(REQUESTS) < 20, REQUESTS  # a list, the index, three row groups


def test_one_request_writes_a_segment(s3: None, tmp_path: Path) -> None:
    place = open_store(f"s3://quorum/{tmp_path.name}")
    writer = StoreWriter(place, 100)
    writer.add("m", key(1), score(-1))
    REQUESTS.clear()
    writer.flush()
    assert [request.split()[0] for request in REQUESTS] == ["PUT"]


def test_threads_share_a_file_system(s3: None, tmp_path: Path) -> None:
    folder = location(f"s3://quorum/{tmp_path.name}")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: (folder / f"{i}.txt").write_bytes(b"x" * i), range(100)))
    assert len(list(folder.glob("*.txt"))) == 100


# --- faults ---


def test_a_missing_bucket_is_named(s3: None) -> None:
    with pytest.raises(StoreError, match=r"store s3://nowhere/store: the bucket does not exist: create it"):
        open_store("s3://nowhere/store")
    with pytest.raises(StoreError, match=r"output folder s3://nowhere/run: the bucket does not exist"):
        write_json(location("s3://nowhere/run/manifest.json"), {})
    with pytest.raises(InputError, match=r"no file or folder matches 's3://nowhere/q\.jsonl'"):
        find_inputs("s3://nowhere/q.jsonl")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid:9000"])
def test_a_wrong_endpoint_is_told_quickly(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(files, "ATTEMPTS", 2)
    with pytest.raises(InputError, match="no connection: check the network, AWS_ENDPOINT_URL and AWS_REGION"):
        find_inputs("s3://bucket/q.jsonl")
    with pytest.raises(StoreError, match="store s3://bucket/store: no connection"):
        open_store("s3://bucket/store")
    ((line, error),) = iter_rows(location("s3://bucket/q.jsonl"))
    assert (line, "no connection" in str(error)) == (1, True)


def test_a_store_out_of_reach_is_not_called_damaged(s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_store(f"s3://quorum/{tmp_path.name}")
    writer = StoreWriter(place, 100)
    writer.add("m", key(1), score(-1))
    writer.flush()
    reader = StoreReader(place, "scores", "m")
    (segment,) = segments(place, "scores", "m")
    data = segment.read_bytes()
    segment.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="delete it: only its rows are computed again"):
        StoreReader(place, "scores", "m")
    monkeypatch.setattr(files, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"no connection.*; then run the same command again"):
        reader.scores([key(1)])


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", "access denied: check AWS_ACCESS"),
        ("AWS Error SLOW_DOWN during PutObject operation: reduce your rate", "AWS Error SLOW_DOWN"),
        ("google::cloud::Status(UNAVAILABLE: Could not create a OAuth2 access token to", "no Google credentials: set"),
        ("Couldn't deserialize thrift: TProtocolException", "Couldn't deserialize thrift"),
    ],
)
def test_reasons(said: str, plain: str) -> None:
    assert files.reason(OSError(said)).startswith(plain)
