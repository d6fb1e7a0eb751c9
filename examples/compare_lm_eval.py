"""Two files of lm_eval_local_completions.py side by side.

python examples/compare_lm_eval.py endpoint.json harness.json --same 0.98 --difference 0.02

Exit status 1 where they differ more than that, 2 where they cannot be compared.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Agreement(NamedTuple):
    """same: questions with the same option chosen; difference: mean of |a - b| / tokens over all options."""

    same: int
    questions: int
    difference: float
    largest: float
    options: int


def compare(left: Sequence[dict[str, Any]], right: Sequence[dict[str, Any]]) -> Agreement:
    """Raises ValueError where these are not the same questions in the same tokens."""
    if not left:
        raise ValueError("no questions")
    if [(q["id"], q["tokens"]) for q in left] != [(q["id"], q["tokens"]) for q in right]:
        raise ValueError("not the same questions in the same order, or split into other tokens")
    differences = [
        abs(a - b) / tokens
        for one, other in zip(left, right, strict=True)
        for a, b, tokens in zip(one["logprobs"], other["logprobs"], one["tokens"], strict=True)
    ]
    return Agreement(
        same=sum(one["chosen"] == other["chosen"] for one, other in zip(left, right, strict=True)),
        questions=len(left),
        difference=sum(differences) / len(differences),
        largest=max(differences),
        options=len(differences),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left", type=Path)
    parser.add_argument("right", type=Path)
    parser.add_argument("--same", type=float, default=0.98, help="share of questions with the same option, at least")
    parser.add_argument("--difference", type=float, default=0.02, help="mean difference per token, at most")
    options = parser.parse_args()
    left, right = (json.loads(path.read_text("utf-8")) for path in (options.left, options.right))
    try:
        found = compare(left["questions"], right["questions"])
    except ValueError as e:
        print(f"{options.left}, {options.right}: {e}", file=sys.stderr)
        return 2
    share = found.same / found.questions
    print(f"same option: {found.same} of {found.questions} ({share:.4f}; at least {options.same})")
    print(
        f"log-likelihood per token: mean absolute difference {found.difference:.5f} of {found.options} options "
        f"(at most {options.difference}), largest {found.largest:.5f}"
    )
    print(f"accuracy: {left['accuracy']:.4f} and {right['accuracy']:.4f}")
    # Not a number fails both comparisons, so it must not pass for agreement.
    return 0 if share >= options.same and found.difference <= options.difference else 1


if __name__ == "__main__":
    sys.exit(main())
