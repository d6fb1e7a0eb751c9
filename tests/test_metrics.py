"""Metrics of one text against another, against numbers worked out by hand."""

import json
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from ensemble import rouge
from ensemble.errors import ConfigError
from ensemble.metrics import (
    accuracy,
    exact_match,
    f1,
    numeric_match,
    quasi_exact_match,
    quasi_tokens,
    rouge1,
    rouge2,
    rouge2_char,
    rougeL,
)

ROUGES = (rouge1, rouge2, rougeL)
SENTENCES = st.lists(st.sampled_from(["the", "a", "cat", "cats", "Sat", "down.", "18", "猫"]), max_size=8).map(" ".join)


@pytest.mark.parametrize(("prediction", "reference", "expected"), [(1, 1, 1.0), (0, 0, 1.0), (1, 0, 0.0)])
def test_accuracy(prediction: int, reference: int, expected: float) -> None:
    assert accuracy(prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (" Paris\n", "Paris", 1.0),
        ("paris", "Paris", 0.0),
        ("Paris.", "Paris", 0.0),
        ("New  York", "New York", 0.0),
        ("", "", 0.0),  # as HELM: an empty prediction is never right
    ],
)
def test_exact_match(prediction: str, reference: str, expected: float) -> None:
    assert exact_match(prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("paris", "Paris!", 1.0),
        ("The  Eiffel\tTower", "eiffel tower", 1.0),
        ("an apple a day", "apple day", 1.0),
        ("theatre", "atre", 0.0),  # articles are whole words
        ("Eiffel-Tower", "EiffelTower", 1.0),  # punctuation goes without leaving a space
        ("Eiffel-Tower", "Eiffel Tower", 0.0),
        ("A.N. apple", "apple", 1.0),  # punctuation goes before articles do
        ("the", "a", 1.0),  # both come to nothing, the prediction is not empty
        ("\u201cParis\u201d", "Paris", 0.0),  # string.punctuation is ASCII
        ("$18", "18", 1.0),
        ("", "the", 0.0),
    ],
)
def test_quasi_exact_match(prediction: str, reference: str, expected: float) -> None:
    assert quasi_exact_match(prediction, reference) == expected


def test_quasi_tokens_drop_all_ascii_punctuation() -> None:
    assert quasi_tokens("a!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~b ー「」") == ["ab", "ー「」"]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("18", "18.0", 1.0),
        ("The answer is $1,800.", "... so #### 1800", 1.0),
        ("3/4", "0.75", 1.0),
        ("6/8", "3/4", 1.0),
        ("-1/2", "-0.50", 1.0),
        ("1/3", "0.333333333333", 0.0),
        ("18", "19", 0.0),
        ("18", "-18", 0.0),
        ("0.1", "0.10000000000000000000000001", 0.0),  # exact, unlike floats
        ("none", "none", 0.0),
        ("18", "eighteen", 0.0),
        ("1" * 5000, "1" * 5000 + ".0", 1.0),  # beyond what int() takes
        ("1" * 5000, "1/2", 0.0),
        # 2**-49: the longest finite decimal of a fraction with 15 digits by 15
        (f"1/{2**49}", f"{2**-49:.60f}", 1.0),
        (f"-999999999999999/{2**49}", f"{-999999999999999 * 2**-49:.60f}", 1.0),
    ],
)
def test_numeric_match(prediction: str, reference: str, expected: float) -> None:
    assert numeric_match(prediction, reference) == expected
    assert numeric_match(reference, prediction) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The cat.", "cat", 1.0),
        # tokens cat, black | cat, sat: 1 common, precision 1/2, recall 1/2
        ("a black cat", "the cat sat", 1 / 2),
        # cat, cat, sat | cat, sat, down: 2 common, precision 2/3, recall 2/3; of sets 1 and 2/3, which make 4/5
        ("the cat cat sat", "cat sat down", 2 / 3),
        # cat, cat | cat: 1 common, precision 1/2, recall 1
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("the", "the", 0.0),  # no token is left
        ("", "", 0.0),
    ],
)
def test_f1(prediction: str, reference: str, expected: float) -> None:
    assert f1(prediction, reference) == pytest.approx(expected)


@given(SENTENCES, SENTENCES)
def test_f1_is_symmetric_and_from_precision_and_recall(prediction: str, reference: str) -> None:
    left = quasi_tokens(reference)
    common = 0
    for token in quasi_tokens(prediction):  # each token of the reference is found once
        if token in left:
            left.remove(token)
            common += 1
    expected = 0.0
    if common:
        precision, recall = common / len(quasi_tokens(prediction)), common / len(quasi_tokens(reference))
        expected = 2 * precision * recall / (precision + recall)
    assert f1(prediction, reference) == f1(reference, prediction) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "one", "two", "longest"),
    [
        # Stems: the cat sat | the cat sat on mat. Unigrams 3 of 3 and 5: P 1, R 3/5, F 3/4. Bigrams 2 of 2 and 4:
        # P 1, R 1/2, F 2/3. The longest common subsequence has 3 words, as the unigrams.
        ("The cats sat", "the cat sat on mats.", 3 / 4, 2 / 3, 3 / 4),
        # All 3 words; of 2 bigrams each only "the cat"; "the cat" is also the longest subsequence, 2 of 3 words.
        ("sat the cat", "the cat sat", 1.0, 1 / 2, 2 / 3),
        # the, the | the: counted, 1 common: P 1/2, R 1. A single word has no bigram.
        ("the the", "the", 2 / 3, 0.0, 2 / 3),
        ("", "the cat", 0.0, 0.0, 0.0),
        ("猫が座った", "猫が座った", 0.0, 0.0, 0.0),  # no a-z, no token
    ],
)
def test_rouge(prediction: str, reference: str, one: float, two: float, longest: float) -> None:
    scores = [metric(prediction, reference) for metric in (rouge1, rouge2, rougeL)]
    assert scores == pytest.approx([one, two, longest])


@pytest.mark.parametrize(
    ("words", "prediction", "reference", "one", "two", "longest"),
    [
        # 東 京 都 | 京 都: 2 common characters of 3 and 2; pairs 東京 京都 | 京都: 1 of 2 and 1
        ("characters", "東京都", "京都", 4 / 5, 2 / 3, 4 / 5),
        # counted: 猫 が 猫 が | 猫 が: 2 of 4 and 2; 猫が が猫 猫が | 猫が: 1 of 3 and 1
        ("characters", "猫が\u3000猫が", "猫が", 4 / 6, 2 / 4, 4 / 6),
        # width, case and white space are no difference; 、 is a character: e u 、 1 | e u 1: 3 of 4 and 3;
        # eu u、 、1 | eu u1: 1 of 3 and 2; the longest common subsequence is e u 1
        ("characters", "ＥＵ、\n1", "eu １", 6 / 7, 2 / 5, 6 / 7),
        ("characters", "", "猫", 0.0, 0.0, 0.0),
        # 関西 国際 空港 へ 行く た | 関西 空港 へ 行く: 4 of 6 and 4, also in order; 空港へ and へ行く are 2 of 5 and 3
        ("sudachi", "関西国際空港へ行った。", "関西空港へ行く", 8 / 10, 4 / 8, 8 / 10),
        # 打込む is a spelling of 打ち込む, and punctuation does not count: 打つ 込む twice
        ("sudachi", "「打込む」！", "打ち込む", 1.0, 1.0, 1.0),
        ("sudachi", "。、", "。、", 0.0, 0.0, 0.0),
    ],
)
def test_rouge_of_japanese(
    words: rouge.Words, prediction: str, reference: str, one: float, two: float, longest: float
) -> None:
    scores = [metric(prediction, reference, words) for metric in ROUGES]
    assert scores == pytest.approx([one, two, longest])


class Spaces:
    def tokenize(self, text: str) -> list[str]:
        return text.split()


def peer_scores(scorer: RougeScorer, prediction: str, reference: str) -> list[float]:
    found = scorer.score(target=reference, prediction=prediction)
    return [found[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")]


@given(SENTENCES, SENTENCES)
def test_rouge_of_english_is_rouge_score(prediction: str, reference: str) -> None:
    peer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    ours = [metric(prediction, reference) for metric in ROUGES]
    assert ours == pytest.approx(peer_scores(peer, prediction, reference))


@pytest.mark.parametrize("words", ["characters", "sudachi"])
def test_rouge_of_japanese_articles_is_rouge_score_on_the_same_tokens(words: rouge.Words, data: Path) -> None:
    rows = [json.loads(line) for line in (data / "xlsum_ja_validation.jsonl").read_text("utf-8").splitlines()[:20]]
    peer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Spaces())
    for row in rows:
        lead = row["text"][:120]
        ours = [metric(lead, row["answer"], words) for metric in ROUGES]
        spaced = [" ".join(rouge.tokens(text, words)) for text in (lead, row["answer"])]
        assert ours == pytest.approx(peer_scores(peer, *spaced))


def test_the_lead_of_a_japanese_article_shares_pairs_with_its_summary(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "xlsum_ja_validation.jsonl").read_text("utf-8").splitlines()[:20]]
    for row in rows:
        lead, gold = (text.replace(" ", "").replace("\u3000", "") for text in (row["text"][:120], row["answer"]))
        pairs = [gold[i : i + 2] for i in range(len(gold) - 1)]
        left, common = list(pairs), 0
        for i in range(len(lead) - 1):
            if lead[i : i + 2] in left:
                left.remove(lead[i : i + 2])
                common += 1
        # Width and case, which `characters` does not tell apart, change little here.
        assert rouge2(lead, gold, "characters") == pytest.approx(2 * common / (len(lead) - 1 + len(pairs)), abs=0.02)
    assert all(rouge1(row["text"][:120], row["answer"], "sudachi") > 0.05 for row in rows)


@pytest.mark.parametrize(
    ("a", "b", "length"), [("", "abc", 0), ("abc", "abc", 3), ("abcbdab", "bdcaba", 4), ("xaxbxc", "abc", 3)]
)
def test_longest_common_subsequence(a: str, b: str, length: int) -> None:
    assert rouge.longest_common_subsequence(a, b) == rouge.longest_common_subsequence(b, a) == length


def test_a_text_that_sudachi_refuses_whole_is_split_in_parts() -> None:
    sentence = "猫が座る。"
    text = sentence * 15_000  # 225 kB
    assert rouge.tokens(text, "sudachi") == rouge.tokens(sentence, "sudachi") * 15_000
    assert len(rouge.tokens("猫" * 30_000, "sudachi")) > 10_000  # no sentence ends


@pytest.mark.parametrize("missing", ["sudachipy", "sudachidict_core"])
def test_without_sudachi_the_cure_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rouge._dictionary.cache_clear()
    monkeypatch.setattr(rouge, "_splitters", threading.local())
    rouge.tokens.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match="pip install sudachipy sudachidict-core, or set rouge_words: characters"):
        rouge.check_words("sudachi")
    monkeypatch.undo()
    rouge.check_words("sudachi")


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # {ab, ba} | {ab, bc}: 1 common, 2 * 1 / (2 + 2); counted pairs (ab twice) would make 2 * 1 / (3 + 2)
        ("abab", "abc", 1 / 2),
        # {東京, 京都} | {京都}: 2 * 1 / (2 + 1)
        ("東京都", "京都", 2 / 3),
        ("aa", "aaaa", 1.0),  # sets: {aa} | {aa}
        ("ab", "ba", 0.0),
        ("AB", "ab", 0.0),
        ("a", "a", 1.0),
        ("", "", 1.0),
        ("a", "ab", 0.0),
        ("ab", "", 0.0),
    ],
)
def test_rouge2_char(prediction: str, reference: str, expected: float) -> None:
    assert rouge2_char(prediction, reference) == pytest.approx(expected)


@given(st.text(), st.text())
def test_rouge2_char_is_a_symmetric_fraction_and_1_for_itself(prediction: str, reference: str) -> None:
    assert 0 <= rouge2_char(prediction, reference) == rouge2_char(reference, prediction) <= 1
    assert rouge2_char(prediction, prediction) == 1


def test_threads_share_the_dictionary_and_not_the_splitter() -> None:
    found: list[list[str]] = []
    texts = [f"東京都に{i}回行った。" * 50 for i in range(40)]
    workers = [threading.Thread(target=lambda: found.extend(rouge._japanese(t) for t in texts)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4 * len(texts)
