"""Questions for speed measurements, their prompts in all option orders, and what a prefix cache could save of them.

A question is a passage of random words, a sentence and four options: about 365 tokens as a prompt of
configs/templates/letters.yaml. Every peer gets exactly the token ids that Quorum sends, in the order in which it asks:
question after question, the orders of one question sorted.
"""

import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from million import WORDS

from ensemble.config import Letter, RunConfig
from ensemble.orders import make_orders
from ensemble.prompts import Prompter
from ensemble.questions import parse_question
from ensemble.tokens import load_tokenizer


class Prompts(NamedTuple):
    """ids: prompts in the order in which they are asked. letters: of each the token of each option, by content."""

    ids: list[list[int]]
    letters: list[list[int]]
    orders: int  # of each question


def write_questions(path: Path, n: int, passage_words: int = 290) -> None:
    """n question rows; the same n are always the same rows. Passages differ in length by up to a tenth."""
    draw = random.Random(24)
    with path.open("w", encoding="utf-8") as f:
        for i in range(n):
            words = draw.choices(WORDS, k=round(passage_words * draw.uniform(0.9, 1.1)))
            row = {
                "id": i,
                "task": "multiple_choice",
                "context": " ".join(words),
                "text": f"Which of these stands in passage {i}?",
                "choices": [f"{name} {' '.join(draw.choices(WORDS, k=9))}" for name in ("one", "two", "three", "four")],
                "answer": draw.randrange(4),
            }
            f.write(json.dumps(row) + "\n")


def render(config: RunConfig, folder: Path, path: Path, limit: int | None = None) -> Prompts:
    """The prompts of the config's one multiple-choice member for the question file, as `ensemble.answer` asks them.

    folder: of the prepared model, for its tokenizer.
    """
    (member,) = config.tasks["multiple_choice"].members
    assert isinstance(member.scoring, Letter)
    model = config.models[member.model]
    prompter = Prompter(
        member, model, config.templates[member.template], load_tokenizer(folder, model.trust_remote_code)
    )
    found = Prompts([], [], 0)
    with path.open(encoding="utf-8") as f:
        for i, line in enumerate(f):
            if i == limit:
                break
            question = parse_question(json.loads(line), i, str(path), i + 1)
            orders = sorted(make_orders(member.scoring.orders, len(question.choices), config.seed))
            for order in orders:
                prompt = prompter.letters(question, order)
                found.ids.append(prompt.prompt)
                found.letters.append([token for (token,) in prompt.continuations])
            found = found._replace(orders=len(orders))
    return found


def save(path: Path, prompts: Prompts) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"row": range(len(prompts.ids)), "ids": prompts.ids, "letters": prompts.letters}
    types = {"row": pa.int64(), "ids": pa.list_(pa.int32()), "letters": pa.list_(pa.int32())}
    table = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
    pq.write_table(table.replace_schema_metadata({"orders": str(prompts.orders)}), path, row_group_size=4096)


def load(path: Path) -> Prompts:
    import pyarrow.parquet as pq

    table: Any = pq.read_table(path)
    return Prompts(
        table["ids"].to_pylist(), table["letters"].to_pylist(), int(table.schema.metadata[b"orders"].decode())
    )


def savable(prompts: Iterable[Sequence[int]], block: int) -> int:
    """Prompt tokens that a prefix cache could spare at most, if every prompt came after all before it were done.

    vLLM's rule: it keeps full blocks of `block` tokens, and always computes the last token of a prompt. With block 1
    what any cache could do.
    """
    nodes: dict[tuple[int, tuple[int, ...]], int] = {}
    saved = 0
    for ids in prompts:
        node = hits = 0
        for end in range(block, len(ids) + 1, block):
            key = (node, tuple(ids[end - block : end]))
            hits += key in nodes  # behind a node that is new all are new
            node = nodes.setdefault(key, len(nodes) + 1)
        saved += block * min(hits, (len(ids) - 1) // block)
    return saved


def decisions(logprobs: np.ndarray, orders: int) -> np.ndarray:
    """The option that each question's orders choose by mean log-probability.

    logprobs: [questions x orders, options], by content, not normalised.
    """
    normalised = logprobs - np.logaddexp.reduce(logprobs, axis=1, keepdims=True)
    chosen: np.ndarray = normalised.reshape(-1, orders, logprobs.shape[1]).mean(axis=1).argmax(axis=1)
    return chosen
