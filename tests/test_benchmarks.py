"""What the speed benchmarks rest on: prompts, the ceiling of a prefix cache, decisions, random models."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    ("prompts", "block", "saved"),
    [
        ([], 2, 0),
        ([[1, 2, 3, 4]], 2, 0),
        ([[1, 2, 3, 4], [1, 2, 3, 5]], 1, 3),
        ([[1, 2, 3, 4], [1, 2, 3, 5]], 2, 2),  # [3, 4] and [3, 5] are different blocks
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 2, 2),  # the last token is always computed, and so is its block
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], 2, 4),
        ([[1, 2, 3, 4], [9, 2, 3, 4]], 1, 0),  # equal tokens behind a different one are another prefix
        ([[1, 2], [3, 4], [1, 2, 3]], 2, 2),  # the first prompt is remembered over the second
        ([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 8, 8, 8], [1, 2, 3, 4, 8, 8, 9]], 2, 4 + 6),
    ],
)
def test_what_a_prefix_cache_can_save(prompts, block, saved):
    import prompts_24

    assert prompts_24.savable(prompts, block) == saved


def test_decisions_are_by_the_mean_of_normalised_log_probabilities():
    import prompts_24

    shares = [[0.7, 0.3], [0.4, 0.6], [0.2, 0.8], [0.9, 0.1]]  # 0.7 x 0.4 > 0.3 x 0.6, and 0.2 x 0.9 > 0.8 x 0.1
    scaled = np.add(np.log(shares), [[-1], [-9], [0], [3]])  # what all options lack does not count
    assert prompts_24.decisions(scaled, orders=2).tolist() == [0, 0]
    assert prompts_24.decisions(scaled, orders=1).tolist() == [0, 1, 1, 0]


def test_questions_are_the_same_ones_again_and_valid(tmp_path):
    import prompts_24

    from ensemble.questions import parse_question

    prompts_24.write_questions(tmp_path / "a.jsonl", 5, passage_words=100)
    prompts_24.write_questions(tmp_path / "b.jsonl", 5, passage_words=100)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    questions = [parse_question(row, i, "a.jsonl", i + 1) for i, row in enumerate(rows)]
    assert [len(set(question.choices)) for question in questions] == [4] * 5
    assert all(90 <= len(question.context.split()) <= 110 for question in questions)
    assert len({question.context.split()[0] + question.context.split()[1] for question in questions}) > 1


def test_prompts_survive_their_file(tmp_path):
    import prompts_24

    prompts = prompts_24.Prompts([[1, 2, 3], [4]], [[7, 8], [8, 7]], 2)
    prompts_24.save(tmp_path / "prompts.parquet", prompts)
    assert prompts_24.load(tmp_path / "prompts.parquet") == prompts


# Parameters of a Llama: per layer 2 h^2 + 2 h kv + 3 h m + 2 h, besides 2 v h + h.
@pytest.mark.parametrize(("shape", "billions"), [("7b", 7.24), ("70b", 68.98), ("135m", 0.1627)])
def test_shapes_have_the_parameters_of_their_models(shape, billions):
    import random_model

    found = random_model.SHAPES[shape]
    vocabulary = 32_000 if shape != "135m" else 49_152  # 135m: its output layer is not tied here
    layer = sum(rows * columns for rows, columns in random_model.products(found).values()) + 2 * found.hidden
    total = found.layers * layer + 2 * vocabulary * found.hidden + found.hidden
    assert total / 1e9 == pytest.approx(billions, rel=0.005)


def test_four_bit_weights_unpack_to_the_size_of_sixteen_bit_ones():
    torch = pytest.importorskip("torch")
    import random_model

    shape = random_model.Shape(hidden=256, layers=1, heads=4, kv_heads=2, intermediate=512, positions=64)
    base = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 70}
    deviations = {}
    for bits in (16, 4):
        made = random_model.config(shape, base, bits, group_size=64)
        assert made["vocab_size"] == 128
        tensors = dict(random_model.tensors(shape, made, bits, group_size=64))
        if bits == 16:
            weights = tensors["model.layers.0.mlp.down_proj.weight"].float()
        else:
            name = "model.layers.0.mlp.down_proj"
            shifts = torch.arange(0, 32, 4, dtype=torch.int32)
            packed = tensors[f"{name}.qweight"]
            quarters = (packed[:, None, :] >> shifts[None, :, None]) & 15  # of a word the low bits come first
            zeros = ((tensors[f"{name}.qzeros"][:, :, None] >> shifts) & 15).flatten(1) + 1
            groups = tensors[f"{name}.g_idx"].long()
            scales = tensors[f"{name}.scales"].float()
            weights = (quarters.flatten(0, 1) - zeros[groups]) * scales[groups]
            weights = weights.T
        assert tuple(weights.shape) == (256, 512)
        deviations[bits] = weights.std().item()
    assert deviations[16] == pytest.approx(512**-0.5, rel=0.02)
    assert deviations[4] == pytest.approx(512**-0.5, rel=0.02)
