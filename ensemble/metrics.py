"""Metrics of one answer against one reference: (prediction, reference) -> a fraction in [0, 1], never a percentage.

Names and definitions are HELM's (helm.benchmark.metrics.evaluate_reference_metrics) where nothing else is said.
"""

import re
import string
from collections import Counter
from fractions import Fraction
from itertools import pairwise

from ensemble.parsing import final_number
from ensemble.rouge import Words, rouge_l, rouge_n

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(prediction: int, reference: int) -> float:
    """1 where both are the same 0-based option index."""
    return float(prediction == reference)


def exact_match(prediction: str, reference: str) -> float:
    """1 where both are equal but for surrounding white space. An empty prediction scores 0, as in HELM."""
    return float(bool(prediction) and prediction.strip() == reference.strip())


def quasi_exact_match(prediction: str, reference: str) -> float:
    """1 where both have the same `quasi_tokens`. An empty prediction scores 0, as in HELM."""
    return float(bool(prediction) and quasi_tokens(prediction) == quasi_tokens(reference))


def quasi_tokens(text: str) -> list[str]:
    """Words of HELM's `normalize_text` (from SQuAD's): lower case, no ASCII punctuation, no a/an/the.

    Only `string.punctuation` goes: 「」, “” and ー stay, and Japanese text without spaces is one word.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


def numeric_match(prediction: str, reference: str) -> float:
    """1 where the final numbers (`ensemble.parsing.final_number`) have the same value: 18 and 18.0, 3/4 and 0.75.

    0 where either text has no number.
    """
    ours, theirs = final_number(prediction), final_number(reference)
    if ours is None or theirs is None:
        return 0.0
    if ours == theirs:
        return 1.0
    # Equal decimals were equal strings. A fraction of at most 15 digits by 15 that has a finite decimal needs fewer
    # than 80 characters, so longer ones need no arithmetic, which Python refuses beyond 4300 digits.
    if "/" not in ours + theirs or max(len(ours), len(theirs)) > 80:
        return 0.0
    return float(Fraction(ours) == Fraction(theirs))


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over `quasi_tokens`, each occurrence counted (SQuAD's evaluate-v1.1).

    HELM's `f1_score` compares sets of the same tokens; the two differ where a token is repeated. 0 where either
    text has no token.
    """
    ours, theirs = Counter(quasi_tokens(prediction)), Counter(quasi_tokens(reference))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def rouge1(prediction: str, reference: str, words: Words = "english") -> float:
    """F measure of shared unigrams; `ensemble.rouge.tokens` says what counts as one.

    English words are made of a-z and 0-9: Japanese text has none and scores 0, so give other `words` there.
    """
    return rouge_n(prediction, reference, 1, words)


def rouge2(prediction: str, reference: str, words: Words = "english") -> float:
    """F measure of shared bigrams; see `rouge1`."""
    return rouge_n(prediction, reference, 2, words)


def rougeL(prediction: str, reference: str, words: Words = "english") -> float:
    """F measure of the longest common subsequence, the text taken as one sentence; see `rouge1`."""
    return rouge_l(prediction, reference, words)


def rouge2_char(prediction: str, reference: str) -> float:
    """2 |A & B| / (|A| + |B|) of the SETS of adjacent character pairs, as the Matsuo competition counts ROUGE-2.

    Works without words, hence for Japanese. Where a text is shorter than a pair: 1 if the texts are equal, else 0.
    """
    if min(len(prediction), len(reference)) < 2:
        return float(prediction == reference)
    ours, theirs = (set(pairwise(text)) for text in (prediction, reference))
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))
