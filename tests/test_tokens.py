"""Piecewise encoding gives what the tokenizer gives for the whole text, whatever the text."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ensemble.config import ModelConfig
from ensemble.load import load_config
from ensemble.models import prepare
from ensemble.tokens import BREAK_ENDS_WORD, Encoder, _seam, load_tokenizer

PIECES = st.sampled_from(
    [
        "a",
        " b",
        "Answer:",
        "\n",
        "\n\n",
        "\n\n\n",
        " \n",
        "\n ",
        "\r\n",
        "\t",
        "  ",
        "4",
        "½",
        "²",
        "5.",
        "'s",
        "'",
        "(",
        ")",
        "?",
        "#",
        "日本",
        "。",
        "〇",
        "é",
        "é",
        "🙂",
        "<|im_end|>",
        "<|im_start|>",
        "<",
        "\xa0",
        "\u3000",
        "\x1c",
        "\u2028",
        "\x85",
        "Q: x",
        "A\n\nQ",
        "4\n\n5",
        "x\n\n<|im_end|>",
        "-",
        "_",
        "\x0b",
    ]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join) | st.text(max_size=60)


@pytest.fixture(scope="module")
def smollm2():
    config: ModelConfig = load_config("configs/demo.yaml", ["models.smollm2={}"]).models["smollm2"]
    return load_tokenizer(prepare("smollm2", config, print, tokenizer_only=True), False)


def trained(pre_tokenizer):
    """A byte-pair tokenizer that has merged what it could over some words with breaks and spaces."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    from tokenizers.pre_tokenizers import ByteLevel

    words = ["Answer: A\n\nQ: x\n\n", "a  b \n\n\n c", "4\n\n5", "?\n\n", ")\n", "日本\n\n日本"] * 5
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    backend.train_from_iterator(words, trainer)
    backend.add_special_tokens([AddedToken("<|im_end|>", normalized=False), AddedToken("<|im_start|>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def pre_tokenizer(kind):
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if kind in ("llama 3", "qwen 2"):
        pattern = Regex(BREAK_ENDS_WORD[kind == "qwen 2"])
        return Sequence([Split(pattern, "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    bytes_ = ByteLevel(add_prefix_space=False)
    return Sequence([Digits(individual_digits=True), bytes_]) if kind == "smollm" else bytes_


KINDS = ("gpt2", "smollm", "llama 3", "qwen 2")
tokenizers = {}


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@example(text="A: 4\n\nQ: How?\nA:")
@example(text="A: 4\n\n5")
@example(text="x\n\n<|im_end|>")
@example(text="x \nB\n\n \n")
def test_pieces_have_the_tokens_of_the_whole(kind, text):
    if kind not in tokenizers:
        tokenizers[kind] = trained(pre_tokenizer(kind))
        assert _seam(tokenizers[kind]) is not None
    tokenizer = tokenizers[kind]
    assert Encoder(tokenizer)(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@given(text=TEXTS)
def test_so_it_is_with_a_real_tokenizer(smollm2, text):
    assert Encoder(smollm2)(text) == smollm2(text, add_special_tokens=False)["input_ids"]


def test_what_was_seen_is_not_encoded_again(smollm2, monkeypatch):
    import ensemble.tokens as tokens

    seen = []
    whole = tokens._whole(smollm2)
    monkeypatch.setattr(tokens, "_whole", lambda _: lambda text: (seen.append(text), whole(text))[1])
    encode = tokens.Encoder(smollm2)
    shots = "".join(f"Q: How much is {i}?\nA: It is {i}.\n\n" for i in "abc")
    for question in ("one", "two"):
        for label in ("", " A", " B"):
            encode(f"{shots}Q: {question}\nA:{label}")
    assert "".join(seen).count("How much is a?") == 1
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}},
        {"pre_tokenizer": None},
        {"added_tokens": [{"lstrip": True}]},
    ],
)
def test_a_tokenizer_that_may_look_across_a_break_gets_the_whole_text(smollm2, change):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    spec = json.loads(smollm2.backend_tokenizer.to_str())
    if "added_tokens" in change:
        spec["added_tokens"][1] |= change["added_tokens"][0]
    else:
        spec |= change
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)))
    assert _seam(other) is None
