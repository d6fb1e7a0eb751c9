"""Preparing models: sources, fingerprints, one conversion for all who ask, and nothing half-made that is used."""

import functools
import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemble import models
from ensemble.config import ROOT, ModelConfig
from ensemble.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GGUF = b"not really a GGUF"


def config(dtype: str = "auto", **source: str) -> ModelConfig:
    return ModelConfig.model_validate({"source": source, "dtype": dtype, "context_length": 2048})


def silent(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def quorum_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUORUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as it comes from elsewhere."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(f"content of {name}")
        age(folder / name)
    return folder


def age(path: Path, seconds: float = 60) -> None:
    """Checksums are remembered only for files that have not changed just now."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


# ---- home, folders, fingerprints


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert models.home() == tmp_path / "home"
    monkeypatch.setenv("QUORUM_HOME", "relative")
    assert models.home() == Path.cwd() / "relative"
    monkeypatch.delenv("QUORUM_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.home() == tmp_path / ".cache" / "quorum"


def test_import_is_light() -> None:
    code = "import sys, ensemble.models; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "transformers", "huggingface_hub", "pydantic", "numpy", "filelock"} & set(loaded.split())


def test_a_folder_is_used_in_place(folder: Path) -> None:
    assert models.prepare("m", config(path=str(folder)), silent) == folder


@pytest.mark.parametrize(
    ("gone", "named"),
    [("config.json", "config.json"), ("model.safetensors", "*.safetensors or *.bin"), ("tokenizer.json", "tokenizer")],
)
def test_a_folder_without_a_piece_is_refused(folder: Path, gone: str, named: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(ModelError, match=rf"model m: {folder} lacks {re.escape(named)}[^\n]*: copy or download"):
        models.prepare("m", config(path=str(folder)), silent)


def test_other_pieces_do_as_well(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert models.prepare("m", config(path=str(folder)), silent) == folder


def test_a_tokenizer_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert models.prepare("m", config(path=str(folder)), silent, tokenizer_only=True) == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        models.prepare("m", config(path=str(folder)), silent, tokenizer_only=True)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"lacks model-2\.safetensors:"):
        models.prepare("m", config(path=str(folder)), silent)


@pytest.mark.parametrize("ask", [functools.partial(models.prepare, "m", report=silent), models.fingerprint])
def test_no_folder(tmp_path: Path, ask: Callable[..., object]) -> None:
    with pytest.raises(ModelError, match=rf"no folder {tmp_path}/nowhere: check source\.path"):
        ask(config=config(path=str(tmp_path / "nowhere")))


def test_a_folders_fingerprint_is_its_files(folder: Path, tmp_path: Path) -> None:
    def now() -> str:
        return models.fingerprint(config(path=str(folder)))

    first = now()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert models.fingerprint(config("float32", path=str(folder))) == first
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("hidden")
    (folder / ".hidden").write_text("hidden")
    assert now() == first

    seen = {first}
    (folder / "model.safetensors").write_text("content of model.safetensorS")  # as long as before
    seen.add(now())
    (folder / "more.txt").write_text("")
    seen.add(now())
    (folder / "more.txt").rename(folder / "mort.txt")  # in the same place of the list
    seen.add(now())
    assert len(seen) == 4
    folder.rename(tmp_path / "elsewhere")
    assert models.fingerprint(config(path=str(tmp_path / "elsewhere"))) in seen - {first}


def test_a_file_is_hashed_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, kind: str) -> object:
        hashed.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    first = models.fingerprint(config(path=str(folder)))
    assert sorted(hashed) == ["config.json", "model.safetensors", "tokenizer.json"]
    hashed.clear()
    assert models.fingerprint(config(path=str(folder))) == first
    assert hashed == []
    age(folder / "config.json", 30)
    assert models.fingerprint(config(path=str(folder))) == first
    assert hashed == ["config.json"]


def test_a_fresh_file_is_not_remembered(folder: Path, quorum_home: Path) -> None:
    """It may change within the clock's step, with the size it has."""
    path = folder / "config.json"
    path.write_text("new 1")
    first, status = models.fingerprint(config(path=str(folder))), path.stat()
    path.write_text("new 2")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert models.fingerprint(config(path=str(folder))) != first
    assert len(list((quorum_home / "hashes").iterdir())) == 2


def test_a_damaged_memory_of_checksums_is_ignored(folder: Path, quorum_home: Path) -> None:
    first = models.fingerprint(config(path=str(folder)))
    for path in (quorum_home / "hashes").iterdir():
        path.write_text("")
    assert models.fingerprint(config(path=str(folder))) == first


def test_a_home_that_cannot_be_written(folder: Path, quorum_home: Path, package: str) -> None:
    quorum_home.write_text("a file where the folder should be")
    assert len(models.fingerprint(config(path=str(folder)))) == 64
    with pytest.raises(ModelError, match=r"model m: .*home.*; make room, or set QUORUM_HOME to a folder you can write"):
        models.prepare("m", package_config(package), silent)


def test_a_link_to_nothing_is_no_file_of_the_model(folder: Path) -> None:
    first = models.fingerprint(config(path=str(folder)))
    (folder / "gone.json").symlink_to(folder / "nothing")
    assert models.fingerprint(config(path=str(folder))) == first


def test_an_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(models, "_sha256", refuse)  # root, who may run the tests, is refused nothing
    with pytest.raises(ModelError, match=r"config\.json: Permission denied: make it readable"):
        models.fingerprint(config(path=str(folder)))


def test_a_pinned_fingerprint_needs_no_hub() -> None:
    pinned = [
        config(hub="o/x", revision=COMMIT),
        config(hub="o/x", revision=COMMIT[::-1]),
        config(hub="o/y", revision=COMMIT),
    ]
    assert len({models.fingerprint(x) for x in pinned}) == 3


# ---- packages, with a conversion that only pretends


def package_config(package: str, dtype: str = "auto", sha256: str | None = None) -> ModelConfig:
    return config(dtype, package=package, file="data/tiny.gguf", sha256=sha256 or hashlib.sha256(GGUF).hexdigest())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an installed package with a GGUF that breaks when it is imported."""
    (tmp_path / "site" / "tiny_gguf" / "data").mkdir(parents=True)
    (tmp_path / "site" / "tiny_gguf" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "site" / "tiny_gguf" / "data" / "tiny.gguf").write_bytes(GGUF)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return "tiny-gguf"


def pretend(gguf: Path, target: Path, dtype: str, *, log: Path, seconds: float = 0) -> None:
    """In place of `_convert`: notes that it ran, writes a half, takes its time, and writes the rest."""
    with log.open("a") as f:
        f.write(f"{os.getpid()} {dtype}\n")
    (target / "config.json").write_text("{}")
    time.sleep(seconds)
    (target / "model.safetensors").write_bytes(gguf.read_bytes() * 1000)
    (target / "model.safetensors").chmod(0o600)
    (target / "tokenizer.json").write_text("{}")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "_convert", functools.partial(pretend, log=tmp_path / "log"))
    return tmp_path / "log"


def test_a_package_is_converted_once(package: str, log: Path, quorum_home: Path) -> None:
    lines: list[str] = []
    folder = models.prepare("tiny", package_config(package), lines.append)
    assert folder == quorum_home / "models" / f"tiny-{models.fingerprint(package_config(package))[:12]}"
    assert [line.split()[0] for line in lines] == ["converting", "converted"]
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    manifest = json.loads((folder / "quorum.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    assert manifest["files"]["model.safetensors"] == {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert sorted(manifest["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert manifest["origin"] == {
        "package": "tiny-gguf",
        "file": "data/tiny.gguf",
        "sha256": hashlib.sha256(GGUF).hexdigest(),
        "conversion": models.CONVERSION,
        "dtype": "bfloat16",
    }
    lines.clear()
    assert models.prepare("tiny", package_config(package), lines.append, tokenizer_only=True) == folder
    assert lines == []
    assert len(log.read_text().splitlines()) == 1


def test_the_prepared_folder_needs_no_package_and_no_lock(
    package: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.prepare("tiny", package_config(package), silent)
    (tmp_path / "site" / "tiny_gguf" / "data" / "tiny.gguf").unlink()
    monkeypatch.setattr("filelock.FileLock", None)  # QUORUM_HOME may be shared and not to be written
    assert models.prepare("tiny", package_config(package), silent) == folder


def test_a_packages_fingerprint_is_its_checksum_and_dtype(
    package: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = models.fingerprint(package_config(package))
    assert models.fingerprint(package_config(package, "bfloat16")) == first
    assert models.fingerprint(package_config("other", sha256=hashlib.sha256(GGUF).hexdigest().upper())) == first
    others = {models.fingerprint(package_config(package, dtype)) for dtype in ("float32", "float16")}
    others.add(models.fingerprint(package_config(package, sha256="0" * 64)))
    monkeypatch.setattr(models, "CONVERSION", models.CONVERSION + 1)
    others.add(models.fingerprint(package_config(package)))
    assert len(others - {first}) == 4
    models.prepare("tiny", package_config(package, "float32"), silent)
    assert log.read_text().split()[1] == "float32"


def test_a_models_path_as_name(package: str, log: Path, quorum_home: Path) -> None:
    folder = models.prepare("../my models/tiny.v1.yaml", package_config(package), silent)
    assert folder.parent == quorum_home / "models"
    assert folder.name.startswith("tiny.v1-")


def test_another_name_uses_what_is_there(package: str, log: Path) -> None:
    folder = models.prepare("tiny", package_config(package), silent)
    assert models.prepare("other", package_config(package), silent) == folder
    remove(folder)
    assert models.prepare("other", package_config(package), silent).name.startswith("other-")
    assert len(log.read_text().splitlines()) == 2


def test_missing_package() -> None:
    with pytest.raises(ModelError, match=r"model m: package no-such-pkg is not installed: pip install no-such-pkg$"):
        models.prepare("m", package_config("no-such-pkg"), silent)


def test_missing_file(package: str) -> None:
    wrong = config(package=package, file="other.gguf", sha256="0" * 64)
    with pytest.raises(ModelError, match=r"package tiny-gguf has no file other\.gguf: check source\.file"):
        models.prepare("m", wrong, silent)


def test_wrong_checksum(package: str, quorum_home: Path) -> None:
    with pytest.raises(ModelError, match=rf"sha256 {hashlib.sha256(GGUF).hexdigest()}, not .* --force-reinstall tiny"):
        models.prepare("m", package_config(package, sha256="0" * 64), silent)
    assert not (quorum_home / "models").exists()


def test_a_conversion_that_fails_leaves_nothing(
    package: str, quorum_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(gguf: Path, target: Path, dtype: str) -> None:
        (target / "config.json").write_text("{}")
        raise RuntimeError("unknown architecture\nmore")

    monkeypatch.setattr(models, "_convert", broken)
    with pytest.raises(ModelError, match=r"^model m: converting .*unknown architecture.*are installed$") as caught:
        models.prepare("m", package_config(package), silent)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert list((quorum_home / "models").iterdir()) == []
    monkeypatch.setattr(models, "_convert", functools.partial(pretend, log=tmp_path / "log"))
    assert (models.prepare("m", package_config(package), silent) / "quorum.json").exists()


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[500] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def remove(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def unlist(folder: Path) -> None:
    (folder / "quorum.json").write_text("[]")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (truncate, "has a damaged model.safetensors: it is made anew"),
        (flip, "has a damaged model.safetensors: it is made anew"),
        (remove, "is incomplete ([Errno 2]"),
        (unlist, "is incomplete (list indices"),
    ],
)
def test_damage_is_found_and_mended(harm: Callable[[Path], None], said: str, package: str, log: Path) -> None:
    folder = models.prepare("tiny", package_config(package), silent)
    for path in folder.iterdir():
        age(path)
    models.prepare("tiny", package_config(package), silent)  # checksums are remembered now
    harm(folder)
    lines: list[str] = []
    assert models.prepare("tiny", package_config(package), lines.append) == folder
    assert f"{folder} {said}" in lines[0]
    assert len(log.read_text().splitlines()) == 2
    assert (folder / "model.safetensors").read_bytes() == GGUF * 1000
    assert (folder / "tokenizer.json").exists()


def test_a_touched_file_is_not_damaged(package: str, log: Path) -> None:
    folder = models.prepare("tiny", package_config(package), silent)
    age(folder / "model.safetensors")
    models.prepare("tiny", package_config(package), silent)
    assert len(log.read_text().splitlines()) == 1


def child(site: str, log: Path, seconds: float, answers: Any) -> None:
    """Another process that prepares the package's model."""
    sys.path.insert(0, site)
    models._convert = functools.partial(pretend, log=log, seconds=seconds)
    lines: list[str] = []
    folder = models.prepare("tiny", package_config("tiny-gguf"), lines.append)
    answers.put((folder, lines))


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def test_two_processes_convert_once(package: str, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    answers, log = spawn.Queue(), tmp_path / "log"
    both = [spawn.Process(target=child, args=(str(tmp_path / "site"), log, 3, answers)) for _ in range(2)]
    for process in both:
        process.start()
    (folder, lines), (other, other_lines) = answers.get(timeout=60), answers.get(timeout=60)
    for process in both:
        process.join(10)
    assert folder == other
    assert sorted(x.split()[0] for x in lines + other_lines) == ["converted", "converting", "waiting"]
    assert len(log.read_text().splitlines()) == 1
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_killed_process_leaves_nothing_that_is_used(package: str, tmp_path: Path, quorum_home: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    answers, log = spawn.Queue(), tmp_path / "log"
    process = spawn.Process(target=child, args=(str(tmp_path / "site"), log, 60, answers))
    process.start()
    wait_for(
        lambda: bool(list(quorum_home.glob("models/*/config.json")) or list(quorum_home.glob("models/.*/config.json")))
    )
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert [p.name[0] for p in (quorum_home / "models").iterdir()] == ["."]

    after = spawn.Process(target=child, args=(str(tmp_path / "site"), log, 0, answers))
    after.start()
    folder, lines = answers.get(timeout=30)
    after.join(10)
    assert [line.split()[0] for line in lines] == ["converting", "converted"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == GGUF * 1000


# ---- the machine


def test_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PROC", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert models.hardware("cpu") == "cpu:" + os.uname().machine
    (tmp_path / "cpuinfo").write_text("model name\t: X\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8x\n")
    assert models.hardware("cpu") == "cpu:avx512_vnni,avx512f,avx2"
    assert models.hardware("cuda") == "cuda:unknown"
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\n[ \"$1\" = --query-gpu=name ] && echo 'NVIDIA L4' && echo 'NVIDIA L4'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert models.hardware("cuda") == "cuda:NVIDIA L4"
    information = tmp_path / "driver/nvidia/gpus/0000:00:1e.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 11\n")
    assert models.hardware("cuda") == "cuda:NVIDIA H200"


def test_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PROC", tmp_path)
    monkeypatch.setattr(models, "DEV", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert [models.device(x) for x in ("auto", "cpu", "cuda")] == ["cpu", "cpu", "cuda"]
    (tmp_path / "nvidia3").touch()
    assert [models.device(x) for x in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert models.device("auto") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert models.device("auto") == "cuda"
