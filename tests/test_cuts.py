"""Inputs longer than a model's context: what is kept are exactly the promised slices, and no less than fits."""

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble import models
from ensemble.config import ROOT, Letter, Member, Sampling, Shots, Template
from ensemble.errors import TooLongError
from ensemble.load import load_config
from ensemble.prompts import Prompter, cut_span
from ensemble.questions import parse_question
from ensemble.records import Question
from ensemble.tokens import load_tokenizer
from tests.conftest import question

CONTEXT, ANSWER = 2048, 128
HEAD, TAIL = "###\nArticle: ", "\n\nSummarize the above article in 3 sentences.\nSummary:"  # templates/summary.yaml
SLACK = 3  # tokens that merges at the two seams may save
POLICIES = [("tail", 0.5), ("head", 0.5), ("middle", 0.5), ("middle", 0.7), ("middle", 0.03)]

demo = load_config(ROOT / "configs/demo.yaml", ["models.smollm2={}"])


@pytest.fixture(scope="module")
def tok():
    folder = models.prepare("smollm2", demo.models["smollm2"], print, tokenizer_only=True)
    return load_tokenizer(folder, False)


def summary(shots: Shots | None = None) -> Template:
    text = "###\nArticle: {{ text }}\n\nSummarize the above article in 3 sentences."
    return Template(question=text, prefill="\nSummary:", shots=shots)


def prompter(tok, template: Template, cut: str = "tail", centre: float = 0.5, context: int = CONTEXT, letters=False):
    scoring = Letter(method="letter") if letters else None
    sampling = Sampling(max_tokens=ANSWER)
    member = Member(model="m", template="t", cut=cut, cut_centre=centre, sampling=sampling, scoring=scoring)
    return Prompter(member, demo.models["smollm2"].model_copy(update={"context_length": context}), template, tok)


def spans(tok, text: str) -> list[tuple[int, int]]:
    return tok(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def check(tok, q: Question, cut: str, centre: float, template: Template, shots: int = 0) -> None:
    """That the prompt is the template around source[:cut_start] + source[cut_end:], as promised in docs/prompts.md."""
    asked = prompter(tok, template, cut, centre).text(q)
    facts, offsets = asked.facts, spans(tok, q.text)
    kept = q.text[: facts.cut_start] + q.text[facts.cut_end :]
    assert tok.decode(asked.ids) == HEAD + kept + TAIL
    assert facts.tokens == len(asked.ids) <= CONTEXT - ANSWER
    assert facts.tokens >= CONTEXT - ANSWER - SLACK, "more was dropped than had to be"
    assert facts.shots_dropped == shots
    first = [start for start, _ in offsets].index(facts.cut_start) if facts.cut_start else 0
    last = first + facts.cut_tokens
    assert (last < len(offsets)) == (facts.cut_end < len(q.text))
    assert facts.cut_end == (offsets[last][0] if last < len(offsets) else len(q.text))
    total = len(spans(tok, q.text[: facts.cut_start])) + len(spans(tok, q.text[facts.cut_end :]))
    assert abs(total - (len(offsets) - facts.cut_tokens)) <= SLACK
    where = {"tail": 1.0, "head": 0.0, "middle": centre}[cut]
    wanted = where * len(offsets) - facts.cut_tokens / 2
    assert first == pytest.approx(min(max(wanted, 0), len(offsets) - facts.cut_tokens), abs=1)


@pytest.fixture(scope="module")
def long_articles(data, tok) -> list[Question]:
    """The ten longest articles of the sample, each repeated to 20,000 tokens."""
    lines = (data / "cnndm_sample.jsonl").read_text(encoding="utf-8").splitlines()
    articles = [parse_question(json.loads(line), i, "f", i) for i, line in enumerate(lines)]
    longest = sorted(articles, key=lambda q: len(q.text))[-10:]
    return [replace(q, text=" ".join([q.text] * (20_000 // len(spans(tok, q.text)) + 1))) for q in longest]


@pytest.mark.parametrize(("cut", "centre"), POLICIES)
def test_articles_of_20_000_tokens(long_articles, tok, cut, centre):
    for article in long_articles:
        assert len(spans(tok, article.text)) >= 20_000
        check(tok, article, cut, centre, summary())


@pytest.mark.parametrize(("cut", "centre"), POLICIES)
@pytest.mark.parametrize("times", [4, 40])
def test_the_demos_longest_article_repeated(tok, cut, centre, times):
    rows = map(json.loads, (ROOT / "configs/demo/questions.jsonl").read_text(encoding="utf-8").splitlines())
    article = max((row["text"] for row in rows), key=len)
    check(tok, question(" ".join([article] * times), (), "summarization"), cut, centre, summary())


@pytest.mark.parametrize("cut", ["tail", "head", "middle"])
@pytest.mark.parametrize("unit", ["長い記事です。", "👩‍🚀 été naïve ", "a" * 50 + " ", "line\n\n\n", "12345 "])
def test_texts_of_other_scripts(tok, cut, unit):
    q = question(unit * 3000, (), "summarization")
    asked = prompter(tok, summary(), cut).text(q)
    kept = q.text[: asked.facts.cut_start] + q.text[asked.facts.cut_end :]
    assert tok.decode(asked.ids) == HEAD + kept + TAIL
    assert CONTEXT - ANSWER - 10 <= len(asked.ids) <= CONTEXT - ANSWER


def test_shots_go_before_the_article_is_cut(tok, tmp_path):
    rows = [{"id": i, "task": "summarization", "text": "Rain. " * 40, "summary": "It rained."} for i in range(3)]
    (tmp_path / "shots.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shots = Shots(file=str(tmp_path / "shots.jsonl"), n=3)
    shot = len(spans(tok, f"{HEAD}{rows[0]['text']}{TAIL} It rained.\n\n{HEAD}")) - len(spans(tok, HEAD))
    room = CONTEXT - ANSWER - len(spans(tok, HEAD + TAIL))
    for kept in (3, 2, 1, 0):
        for n in (room - kept * shot, room - kept * shot - 5):  # "rain" is one token
            facts = prompter(tok, summary(shots)).text(question("rain" + " rain" * (n - 1), (), "summarization")).facts
            assert (facts.shots_dropped, facts.cut_tokens) == (3 - kept, 0)
    check(tok, question("A wet day. " * 9_000, (), "summarization"), "middle", 0.7, summary(shots), shots=3)


@pytest.mark.parametrize("times", [3_000, 30_000])
def test_only_the_passage_is_cut_where_there_is_one(tok, times):
    options = "{% for c in choices %}{{ c.label }}. {{ c.text }}\n{% endfor %}"
    template = Template(question="Passage: {{ context }}\n{{ text }}\n" + options + "Answer:")
    q = question("Who came?", ("Ann " * 20, "Bob"), context="They met. " * times)
    asked = prompter(tok, template, "head", letters=True).letters(q, (1, 0))
    assert tok.decode(asked.prompt).endswith(f"met. \nWho came?\nA. Bob\nB. {'Ann ' * 20}\nAnswer:")
    assert CONTEXT - 1 - SLACK <= len(asked.prompt) <= CONTEXT - 1
    assert asked.facts.cut_start == 0 < asked.facts.cut_end


@pytest.mark.parametrize("times", [1_200, 20_000])
def test_a_cut_that_is_forbidden_is_an_error(tok, times):
    q = question("A wet day. " * times, (), "summarization")
    over = len(tok(HEAD + q.text + TAIL)["input_ids"]) - (CONTEXT - ANSWER)
    with pytest.raises(TooLongError, match=rf"^the prompt is {over} tokens too long .*cut policy is forbid: set cut"):
        prompter(tok, summary(), "forbid").text(q)


def test_a_template_that_shows_a_part_of_a_long_text_is_not_cut_further(tok):
    template = Template(question="{{ text.split()[:512] | join(' ') }} ->")
    asked = prompter(tok, template).text(question("rain " * 20_000, (), "summarization"))
    assert asked.facts.cut_tokens == 0
    assert tok.decode(asked.ids) == "rain " * 512 + "->"


def test_a_long_text_is_tokenized_once(tok):
    class Counting:
        """The tokenizer, with the characters that it was given."""

        def __init__(self) -> None:
            self.characters = 0

        def __call__(self, texts, **options):
            self.characters += sum(map(len, [texts] if isinstance(texts, str) else texts))
            return tok(texts, **options)

    counting = Counting()
    q = question("A wet day in the hills. " * 3_000, (), "summarization")
    asked = prompter(counting, summary(), "middle").text(q)
    kept = len(tok.decode(asked.ids))
    assert counting.characters < len(q.text) + 4 * kept  # the whole once, then what is kept in up to 3 rounds


def test_a_long_text_is_cut_in_a_fraction_of_a_second(tok):
    q = question("A wet day in the hills. " * 3_000, (), "summarization")
    p = prompter(tok, summary(), "middle")
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        p.text(q)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5  # about 0.04 on an idle core


# --- the span itself

pieces = st.sampled_from(["a", " the", "日本", "語", "👩‍🚀", "𠮷", "\n", " é", "e\u0301", "x" * 30, " ", "\u3000", "0"])


@given(st.lists(pieces, min_size=2, max_size=60).map("".join), st.floats(0, 1), st.data())
@settings(max_examples=300)
def test_a_span_of_any_text_leaves_two_slices_of_it(tok, text, centre, data):
    offsets = spans(tok, text)
    if len(offsets) < 2:
        return
    dropped = data.draw(st.integers(1, len(offsets) - 1))
    start, end = cut_span(offsets, dropped, centre)
    assert 0 <= start <= end <= len(text)
    # Tokens that lie wholly on either side are kept: at least all but the dropped ones and a character's neighbours.
    before, after = sum(e <= start for _, e in offsets), sum(s >= end for s, _ in offsets)
    assert before + after >= len(offsets) - dropped
    gone = [i for i, (s, e) in enumerate(offsets) if start <= s and e <= end and e > s]
    assert len(gone) <= dropped
    assert gone == list(range(gone[0], gone[-1] + 1)) if gone else True
    if centre == 0 and start == end == 0:
        assert offsets[dropped][0] == 0  # all of the dropped tokens are bytes of the first character, which stays
