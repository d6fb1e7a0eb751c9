"""Fixtures that several test files share: a tiny tokenizer, questions, and the optional folder of real data."""

from pathlib import Path

import pytest
from hypothesis import settings

from ensemble.orders import make_orders
from ensemble.questions import content_hash
from ensemble.records import Order, Question, Task

# A deadline for each example would test the machine's speed (the first call imports libraries).
settings.register_profile("quorum", deadline=None)
settings.load_profile("quorum")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data sets are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real (byte-level, one token a byte) tokenizer and a config, as a fake engine's model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def question(
    text: str = "What is two plus two?",
    choices: tuple[str, ...] = ("one", "two", "three", "four"),
    task: Task = "multiple_choice",
    row_index: int = 0,
    **fields: object,
) -> Question:
    """A question with the content hash that the reader would give it."""
    context = fields.get("context")
    assert context is None or isinstance(context, str)
    digest = content_hash(task, text, context, choices)
    return Question(row_index, "q.jsonl", row_index + 1, row_index, task, text, choices=choices, hash=digest, **fields)  # type: ignore[arg-type]


def identity(n: int) -> tuple[Order, ...]:
    return make_orders("identity", n, 0)


def cyclic(n: int) -> tuple[Order, ...]:
    return make_orders("cyclic", n, 0)
