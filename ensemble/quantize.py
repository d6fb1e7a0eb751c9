"""GPTQ checkpoints by GPTQModel: a model's folder and calibration text in, a folder in AutoGPTQ's format out.

GPTQModel prints much, patches transformers and keeps threads, so it works in a process of its own
(`python -m ensemble.quantize`). That process reads its job from standard input, writes a JSON object per line of
news, puts everything else into a log file, and ends when its parent does.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from ensemble.errors import ConfigError, ModelError

if TYPE_CHECKING:  # models.py wants to be imported without pydantic
    from ensemble.config import Quantize

VERSION = 2  # raise it when the same recipe gives other files than before: checkpoints are then made anew
GROUPS = (128, 64, 32)  # usual group sizes, the most compact first
NEWS_SECONDS = 10  # between two lines of progress
TOKENIZER = ("tokenizer*", "*.model", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "GPTQMODEL_OFFLINE": "1",
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # these two would compile C++ or CUDA
    "GPTQMODEL_DISABLE_GPTQ_CUDA": "1",
    # Sums depend on the number of threads: a fixed one makes the same files on any number of cores.
    "GPTQMODEL_CPU_WORKERS": "2",
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # sums in a fixed order
    "TOKENIZERS_PARALLELISM": "false",
}


class Quantized(NamedTuple):
    """What was done: texts and tokens of the calibration, the group size that was used, seconds."""

    texts: int
    tokens: int
    group_size: int
    seconds: float


def calibration_file(recipe: "Quantize") -> Path:
    """From the working directory, else from the project. Raises ConfigError."""
    from ensemble.config import ROOT

    found = next((p for p in (Path(recipe.calibration), ROOT / recipe.calibration) if p.is_file()), None)
    if found is None:
        raise ConfigError(
            f"quantize.calibration: no such file: {recipe.calibration}; give it from the working directory or the "
            "project: plain text in paragraphs, or question rows (.jsonl, .json)"
        )
    return found


def read_texts(file: Path) -> list[str]:
    """The paragraphs of a plain text, or of each question row its context, text, options and texts to answer with.

    Raises ConfigError where the file has none, or a row that cannot be read.
    """
    if file.suffix in (".json", ".jsonl"):
        texts = _question_texts(file)
    else:
        try:
            texts = [" ".join(part.split()) for part in file.read_text(encoding="utf-8").split("\n\n")]
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{file}: cannot be read: {e}; save it as UTF-8 text") from None
    if not (texts := [text for text in texts if text]):
        raise ConfigError(f"{file} has no text: give paragraphs with blank lines between, or question rows")
    return texts


def _question_texts(file: Path) -> list[str]:
    from ensemble.questions import parse_question
    from ensemble.rows import iter_rows

    texts = []
    for i, (line, row) in enumerate(iter_rows(file)):
        try:
            if isinstance(row, Exception):
                raise row
            question = parse_question(row, i, file.name, line)
        except ValueError as e:
            raise ConfigError(f"{file}, line {line}: {e}") from None
        golds = question.gold if isinstance(question.gold, tuple) else ()
        texts.append("\n".join(part for part in (question.context, question.text, *question.choices, *golds) if part))
    return texts


def spread(texts: Sequence[str], n: int) -> list[str]:
    """n of the texts at equal distances, the first among them; all where there are no more."""
    n = min(n, len(texts))
    return [texts[i * len(texts) // n] for i in range(n)]


def choose_group_size(widths: Iterable[int], wanted: int | None) -> int:
    """Weights of a row that share a scale; -1: all of a row. A group must not end within a row.

    widths: inputs of the layers that are quantized. Raises ConfigError where `wanted` does not divide them.
    """
    widths = sorted(set(widths))
    fits = [size for size in GROUPS if not any(width % size for width in widths)]
    if wanted is None:
        return fits[0] if fits else -1
    if wanted != -1 and wanted not in fits:
        odd = next(width for width in widths if width % wanted)
        raise ConfigError(
            f"quantize.group_size: {wanted} does not divide a layer's {odd} inputs: set {(*fits, -1)[0]}, or leave it "
            "out to have the largest that fits"
        )
    return wanted


def quantize(
    source: Path,
    target: Path,
    recipe: "Quantize",
    texts: Sequence[str],
    *,
    device: str,
    dtype: str,
    log: Path,
    report: Callable[[str], None],
    trust_remote_code: bool = False,
) -> Quantized:
    """Writes the checkpoint and the source's tokenizer into `target`, an existing folder.

    texts: to calibrate on; `recipe.samples` of them are taken and cut. device: "cpu" or "cuda". dtype: of what is not
    quantized, and of computing. GPTQModel's own output goes to `log`. Raises ModelError or ConfigError with a cure.
    """
    started = time.monotonic()
    chosen = spread(texts, recipe.samples)
    job = {
        "source": str(source.absolute()), "target": str(target.absolute()), "log": str(log.absolute()),
        "recipe": recipe.model_dump(), "texts": chosen, "device": device, "dtype": dtype, "trust": trust_remote_code,
    }  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | ENVIRONMENT
    environment.pop("OMP_NUM_THREADS", None)  # Ray sets it to 1 in an actor that has no CPU of its own
    environment["PYTHONPATH"] = os.pathsep.join(
        str(Path(x).absolute()) for x in (str(Path(__file__).parents[1]), *sys.path)
    )
    result: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="quorum-") as scratch,  # GPTQModel keeps logs where it is started
        subprocess.Popen(
            [sys.executable, "-m", "ensemble.quantize"], env=environment, cwd=scratch, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()  # and stays open: its end tells the process that we have died
            for line in process.stdout:
                news = json.loads(line)
                if "progress" in news:
                    report(news["progress"])
                result |= news
        finally:
            process.kill()  # where it has not ended, we are being interrupted
    if "config_error" in result:
        raise ConfigError(result["config_error"])
    if "tokens" not in result:
        cause = result.get("error", f"its process ended with status {process.returncode}: too little memory?")
        raise ModelError(f"quantizing {source} failed ({cause}); {log} has all that GPTQModel said")
    return Quantized(len(chosen), result["tokens"], result["group_size"], time.monotonic() - started)


# ---- in the process of its own


def main() -> None:
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    news = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        done = _quantize(job, news)
    except ConfigError as e:
        done = {"config_error": str(e)}
    except Exception as e:
        import traceback

        traceback.print_exc()  # into the log
        done = {"error": " ".join(f"{type(e).__name__}: {e}".split())[:300]}
    _tell(news, **done)
    sys.stdout.flush()
    os._exit(0)  # GPTQModel's threads would keep the process


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _tell(news: TextIO, **values: Any) -> None:
    news.write(json.dumps(values) + "\n")
    news.flush()


def _quantize(job: dict[str, Any], news: TextIO) -> dict[str, Any]:
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from transformers import AutoConfig, set_seed

    recipe, source, target, trust = job["recipe"], job["source"], Path(job["target"]), job["trust"]
    set_seed(0)
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
    if getattr(config, "quantization_config", None):
        raise ConfigError(f"{source} is quantized already: leave quantize out, or give the model it was made from")
    widths = _widths(config, trust)
    rows, tokens = _rows(job, max(widths))
    group_size = choose_group_size(widths, recipe["group_size"])
    settings = QuantizeConfig(
        bits=recipe["bits"], group_size=group_size, desc_act=recipe["desc_act"], device=job["device"],
        act_group_aware=not recipe["desc_act"], offload_to_disk=False,
    )  # fmt: skip
    dtype = getattr(torch, job["dtype"]) if job["dtype"] != "auto" else None
    model = GPTQModel.load(source, settings, dtype=dtype, trust_remote_code=trust)
    last = time.monotonic()

    def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
        nonlocal last
        if time.monotonic() - last > NEWS_SECONDS:
            last = time.monotonic()
            _tell(news, progress=f"quantized {layer_idx + 1} of {config.num_hidden_layers} layers")

    model.layer_callback = layer_complete
    model.quantize(rows, batch_size=1, calibration_data_min_length=1)
    model.save(str(target))
    _copy_tokenizer(Path(source), target)
    return {"tokens": tokens, "group_size": group_size}


def _widths(config: Any, trust: bool) -> set[int]:
    """Inputs of the layers that are quantized: every linear layer but the one that predicts tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    head = model.get_output_embeddings()
    return {m.in_features for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head}


def _rows(job: dict[str, Any], needed: int) -> tuple[list[dict[str, list[int]]], int]:
    """Token ids of the texts, short ones packed together up to `sample_tokens`, and how many there are in all.

    needed: fewest tokens; with fewer than a layer has inputs its Hessian X'X (GPTQ, equation 2) has no full rank.
    """
    from ensemble.tokens import load_tokenizer

    tokenizer, longest = load_tokenizer(Path(job["source"]), job["trust"]), job["recipe"]["sample_tokens"]
    start, gap = tokenizer("")["input_ids"][:1], tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    packed: list[list[int]] = []
    for text in job["texts"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: longest - len(start)]
        if packed and len(packed[-1]) + len(gap) + len(ids) <= longest:
            packed[-1] += gap + ids
        else:
            packed.append(start + ids)
    if (tokens := sum(map(len, packed))) < needed:
        raise ConfigError(
            f"quantize.calibration: {len(job['texts'])} texts have {tokens} tokens, and this model needs {needed}, the "
            "inputs of its widest layer: give a longer file, or raise quantize.samples and quantize.sample_tokens"
        )
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in packed], tokens


def _copy_tokenizer(source: Path, target: Path) -> None:
    """As it was: GPTQModel may change the padding token."""
    import shutil

    for pattern in TOKENIZER:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


if __name__ == "__main__":
    main()
