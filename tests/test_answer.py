"""The loop from question to decision, over the scripted engine."""

import asyncio

import numpy as np
import pytest

from ensemble.answer import Asker, answer, request_seed
from ensemble.config import Cloze, Letter, Member, ModelConfig, Sampling, Source, TaskPlan, Template
from ensemble.errors import EngineError
from ensemble.fake import FakeEngine, pseudo_logprob
from ensemble.prompts import Prompter
from ensemble.records import Sample, Score
from ensemble.tokens import load_tokenizer
from ensemble.votes import Voter
from tests.conftest import cyclic, question

TEMPLATE = Template(
    question="{{ text }}{% for c in choices %} {{ c.label }}={{ c.text }}{% endfor %}", answer="{{ answer }}"
)


def asker(folder, member, engine, template=TEMPLATE):
    model = ModelConfig(source=Source(path=str(folder)), context_length=500)
    return Asker(member, Prompter(member, model, template, load_tokenizer(folder, False)), engine, seed=0)


def run(q, members, folder, evidence=None, engine=None):
    engine = engine or FakeEngine()
    kept = []
    decision = asyncio.run(
        answer(
            q,
            Voter(TaskPlan(members=tuple(members)), [f"m{i}" for i in range(len(members))], 0.0),
            [asker(folder, m, engine) for m in members],
            evidence or [None] * len(members),
            lambda member, _, value: kept.append((member, value)),
        )
    )
    return decision, kept, engine


def test_cyclic_letters_average_what_the_engine_says_of_each_order(word_tokenizer):
    q = question("Who", ("x", "y", "z"))
    member = Member(model="m", template="t", scoring=Letter(method="letter", orders="cyclic"))
    decision, kept, _ = run(q, [member], word_tokenizer)
    tokenizer = load_tokenizer(word_tokenizer, False)
    rows = []
    for order in cyclic(3):
        prompt = "Who" + "".join(f" {'ABC'[p]}={'xyz'[i]}" for p, i in enumerate(order))
        ids = tokenizer(prompt)["input_ids"]
        by_letter = np.array([pseudo_logprob(ids, tokenizer(letter)["input_ids"]) for letter in "ABC"])
        normal = by_letter - np.log(np.exp(by_letter).sum())
        rows.append([normal[order.index(i)] for i in range(3)])
    mean = np.mean(rows, axis=0)
    expected = mean - np.log(np.exp(mean).sum())
    assert decision.scores == pytest.approx(tuple(expected), abs=1e-6)
    ((_, score),) = kept
    assert isinstance(score, Score)
    assert score.orders == cyclic(3)


def test_what_is_known_is_not_asked_again(word_tokenizer):
    q = question("Who", ("x", "y", "z"))
    identity_only = Member(model="m", template="t", scoring=Letter(method="letter"))
    _, ((_, known),), _ = run(q, [identity_only], word_tokenizer)
    cyclic_member = Member(model="m", template="t", scoring=Letter(method="letter", orders="cyclic"))
    decision, kept, _ = run(q, [cyclic_member], word_tokenizer, evidence=[known])
    assert [score.orders for _, score in kept] == [cyclic(3)[1:]]
    again, _, engine = run(q, [cyclic_member], word_tokenizer)
    assert again == decision
    assert engine.calls == 1  # all orders of a question in one call


def test_pmi_keeps_the_scores_and_adds_the_bare_options(word_tokenizer):
    q = question("Who", ("x", "y"))
    plain = Member(model="m", template="t", scoring=Cloze(method="cloze", normalisation="sum"))
    _, ((_, known),), _ = run(q, [plain], word_tokenizer)
    pmi = Member(model="m", template="t", scoring=Cloze(method="cloze", normalisation="pmi"))
    decision, kept, _ = run(q, [pmi], word_tokenizer, evidence=[known])
    ((_, extra),) = kept
    assert extra.orders == ()
    difference = known.logprobs[0].astype(float) - extra.unconditional
    assert decision.scores[0] - decision.scores[1] == pytest.approx(difference[0] - difference[1], abs=1e-6)


def test_generated_text_is_kept_with_its_prompt(word_tokenizer):
    member = Member(model="m", template="t", sampling=Sampling(max_tokens=5))
    decision, ((_, sample),), _ = run(question("Who", (), "math"), [member], word_tokenizer)
    assert decision.prediction == "7"
    assert isinstance(sample, Sample)
    assert (sample.prompt.tokens, sample.prompt.cut_tokens, sample.index) == (3, 0, 0)


def test_what_one_member_said_is_kept_when_another_fails(word_tokenizer):
    q = question("Who", ("x", "y"))
    good = Member(model="m", template="t", scoring=Letter(method="letter"))
    kept = []
    askers = [asker(word_tokenizer, good, FakeEngine()), asker(word_tokenizer, good, FakeEngine(poison=0))]
    tokenizer = load_tokenizer(word_tokenizer, False)
    askers[1] = asker(word_tokenizer, good, FakeEngine(poison=tokenizer("W")["input_ids"][0]))
    voter = Voter(TaskPlan(members=(good, good)), ["a", "b"], 0.0)
    with pytest.raises(EngineError):
        asyncio.run(answer(q, voter, askers, [None, None], lambda member, *_: kept.append(member)))
    assert kept == [0]


def test_a_questions_seed_depends_on_the_question_and_the_run_alone():
    a, b = question("one"), question("two")
    assert request_seed(1, a) == request_seed(1, question("one", row_index=9))
    assert len({request_seed(1, a), request_seed(2, a), request_seed(1, b)}) == 3
    assert 0 <= request_seed(2**40, a) < 2**31
