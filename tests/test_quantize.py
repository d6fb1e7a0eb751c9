"""Quantization: recipes and texts by hand-worked cases, and a tiny model for real."""

import json
import math
import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from ensemble import models, quantize
from ensemble.config import ROOT, ModelConfig, Quantize
from ensemble.errors import ConfigError, ModelError

pytestmark = pytest.mark.slow

PROSE = "The ferry left the harbour at noon, and nobody on the quay remembered who had paid for the coal. "


@pytest.fixture(autouse=True)
def quorum_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUORUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# ---- group sizes


@pytest.mark.parametrize(
    ("widths", "wanted", "size"),
    [
        ((4096, 14336), None, 128),  # Mistral 7B
        ((576, 1536), None, 64),  # SmolLM2 135M: 576 = 4.5 x 128 = 9 x 64
        ((896, 4864), None, 128),  # Qwen2.5 0.5B: 7 x 128, 38 x 128
        ((640, 2048, 1024), None, 128),  # Gemma 3 270M
        ((96, 128), None, 32),
        ((100, 128), None, -1),
        ((4096,), 32, 32),
        ((576, 1536), -1, -1),
    ],
)
def test_group_size(widths: tuple[int, ...], wanted: int | None, size: int) -> None:
    assert quantize.choose_group_size(widths, wanted) == size


def test_a_group_size_that_does_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"group_size: 128 does not divide a layer's 576 inputs: set 64, or leave it"):
        quantize.choose_group_size((1536, 576), 128)


# ---- calibration text


@pytest.mark.parametrize(
    ("there", "n", "taken"), [(10, 4, "0257"), (10, 10, "0123456789"), (3, 5, "012"), (7, 1, "0"), (5, 2, "02")]
)
def test_texts_are_taken_evenly(there: int, n: int, taken: str) -> None:
    assert quantize.spread([str(i) for i in range(there)], n) == list(taken)


def test_plain_text_is_read_by_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One\nparagraph.\n\n\n  Another.  \n\n")
    assert quantize.read_texts(tmp_path / "a.txt") == ["One paragraph.", "Another."]


ROWS = [
    {"id": 1, "task": "multiple_choice", "context": "Ice melts.", "text": "What melts?", "choices": ["ice", "iron"]},
    {"id": 2, "task": "math", "text": "3 + 4?", "answer": "7"},
    {"id": 3, "task": "summarization", "text": "A long article.", "summary": "Short."},
]
TEXTS = ["Ice melts.\nWhat melts?\nice\niron", "3 + 4?\n7", "A long article.\nShort."]


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", "\n".join(map(json.dumps, ROWS))), ("a.json", json.dumps(ROWS))]
)
def test_question_rows_are_read_whole(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert quantize.read_texts(tmp_path / name) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "\n\n \n", "a.txt has no text: give paragraphs"),
        ("a.jsonl", '{"id": 1, "task": "math", "text": "1?"}\n{"id": 2', "a.jsonl, line 2: "),
        ("a.json", '[{"id": 1, "task": "maths", "text": "1?"}]', "a.json, line 1: unknown task 'maths'"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        quantize.read_texts(tmp_path / name)
    assert said in str(caught.value)


def test_the_file_is_looked_for_here_and_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = Quantize(calibration="configs/demo/questions.jsonl")
    monkeypatch.chdir(tmp_path)
    assert quantize.calibration_file(demo) == ROOT / "configs/demo/questions.jsonl"
    (tmp_path / "configs/demo").mkdir(parents=True)
    (tmp_path / "configs/demo/questions.jsonl").write_text("{}")
    assert quantize.calibration_file(demo).resolve() == tmp_path / "configs/demo/questions.jsonl"
    with pytest.raises(ConfigError, match=r"quantize\.calibration: no such file: none\.txt; give it from the working"):
        quantize.calibration_file(Quantize(calibration="none.txt"))


# ---- fingerprints


def config(folder: Path, calibration: Path, **recipe: Any) -> ModelConfig:
    described = {
        "source": {"path": str(folder)},
        "dtype": "bfloat16",
        "context_length": 64,
        "engine": {"device": "cpu"},
    }
    return ModelConfig.model_validate(described | {"quantize": {"calibration": str(calibration), **recipe}})


def test_a_fingerprint_is_of_source_recipe_and_text(word_tokenizer: Path, tmp_path: Path) -> None:
    text, copy = tmp_path / "a.txt", tmp_path / "b.txt"
    text.write_text("One text.")
    copy.write_text("One text.")
    first = models.fingerprint(config(word_tokenizer, text))
    assert len(first) == 64
    assert models.fingerprint(config(word_tokenizer, copy)) == first  # where the text lies does not matter
    variants: list[dict[str, Any]] = [
        {"bits": 8}, {"group_size": 32}, {"desc_act": True}, {"samples": 64}, {"sample_tokens": 64}
    ]  # fmt: skip
    seen = {models.fingerprint(config(word_tokenizer, text, **variant)) for variant in variants}
    plain = config(word_tokenizer, text).model_copy(update={"quantize": None})
    seen.add(models.fingerprint(plain))
    seen.add(models.fingerprint(config(word_tokenizer, text).model_copy(update={"dtype": "float16"})))
    copy.write_text("Two texts")
    seen.add(models.fingerprint(config(word_tokenizer, copy)))
    assert len(seen | {first}) == len(variants) + 4
    assert not (tmp_path / "home" / "models").exists()  # nothing was made


def test_a_fingerprint_needs_no_torch(word_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One text.")
    code = (
        "import sys\nfrom ensemble import models\nfrom ensemble.config import ModelConfig\n"
        f"models.fingerprint(ModelConfig.model_validate({config(word_tokenizer, tmp_path / 'a.txt').model_dump()!r}))\n"
        "print({'torch', 'transformers', 'gptqmodel'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["set()"]


# ---- packed weights, worked out by hand


@pytest.mark.parametrize(
    ("bits", "words", "values"),
    [
        (4, [0x76543210], [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, [0x7F030201], [1, 2, 3, 127]),
        (2, [0b11_10_01_00], [0, 1, 2, 3] + [0] * 12),
        # Three bits: the value at bit 30 ends in the next word (bit 0), the one at bit 63 in the third (bits 0, 1).
        (3, [-(1 << 30), 0b1, 0], [0] * 10 + [7] + [0] * 21),
        (3, [0, -(1 << 31), 0b11], [0] * 21 + [7] + [0] * 10),
    ],
)
def test_words_are_unpacked_from_the_lowest_bit(bits: int, words: list[int], values: list[int]) -> None:
    import torch

    from ensemble.perplexity import _unpack

    assert _unpack(torch.tensor([words], dtype=torch.int32), bits)[0].tolist() == values


def test_dequantize() -> None:
    """Eight inputs in two groups, eight outputs: output o has scale (o + 1) / 4 and 2 and zeros 8 and 7."""
    import torch

    from ensemble.perplexity import dequantize

    qweight = torch.full((1, 8), 0x76543210, dtype=torch.int32)  # input i has q = i for every output
    qzeros = torch.tensor([[0x77777777], [0x66666666]], dtype=torch.int32)  # kept as zero - 1
    scales = torch.stack([torch.arange(1, 9) / 4, torch.full((8,), 2.0)])
    g_idx = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    weight = dequantize(qweight, qzeros, scales, g_idx, 4)
    assert weight.shape == (8, 8)
    assert weight[0].tolist() == [-2.0, -1.75, -1.5, -1.25, -6.0, -4.0, -2.0, 0.0]
    assert weight[7].tolist() == [-16.0, -14.0, -12.0, -10.0, -6.0, -4.0, -2.0, 0.0]


# ---- a tiny model, quantized in earnest


@pytest.fixture(scope="module")
def tiny(word_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and one token a byte."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if util.find_spec("gptqmodel") is None:
        pytest.skip("gptqmodel is not installed")
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(word_tokenizer, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, vocab_size=256,
        tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_too_little_text(tiny: Path, tmp_path: Path) -> None:
    """127 bytes and one token a byte: the widest layer has 128 inputs."""
    (tmp_path / "a.txt").write_text("x" * 50 + "\n\n" + "y" * 77)
    with pytest.raises(ConfigError, match=r"calibration: 2 texts have 127 tokens, and this model needs 128, .* longer"):
        models.prepare("tiny", config(tiny, tmp_path / "a.txt", sample_tokens=77), print)
    assert list((tmp_path / "home" / "models").iterdir()) == []


def test_a_tiny_model(tiny: Path, tmp_path: Path, quorum_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ensemble import perplexity

    (tmp_path / "a.txt").write_text("\n\n".join(PROSE * k for k in range(1, 9)))
    asked = config(tiny, tmp_path / "a.txt", sample_tokens=200)
    assert models.prepare("tiny", asked, print, tokenizer_only=True) == tiny
    lines: list[str] = []
    monkeypatch.chdir(tmp_path)
    folder = models.prepare("tiny", asked, lines.append)
    assert folder == quorum_home / "models" / f"tiny-{models.fingerprint(asked)[:12]}"
    assert [line.split()[0] for line in lines] == ["quantizing", "quantized"]
    assert models.prepare("tiny", asked, lines.append) == folder
    assert len(lines) == 2  # it was found
    assert not (tmp_path / "logs").exists()  # which GPTQModel would write where it is started

    described = json.loads((folder / "config.json").read_text())
    recipe = described["quantization_config"]
    assert (recipe["quant_method"], recipe["bits"], recipe["group_size"]) == ("gptq", 4, 64)
    assert described["dtype"] == "bfloat16"
    assert (folder / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert (quorum_home / "logs" / f"{folder.name}.log").stat().st_size > 0

    before, after = perplexity.load(tiny).state_dict(), perplexity.load(folder).state_dict()
    assert before.keys() == after.keys()
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for name in before:
        error = (before[name].float() - after[name].float()).abs().max().item()
        # Half a step of the widest group, a step being 2 * max / 15; GPTQ moves weights by a few steps at most.
        assert error <= 4 * before[name].abs().max().item() / 15, name
    old, new = (perplexity.perplexity(f, [PROSE], device="cpu", window=50) for f in (tiny, folder))
    assert old.tokens == new.tokens == len(PROSE) - math.ceil(len(PROSE) / 50)
    assert new.dtype == "bfloat16"
    assert new.value == pytest.approx(old.value, rel=0.2)

    again = config(folder, tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="is quantized already: leave quantize out"):
        models.prepare("tiny", again, print)


def test_another_reader_gets_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    """GPTQModel's own dequantizing, which shares no code with ours."""
    import torch

    from ensemble import perplexity

    (tmp_path / "a.txt").write_text("\n\n".join(PROSE * k for k in range(1, 9)))
    folder = models.prepare("tiny", config(tiny, tmp_path / "a.txt", desc_act=True, group_size=32), print)
    code = (
        "import sys, torch\n"
        "from gptqmodel.utils.model_dequant import dequantize_model\n"
        "dequantize_model(sys.argv[1], sys.argv[2], target_dtype=torch.bfloat16, device='cpu')\n"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "dense")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | quantize.ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = perplexity._tensors(tmp_path / "dense"), perplexity.load(folder).state_dict()
    layers = [name for name in theirs if name.endswith("proj.weight")]
    assert len(layers) == 14
    for name in layers:
        torch.testing.assert_close(theirs[name], ours[name], rtol=2**-7, atol=0)  # one rounding in bfloat16


def test_a_failure_names_the_log(tiny: Path, tmp_path: Path, quorum_home: Path) -> None:
    import shutil

    shutil.copytree(tiny, tmp_path / "broken")
    os.truncate(tmp_path / "broken" / "model.safetensors", 1000)
    (tmp_path / "a.txt").write_text(PROSE * 20)
    with pytest.raises(ModelError, match=r"model m: quantizing .*broken failed \(.*\); .*/logs/m-.*\.log has all"):
        models.prepare("m", config(tmp_path / "broken", tmp_path / "a.txt"), print)
    assert list((quorum_home / "models").iterdir()) == []


# ---- the command


def command(*options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "pipelines/quantize.py"), *options]
    return subprocess.run(script, capture_output=True, text=True, cwd=cwd, timeout=280)


def test_help_teaches() -> None:
    done = command("--help")
    assert done.returncode == 0
    for word in ("--calibration", "--desc-act", "--eval", "model.yaml", "paragraphs", "runs/models/smollm2-gptq"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "smollm"], "unknown model 'smollm'; did you mean 'smollm2'?"),
        (["--model", "smollm2", "--calibration", "none.txt"], "quantize.calibration: no such file: none.txt"),
        (["--model", "smollm2", "--samples", "0"], "--samples: Input should be greater than or equal to 1"),
        (["--model", "smollm2", "--eval", "none.txt"], "--eval: no such file: none.txt"),
        (["--model", "smollm2", "--output", "configs"], "configs is there already: remove it, or give another"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(options: list[str], said: str) -> None:
    done = command(*options)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_makes_a_folder_to_share(tiny: Path, tmp_path: Path) -> None:
    import yaml

    (tmp_path / "a.txt").write_text("\n\n".join(PROSE[k:] + PROSE for k in range(20)))
    described = {"source": {"path": str(tiny)}, "dtype": "bfloat16", "context_length": 64, "chat": True}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(described))
    done = command(
        "--model", "tiny.yaml", "--calibration", "a.txt", "--output", "made", "--device", "cpu", "--group-size", "32",
        "--license", "apache-2.0", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"README.md", "model.yaml", "config.json", "model.safetensors", "quantize_config.json"} <= {
        path.name for path in (tmp_path / "made").iterdir()
    }
    _, front, text = (tmp_path / "made/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    for said in ("4 bits, symmetric, group size 32", "a.txt: 16 texts", "every 5th text of a.txt", "gptqmodel 7.6"):
        assert said in text
        assert said in " ".join(done.stdout.split())
    ready = ModelConfig.model_validate(yaml.safe_load((tmp_path / "made/model.yaml").read_text()))
    assert (ready.source.path, ready.chat, ready.quantize) == (str(tmp_path / "made"), True, None)
    assert models.prepare("made", ready, print) == tmp_path / "made"
