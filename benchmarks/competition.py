"""A mixed competition of synthetic rows: choices, long summaries, generation; the same rows for the same arguments.

python benchmarks/competition.py OUT.jsonl --times 50

Each time asks 100 choices of five options (150 to 350 tokens), 20 summaries of articles (1,500 to 3,500 tokens) and 20
questions to answer in free text, in the order of the Matsuo competition, and no row comes twice. Token counts are of
SmolLM2's tokenizer, to which each of the words is about one token.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHOICES, SUMMARIES, GENERATIONS = 100, 20, 20  # of one time
OPTIONS = 5
VOCABULARY = """
river stone morning letter garden winter music window harbour candle orange silver market bridge paper forest
engine summer island mirror village carpet thunder basket pencil valley copper meadow anchor water teacher city
doctor farmer train ship road house mountain field animal bird horse metal glass wood sugar salt bread fruit
carries holds finds loses makes breaks sends takes grows shows follows leaves turns keeps builds reaches opens
old small large bright quiet heavy early late warm cold narrow deep public common green white black long short
"""
WORDS = VOCABULARY.split()


def rows(times: int) -> Iterator[dict[str, Any]]:
    """Question rows as in a question file; `group` says which time they belong to."""
    draw = random.Random(0)
    for time in range(times):
        for number in range(CHOICES + SUMMARIES + GENERATIONS):
            row = {"id": f"{time}-{number}", "group": f"time {time}"}
            if number < CHOICES:
                yield row | _choice(draw)
            elif number < CHOICES + SUMMARIES:
                yield row | {"task": "summarization", "text": _text(draw, draw.randint(1400, 3200))}
            else:
                text = f"Say in a few sentences why {_text(draw, draw.randint(15, 60))}"
                yield row | {"task": "generation", "text": text}


def _choice(draw: random.Random) -> dict[str, Any]:
    options: list[str] = []
    while len(options) < OPTIONS:
        option = " ".join(draw.choices(WORDS, k=draw.randint(3, 8)))
        if option not in options:  # orders of equal options cannot be told apart
            options.append(option)
    text = _text(draw, draw.randint(95, 255)) + " Which of these follows?"
    return {"task": "multiple_choice", "text": text, "choices": options, "answer": draw.randrange(OPTIONS)}


def _text(draw: random.Random, words: int) -> str:
    """Sentences of 8 to 16 words, together about so many."""
    sentences: list[str] = []
    while words > 0:
        length = draw.randint(8, 16)
        sentences.append(" ".join(draw.choices(WORDS, k=length)).capitalize() + ".")
        words -= length
    return " ".join(sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--times", type=int, default=50)
    options = parser.parse_args()
    with options.output.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows(options.times))


if __name__ == "__main__":
    main()
