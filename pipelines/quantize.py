"""Makes a GPTQ checkpoint of a model, measures what it lost, and writes the card: a folder that vLLM loads.

python pipelines/quantize.py --model smollm2
python pipelines/quantize.py --model smollm2 --calibration notes.txt --bits 4 --samples 256 --output runs/models/mine
python pipelines/quantize.py --model smollm2 --eval heldout.txt --device cuda
"""

import argparse
import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not pipelines/

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from ensemble import models, quantize
from ensemble.config import ROOT, ModelConfig, Quantize
from ensemble.errors import ConfigError
from ensemble.load import read_yaml
from ensemble.names import unknown
from ensemble.perplexity import Perplexity, perplexity
from pipelines import cli

HELD_OUT = 5  # of one file for both, every fifth text is kept for the evaluation
PACKAGES = ("gptqmodel", "transformers", "torch")
EPILOG = """
The folder has the checkpoint (AutoGPTQ's format: vLLM, SGLang and transformers load it), README.md (the card) and
model.yaml, which a run config takes as it is:  model: runs/models/smollm2-gptq/model.yaml

Calibration text should look like the inputs to come: plain text in paragraphs, or question rows (.jsonl, .json).
Perplexity is measured before and after on --eval FILE. Without it, or where it is the calibration file, every fifth
text of the file is held out of the calibration and used for that.

To have a run make its checkpoint by itself, put `quantize: {}` into the model file instead: it is made once, before
the model is first loaded (configs/models/smollm2_gptq.yaml).
"""


def main() -> int:
    options = _options()
    config = _model(options.model)
    recipe = _recipe(config.quantize or Quantize(), options)
    name = Path(options.model).stem
    output = Path(options.output or f"runs/models/{name}-gptq").absolute()
    if output.exists():
        raise ConfigError(f"{output} is there already: remove it, or give another --output")
    texts, held_out, eval_name = _texts(recipe, options.eval)
    device = models.device(options.device)
    source = models.prepare(name, config.model_copy(update={"quantize": None}), _report)

    _report(f"perplexity of {name} on {eval_name}")
    before = perplexity(source, held_out, device=device, trust_remote_code=config.trust_remote_code)
    _report(f"quantizing to {recipe.bits} bits on {device} (about a minute for 100M parameters on 2 cores)")
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        done = quantize.quantize(
            source, temporary, recipe, texts, device=device, dtype=config.dtype,
            log=output.with_name(f"{output.name}.log"), report=_report, trust_remote_code=config.trust_remote_code,
        )  # fmt: skip
        _report("perplexity of the checkpoint")
        after = perplexity(temporary, held_out, device=device, trust_remote_code=config.trust_remote_code)
        ready = config.model_dump(exclude_defaults=True, exclude={"source", "quantize", "description"}, mode="json")
        ready = {"description": f"{name} in {recipe.bits} bits (GPTQ).", "source": {"path": str(output)}} | ready
        (temporary / "model.yaml").write_text(yaml.safe_dump(ready, sort_keys=False), encoding="utf-8")
        sizes = _megabytes(source), _megabytes(temporary)
        facts = _facts(recipe, done, device, sizes, (before, after), eval_name)
        (temporary / "README.md").write_text(_card(name, config, options.license, facts), encoding="utf-8")
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    table = Table(title=f"{name} -> {output}", show_header=False, title_justify="left")
    for key, value in facts.items():
        table.add_row(key, value)
    Console().print(table)
    print(f"use it: model: {output}/model.yaml in a run config, or vllm serve {output}")
    return cli.OK


def _options() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = {name: field.description for name, field in Quantize.model_fields.items()}
    p.add_argument("--model", required=True, metavar="NAME", help="a file of configs/models, or a path to one")
    p.add_argument("--calibration", metavar="FILE", help=about["calibration"])
    p.add_argument("--bits", type=int, choices=[2, 3, 4, 8], help="of a weight (4)")
    p.add_argument("--group-size", type=int, choices=[-1, 32, 64, 128], help=about["group_size"])
    p.add_argument("--desc-act", action="store_true", default=None, help=about["desc_act"])
    p.add_argument("--samples", type=int, metavar="N", help=about["samples"])
    p.add_argument("--sample-tokens", type=int, metavar="N", help=about["sample_tokens"])
    p.add_argument("--output", metavar="DIR", help="folder to make (runs/models/NAME-gptq)")
    p.add_argument("--eval", metavar="FILE", help="text to measure perplexity on, in either form")
    p.add_argument("--license", default="unknown", help="of the base model, for the card (unknown)")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU if there is one")
    return p.parse_args()


def _model(name: str) -> ModelConfig:
    """A model file by its name in configs/models, or by its path."""
    folder = ROOT / "configs/models"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if path.parent == folder and not path.is_file():
        raise ConfigError(unknown("model", name, sorted(p.stem for p in folder.glob("*.yaml"))))
    try:
        return ModelConfig.model_validate_json(json.dumps(read_yaml(path)))
    except ValidationError as e:
        raise ConfigError(f"{path}: {_first(e)}; docs/config.md lists the keys of a model") from None


def _recipe(base: Quantize, options: argparse.Namespace) -> Quantize:
    """The model file's recipe, or the usual one, with what the command line says."""
    given = {key: getattr(options, key) for key in Quantize.model_fields}
    try:
        return Quantize.model_validate(
            base.model_dump() | {key: value for key, value in given.items() if value is not None}
        )
    except ValidationError as e:
        raise ConfigError(f"--{_first(e).replace('_', '-', 1)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _texts(recipe: Quantize, held_out: str | None) -> tuple[list[str], list[str], str]:
    """Texts to calibrate on, texts to measure on, and a name for the latter. No text is in both."""
    file = quantize.calibration_file(recipe)
    texts = quantize.read_texts(file)
    if held_out is not None and not Path(held_out).is_file():
        raise ConfigError(f"--eval: no such file: {held_out}")
    if held_out is not None and Path(held_out).resolve() != file.resolve():
        known = set(texts)
        others = [text for text in quantize.read_texts(Path(held_out)) if text not in known]
        if not others:
            raise ConfigError(f"--eval: every text of {held_out} is in {file} too: give text that is not calibrated on")
        return texts, others, Path(held_out).name
    if len(texts) < HELD_OUT:
        raise ConfigError(f"{file} has {len(texts)} texts, too few to hold one in {HELD_OUT} out: give --eval FILE")
    kept = [text for i, text in enumerate(texts) if i % HELD_OUT != HELD_OUT - 1]
    return kept, texts[HELD_OUT - 1 :: HELD_OUT], f"every {HELD_OUT}th text of {file.name}, not calibrated on"


def _facts(
    recipe: Quantize,
    done: quantize.Quantized,
    device: str,
    megabytes: tuple[float, float],
    measured: tuple[Perplexity, Perplexity],
    eval_name: str,
) -> dict[str, str]:
    """What the table shows and the card says."""
    before, after = measured
    return {
        "method": f"GPTQ, {recipe.bits} bits, symmetric, group size {done.group_size}, desc_act {recipe.desc_act}",
        "calibration": f"{Path(recipe.calibration).name}: {done.texts} texts, {done.tokens:,} tokens",
        "seconds": f"{done.seconds:.0f} on {device}",
        "weights": f"{megabytes[0]:.1f} MB before, {megabytes[1]:.1f} MB after",
        "perplexity": f"{before.value:.2f} before, {after.value:.2f} after",
        "measured on": f"{eval_name} ({after.tokens:,} tokens, windows of 512)",
        "measured in": f"{after.dtype}, weights dequantized, by transformers",
        "versions": ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES),
    }


def _card(name: str, config: ModelConfig, license: str, facts: dict[str, str]) -> str:
    """README.md in the form of the Hugging Face hub."""
    source = config.source
    base = source.hub or source.package or source.path
    front: dict[str, Any] = {
        "base_model": base, "base_model_relation": "quantized", "license": license, "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["gptq"],
    }  # fmt: skip
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {name}, GPTQ

Made from `{base}`{f" at revision {source.revision}" if source.revision else ""} by `pipelines/quantize.py`.

| | |
| --- | --- |
{rows}

Load it with `vllm serve FOLDER`, or name `FOLDER/model.yaml` as the `model` of a Quorum run config (after the folder
was moved, change `source.path` there). The recipe as GPTQModel keeps it is in `quantize_config.json`.
"""


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
