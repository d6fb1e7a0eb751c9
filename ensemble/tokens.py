"""Token ids of texts by a model's own tokenizer: exact, and fast where most of a prompt was seen before.

Prompts share most of their text: few-shot examples with the next prompt, all but the label with the next label. Where
a tokenizer provably treats what stands before and after a line break apart, a text is encoded piece by piece and the
pieces are remembered; elsewhere it is encoded as a whole.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
PIECES, SHORT = 20_000, 2_000  # remembered pieces, and their most characters
LONG_PIECES = 16  # longer ones come again only in the same question's other orders

Encode = Callable[[str], list[int]]

LETTER = r"[A-Za-z#*\[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]"  # never taken for a number, or for white space

# The word patterns of Llama 3 and of Qwen 2: line breaks end a word, and all that stand together are in one.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BREAK_ENDS_WORD = (_CONTRACTIONS + r"\p{N}{1,3}" + _REST, _CONTRACTIONS + r"\p{N}" + _REST)


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The model's own tokenizer as transformers loads it."""
    try:
        plain = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] in PLAIN_TOKENIZERS
    except (OSError, ValueError, KeyError):
        plain = False
    if plain:  # the same object without the way through all model classes, which costs 10 s and imports torch
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


class Encoder:
    """Token ids of a text, without special tokens: what the tokenizer gives for the whole text at once."""

    def __init__(self, tokenizer: Any) -> None:
        self._whole, self._seam = _whole(tokenizer), _seam(tokenizer)
        self._short = lru_cache(maxsize=PIECES)(self._whole)
        self._long = lru_cache(maxsize=LONG_PIECES)(self._whole)

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += self._piece(piece)
        return ids

    def split(self, text: str) -> tuple[list[int], str]:
        """The ids of the text up to a place where it can be taken apart whatever follows it, and the rest."""
        *head, tail = self._pieces(text)
        return [i for piece in head for i in self._piece(piece)], tail

    def _piece(self, piece: str) -> list[int]:
        return self._short(piece) if len(piece) <= SHORT else self._long(piece)

    def _pieces(self, text: str) -> list[str]:
        ends = [match.end() for match in self._seam.finditer(text)] if self._seam else []
        return [text[start:end] for start, end in pairwise([0, *ends, len(text)])]


def _whole(tokenizer: Any) -> Encode:
    """A Rust tokenizer is asked directly: its wrapper's checks take as long as a short text. One text at a time:
    threads for a handful of them cost more than they save, beside engines that are busy on the same cores."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(text: str) -> list[int]:
        if backend.truncation is not None or backend.padding is not None:  # a tokenizer.json may ask for them
            backend.no_truncation()
            backend.no_padding()
        ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    return encode


@lru_cache(maxsize=8)  # of a tokenizer once, however many prompters use it: its vocabulary is read for it
def _seam(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches up to where a text may be taken apart without changing its tokens; None where that is not certain.

    Certain is: byte-pair encoding, which works within words; no normalizer; and a split into words that looks across
    a line break in no case. GPT-2's pattern puts of several white-space characters the last one into a word of its
    own if more text follows, so that only a break between visible characters is a seam, or the first of two breaks.
    For that second kind a letter must follow: added tokens and digits are cut out before words are looked for, and a
    text does not "go on" behind the breaks where one of them stands. The patterns begin with the break itself, which
    is searched for ten times as fast as what stands before it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    spec = json.loads(backend.to_str())
    added = spec["added_tokens"] or []
    if any(t["lstrip"] or t["rstrip"] or t["single_word"] or re.search(r"\s", t["content"]) for t in added):
        return None
    if spec["normalizer"] is not None or spec["model"]["type"] != "BPE" or spec["model"].get("dropout"):
        return None
    splits = spec["pre_tokenizer"] or {}
    kinds = [_kind(split) for split in splits.get("pretokenizers", [splits])]
    if kinds in (["gpt2"], ["digits", "gpt2"]):
        heads = "".join(re.escape(t["content"][0]) for t in added)  # none: the class still has \\s
        return re.compile(rf"\n(?<=\S\n)(?=\S|\n(?![{heads}\s]){LETTER})")
    return re.compile(r"\n(?<=\S\n)\n*(?=\S)") if kinds == ["break ends word", "bytes"] else None


def _kind(split: dict[str, Any]) -> str:
    if split.get("type") == "Digits":
        return "digits"
    if split.get("type") == "ByteLevel" and not split["add_prefix_space"]:
        return "gpt2" if split["use_regex"] else "bytes"
    known = split.get("type") == "Split" and split["pattern"].get("Regex") in BREAK_ENDS_WORD
    return "break ends word" if known and split["behavior"] == "Isolated" and not split["invert"] else "unknown"


def beginning(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text. What it puts behind one (some add an end) has no place in a prompt."""
    bare, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    return whole[: next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)]
