"""The memory estimate against numbers worked out by hand, and the configs that ship."""

import json
from pathlib import Path
from typing import Any

import pytest

from ensemble import memory
from ensemble.config import ROOT, EngineConfig, ModelConfig
from ensemble.engine import engine_args, engine_env
from ensemble.load import load_ablation, load_config, read_yaml
from ensemble.presets import CHIPS, CPU_SEQUENCES, chip_name, with_preset

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
        (LLAMA2_13B, {"engine": {"device": "cuda", "kv_cache_dtype": "fp8"}}, 26.0, 409_600),  # a byte a number
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
    # hidden: sqrt(69e9 / 960) = 8,478. Activations: 2 * (4 + 12 / 2) * 8,478 * 8,192 bytes = 1.294 GiB, more than
    # 40 * 128,000 * 256 bytes = 1.221 GiB for sampling; with 0.7 GiB of CUDA and graphs 1.994.
    # 22.0 * 0.9 - 34.14 / 2 - 1.994 = 0.737 GiB = 7.913e8 bytes / 163,840 = 4,829 tokens
    assert memory.lines(model(LLAMA2_70B, {"tensor_parallel_size": 2}), "cuda") == [
        "memory: weights 34.1 GiB, KV cache 327,680 bytes a token, 1.25 GiB for 4,096 tokens",
        "2 x L4 (22.0 GiB, 90% of it used; batches of 8,192 tokens, 256 sequences): 17.1 weights + 2.0 runtime "
        "+ 0.7 KV cache a GPU = 4,829 tokens, 1.2 full inputs: fits",
    ]
    # Smaller batches: 2 * 10 * 8,478 * 2,048 bytes = 0.3234 GiB, runtime 1.0234, room 1.7072 GiB = 11,188 tokens
    engine = {"tensor_parallel_size": 2, "max_num_batched_tokens": 2048, "max_num_seqs": 64}
    assert memory.lines(model(LLAMA2_70B, engine), "cuda")[1] == (
        "2 x L4 (22.0 GiB, 90% of it used; batches of 2,048 tokens, 64 sequences): 17.1 weights + 1.0 runtime "
        "+ 1.7 KV cache a GPU = 11,188 tokens, 2.7 full inputs: fits"
    )


LLAMA3_8B = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


@pytest.mark.parametrize(
    ("seqs", "gpus", "logged"),
    [(1, 1, 1.10), (128, 1, 1.10), (256, 1, 1.26), (256, 2, 1.26)],  # vLLM's pull requests 9003 and 10511
)
def test_activations_are_those_that_vllm_logged(tmp_path: Path, seqs: int, gpus: int, logged: float) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA3_8B | {"vocab_size": 128_256}))
    with (tmp_path / "model.safetensors").open("wb") as f:
        f.truncate(16_060_522_240)  # what the model's files hold; on disk it takes no room
    need = memory.needs(model(None, source={"path": str(tmp_path)}))
    assert need is not None
    engine = EngineConfig(max_num_batched_tokens=8192, max_num_seqs=seqs, tensor_parallel_size=gpus)
    runtime = need.runtime(engine, gpus)
    assert runtime - 0.7 == pytest.approx(logged, abs=0.05)
    assert need.runtime(engine.model_copy(update={"enforce_eager": True}), gpus) == pytest.approx(runtime - 0.3)


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
    assert chip_name(name) == chip


@pytest.mark.parametrize(
    ("hardware", "engine", "utilization", "seqs", "tokens"),
    [
        ("L4", {}, 0.9, 256, 8192),
        ("cuda:NVIDIA H200", {}, 0.92, 1024, 16384),
        ("cuda:NVIDIA A100-SXM4-80GB", {}, 0.92, 1024, 16384),
        ("NVIDIA A100-PCIE-40GB", {}, 0.92, 256, 8192),
        ("some other GPU", {}, 0.9, 256, 8192),
        ("H200", {"gpu_memory_utilization": 0.15, "max_num_seqs": 64}, 0.15, 64, 16384),  # what is set counts
        ("H200", {"max_num_batched_tokens": 512}, 0.92, 512, 512),  # vLLM wants no more sequences than tokens
        ("L4", {"max_num_seqs": 10_000}, 0.9, 10_000, 10_000),
    ],
)
def test_the_preset_fills_what_is_left_out(
    hardware: str, engine: dict[str, Any], utilization: float, seqs: int, tokens: int
) -> None:
    found = with_preset(EngineConfig(**engine), hardware)
    assert (found.gpu_memory_utilization, found.max_num_seqs, found.max_num_batched_tokens) == (
        utilization, seqs, tokens,
    )  # fmt: skip


def test_the_documentation_has_the_presets() -> None:
    page = (ROOT / "docs/pools.md").read_text(encoding="utf-8")
    for name, chip in CHIPS.items():
        row = f"| {name} | {chip.gib} | {chip.gpu_memory_utilization:.2f} | {chip.max_num_seqs:,} |"
        assert f"{row} {chip.max_num_batched_tokens:,} | {chip.tokens_in_flight:,} |" in page


def test_vllm_is_started_with_the_preset_on_a_gpu_and_without_on_a_cpu() -> None:
    config = model(LLAMA2_7B, {"hardware": "H200", "max_num_seqs": 512, "kv_cache_dtype": "fp8"})
    arguments = engine_args(config, Path("m"), "cuda")
    names = ("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype")
    assert [arguments[name] for name in names] == [0.92, 512, 16384, "fp8"]
    plain = engine_args(model(LLAMA2_7B, {"device": "cpu", "hardware": "H200"}), Path("m"), "cpu")
    assert plain["max_num_seqs"] == CPU_SEQUENCES
    assert not plain.keys() & {"gpu_memory_utilization", "max_num_batched_tokens", "kv_cache_dtype"}
    assert "enable_chunked_prefill" not in plain


def test_nothing_is_compiled_on_a_cpu_unless_it_is_asked_for() -> None:
    assert engine_env(EngineConfig(), "cpu")["TORCH_COMPILE_DISABLE"] == "1"
    assert engine_env(EngineConfig(env={"TORCH_COMPILE_DISABLE": "0"}), "cpu")["TORCH_COMPILE_DISABLE"] == "0"
    assert "TORCH_COMPILE_DISABLE" not in engine_env(EngineConfig(enforce_eager=False), "cpu")
    assert "TORCH_COMPILE_DISABLE" not in engine_env(EngineConfig(), "cuda")


def test_chunked_prefill_is_as_the_model_file_says() -> None:
    chunked = engine_args(model(LLAMA2_7B, {"enable_chunked_prefill": True}), Path("m"), "cuda")
    assert chunked["enable_chunked_prefill"] is True


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


CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs/kustomization.yaml"})
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
