"""The memory estimate against numbers worked out by hand, and the configs that ship."""

import json
from pathlib import Path
from typing import Any

import pytest

from ensemble import memory
from ensemble.config import ROOT, ModelConfig
from ensemble.load import load_ablation, load_config, read_yaml

# What the papers and the models' config.json say.
LLAMA2_70B = {"parameters": 69.0, "bits": 4.25, "layers": 80, "kv_heads": 8, "head_dim": 128}
LLAMA2_13B = {"parameters": 13.0, "bits": 16, "layers": 40, "kv_heads": 40, "head_dim": 128}
LLAMA2_7B = {"parameters": 6.74, "bits": 4.25, "layers": 32, "kv_heads": 32, "head_dim": 128}


def model(shape: dict[str, Any] | None = None, engine: dict[str, Any] | None = None, **fields: Any) -> ModelConfig:
    base = {"source": {"hub": "a/b"}, "context_length": 4096, "engine": {"device": "cuda", "hardware": "L4"}}
    return ModelConfig.model_validate_json(
        json.dumps(base | {"shape": shape, "engine": base["engine"] | (engine or {})} | fields)
    )


@pytest.mark.parametrize(
    ("shape", "fields", "gigabytes", "kv_token"),
    [
        (LLAMA2_70B, {}, 36.7, 327_680),  # 69e9 * 4.25 / 8; 2 * 80 * 8 * 128 * 2
        (LLAMA2_13B, {}, 26.0, 819_200),  # 2 * 40 * 40 * 128 * 2
        (LLAMA2_13B, {"dtype": "float32"}, 26.0, 1_638_400),
        (LLAMA2_7B, {}, 3.6, 524_288),  # 2 * 32 * 32 * 128 * 2: half a MiB
        (LLAMA2_13B, {"quantize": {"bits": 4}}, 6.9, 819_200),  # 13e9 * 4.25 / 8
    ],
)
def test_weights_and_kv_cache(shape: dict[str, Any], fields: dict[str, Any], gigabytes: float, kv_token: int) -> None:
    need = memory.needs(model(shape, **fields))
    assert need is not None
    assert need.weights / 1e9 == pytest.approx(gigabytes, abs=0.05)
    assert need.kv_token() == kv_token


@pytest.mark.parametrize(("gpus", "expected"), [(1, 327_680), (2, 163_840), (8, 40_960), (16, 40_960)])
def test_a_gpu_holds_at_least_one_key_value_head(gpus: int, expected: int) -> None:
    need = memory.needs(model(LLAMA2_70B))
    assert need is not None
    assert need.kv_token(gpus) == expected


@pytest.mark.parametrize(
    ("shape", "engine", "fits"),
    [
        (LLAMA2_70B, {}, False),  # 34 GiB
        (LLAMA2_70B, {"tensor_parallel_size": 2}, True),
        (LLAMA2_70B, {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.8}, False),  # 17.6 for 17.1 and the rest
        (LLAMA2_70B, {"hardware": "A100-40GB"}, False),  # 35.5 of 39.4: 34.1 and the rest are more
        (LLAMA2_70B, {"hardware": "H100"}, True),
        (LLAMA2_13B, {}, False),
        (LLAMA2_13B, {"tensor_parallel_size": 2}, True),
        (LLAMA2_7B, {}, True),
        (LLAMA2_7B, {"hardware": "T4"}, True),
    ],
)
def test_the_verdict(shape: dict[str, Any], engine: dict[str, Any], fits: bool) -> None:
    _, verdict = memory.lines(model(shape, engine), "cuda")
    assert verdict.endswith(": fits") == fits
    assert ("does not fit; try " in verdict) != fits


def test_the_printed_arithmetic() -> None:
    # 22.0 * 0.9 - 34.14 / 2 - 1.5 = 1.23 GiB = 1.321e9 bytes / 163,840 = 8,064 tokens; 2 * 4096 = 8,192
    assert memory.lines(model(LLAMA2_70B, {"tensor_parallel_size": 2}), "cuda") == [
        "memory: weights 34.1 GiB, KV cache 327,680 bytes a token, 1.25 GiB for 4,096 tokens",
        "2 x L4 (22.0 GiB, 90% of it used): 17.1 weights + 1.5 runtime + 1.2 KV cache a GPU = 8,064 tokens, "
        "2.0 full inputs: fits",
    ]


@pytest.mark.parametrize(
    ("shape", "engine", "fields", "cure"),
    [
        (LLAMA2_70B, {}, {}, "no room for KV cache: does not fit; try engine.tensor_parallel_size: 2"),
        (LLAMA2_70B, {}, {"context_length": 16384}, "try engine.tensor_parallel_size: 4"),
        (LLAMA2_13B, {}, {}, "try engine.tensor_parallel_size: 2 or quantize: {bits: 4}"),
        (LLAMA2_7B, {}, {"context_length": 65536}, "tokens of KV cache only: does not fit; try engine"),
        (LLAMA2_70B | {"parameters": 700}, {}, {}, "try a larger chip"),
    ],
)
def test_what_does_not_fit_has_a_cure(
    shape: dict[str, Any], engine: dict[str, Any], fields: dict[str, Any], cure: str
) -> None:
    assert cure in memory.lines(model(shape, engine, **fields), "cuda")[1]


def test_a_suggested_context_length_fits() -> None:
    verdict = memory.lines(model(LLAMA2_7B, context_length=65536), "cuda")[1]
    length = int(verdict.rpartition("context_length: ")[2])
    assert 4096 < length < 65536
    assert memory.lines(model(LLAMA2_7B, context_length=length), "cuda")[1].endswith(": fits")
    assert not memory.lines(model(LLAMA2_7B, context_length=length + 1), "cuda")[1].endswith(": fits")


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("L4", "L4"),
        ("cuda:NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("A100 40GB", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("cuda:NVIDIA H200", "H200"),
        ("A100", None),  # which of the two?
        ("TPU v5", None),
    ],
)
def test_chips_by_name(name: str, chip: str | None) -> None:
    found = memory.chip_memory(name)
    assert (found and found[0]) == chip


def test_an_unknown_chip_is_asked_for() -> None:
    assert "engine.hardware: L4 | A10G" in memory.lines(model(LLAMA2_7B, {"hardware": "TPU"}), "cuda")[1]


def test_nothing_is_said_of_what_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert memory.lines(model(None), "cuda") == [
        "memory: unknown until the model is on this machine; for an estimate give shape in the model file"
    ]
    assert memory.lines(model(None, {"device": "cpu"}), "cpu") == []
    assert memory.lines(model(LLAMA2_7B, {"fake": {}}), "cuda") == []
    assert memory.lines(model(None, source={"path": str(tmp_path / "none")}), "cpu") == []


def test_a_model_on_this_machine_says_it_itself(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model-1.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(234))
    need = memory.needs(model(None, source={"path": str(tmp_path)}))
    assert need is not None
    assert (need.weights, need.kv_token()) == (1234, 2 * 30 * 3 * 64 * 2)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert memory.needs(model(None, source={"path": str(tmp_path)})) is None


def test_on_a_cpu_it_is_weights_and_kv_cache_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 * 2**20}.__getitem__)  # 8 GiB
    engine = {"device": "cpu", "hardware": None, "kv_cache_gib": 2.0}  # 2 GiB / 524,288 = 4,096 tokens
    assert memory.lines(model(LLAMA2_7B, engine), "cpu")[1] == (
        "CPU: 3.3 weights + 2.0 KV cache = 4,096 tokens, of 8.0 GiB RAM: fits"
    )
    few = memory.lines(model(LLAMA2_7B, engine, context_length=5000), "cpu")[1]
    assert few.endswith("fewer than an input may have: does not fit; try engine.kv_cache_gib: 2.5")
    much = memory.lines(model(LLAMA2_13B, engine | {"kv_cache_gib": 4.0}), "cpu")[1]
    assert much.endswith("of 8.0 GiB RAM: does not fit; try a lower engine.kv_cache_gib")


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MODELS = sorted((ROOT / "configs/models").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_loads(path: Path) -> None:
    load = load_ablation if "grids:" in path.read_text() else load_config
    assert load(path).models


@pytest.mark.parametrize("path", MODELS, ids=[path.stem for path in MODELS])
def test_every_model_file_loads_and_fits(path: Path) -> None:
    loaded = ModelConfig.model_validate_json(json.dumps(read_yaml(path)))
    if loaded.engine.device == "cuda":
        assert memory.lines(loaded, "cuda")[1].endswith(": fits")
