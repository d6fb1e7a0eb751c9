"""Replayed variants, vectorised over questions, decide as the voter does one question at a time."""

import itertools

import numpy as np
import pytest

from ensemble.calibrate import calibrate
from ensemble.calibration import Population, draw, rank
from ensemble.config import Adaptive, Cloze, Letter, Member, ModelConfig, Source, TaskPlan, Template
from ensemble.finest import asked_as, finest, load
from ensemble.grid import AblationConfig, Expanded, Grid, Variant
from ensemble.orders import make_orders
from ensemble.records import PromptFacts, Score
from ensemble.revote import Revoter
from ensemble.votes import Voter
from tests.conftest import question

SEED = 3
ASK = Template(question="{{ text }}")
MODEL = ModelConfig(source=Source(path="nowhere"), context_length=64)
CONFIG = AblationConfig(
    grids=(Grid(model=("a",), template=("t",)),),
    seed=SEED,
    models={"a": MODEL, "b": MODEL},
    templates={"t": ASK, "u": Template(question="{{ text }}?")},
)


def letter(model="a", weight=1.0, template="t", **scoring):
    return Member(model=model, template=template, scoring=Letter(method="letter", **scoring), weight=weight)


def cloze(model="a", weight=1.0, **scoring):
    return Member(model=model, template="u", scoring=Cloze(method="cloze", **scoring), weight=weight)


PLANS = [
    TaskPlan(members=(letter(),)),
    TaskPlan(members=(letter(orders="cyclic"),)),
    *(TaskPlan(members=(letter(orders="full", temperature=0.5),), combine=how) for how in ("mean_prob", "majority")),
    *(
        TaskPlan(members=(letter(orders=orders, debias="pride", prior_share=0.2),), combine=how)
        for orders, how in itertools.product(("identity", "sampled:3", "latin:2"), ("mean_logprob", "majority"))
    ),
    *(TaskPlan(members=(cloze(normalisation=name),)) for name in ("sum", "token", "char", "pmi")),
    TaskPlan(
        members=(letter(orders="cyclic", weight=2.0), cloze(), letter("b", 0.5, orders="latin:3", debias="pride"))
    ),
    TaskPlan(members=(letter(debias="pride"), letter("b", debias="pride", prior_share=0.5)), combine="mean_prob"),
    *(
        TaskPlan(members=(letter(orders="adaptive"),), combine=how, adaptive=Adaptive(**adaptive))
        for how, adaptive in itertools.product(
            ("mean_prob", "majority"),
            ({}, {"max_disagreement": 0.05}, {"max_disagreement": 0.1, "confidence": 0.9}, {"budget": 4.0}),
        )
    ),
    TaskPlan(
        members=(letter(orders="adaptive"), letter("b", 2.0, orders="adaptive", temperature=2.0), cloze(weight=0.3)),
        combine="mean_prob",
        adaptive=Adaptive(max_disagreement=0.05),
    ),
]


@pytest.fixture(scope="module")
def answered():
    """500 questions with 2 to 5 options and what both models say, strongly biased towards the first labels."""
    rng = np.random.default_rng(0)
    known = []
    expanded = Expanded(
        [Variant(f"v{i}", "multiple_choice", f"v{i}", {}, p) for i, p in enumerate(PLANS)], CONFIG.templates
    )
    members = finest(CONFIG, expanded)["multiple_choice"]
    for i in range(500):
        n = int(rng.choice([2, 3, 4, 4, 4, 5]))
        q = question(f"Question {i}", tuple(f"option {k}" * int(rng.integers(1, 4)) for k in range(n)), gold=0)
        merit = rng.normal(0, 1.5, n)
        said = []
        for member in members.values():
            orders = (
                make_orders(member.scoring.orders, n, SEED)
                if isinstance(member.scoring, Letter)
                else make_orders("identity", n, 0)
            )
            shown = np.argsort(np.array(orders), axis=1)
            logits = merit + np.linspace(1, 0, n)[shown] + rng.normal(0, 0.6, (len(orders), n))
            logprobs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
            shuffled = rng.permutation(len(orders))  # the store has them in the order in which they were sent
            said.append(
                Score(
                    tuple(orders[k] for k in shuffled), logprobs[shuffled], rng.integers(1, 5, n).astype(np.int32),
                    rng.normal(-3, 1, n).astype(np.float32), PromptFacts(tokens=10),
                )
            )  # fmt: skip
        known.append((q, said))
        if i % 7 == 0:  # some questions are there three times
            known += [(q, said)] * 2
    return known, members, expanded


@pytest.mark.parametrize("plan", PLANS, ids=range(len(PLANS)))
def test_replay_decides_as_the_voter(answered, plan):
    known, members, expanded = answered
    found = Revoter(load(known, members, SEED), CONFIG, expanded, {}).vote(plan)

    places = [list(members).index(asked_as(member, CONFIG, expanded)) for member in plan.members]
    mine = [(q, [said[place] for place in places]) for q, said in known]
    ranks = {}
    for q, _ in known:
        ranks.setdefault(len(q.choices), []).append(rank(q, SEED))
    population = Population(ranks)
    drawn = draw(plan, population)
    voter = Voter(plan, [str(i) for i in range(len(places))], 0.1, seed=SEED, drawn=drawn)
    sample = [(q, said) for q, said in mine if voter.in_sample(q)]
    calibration = calibrate(plan, voter, drawn, population, sample, {}, SEED)
    voter = voter.with_calibration(calibration)
    assert found.certificate == calibration.certificate
    for row, (q, said) in enumerate(mine):
        decision = voter.next(q, said)
        assert decision.prediction == found.choice[row]
        assert decision.confidence == pytest.approx(found.share[row])
        assert (decision.doubt or 0.0) == pytest.approx(found.doubt[row])
        assert decision.flip_rate == (pytest.approx(found.flip[row]) if not np.isnan(found.flip[row]) else None)
        assert decision.circular == (found.circular[row] if found.circular[row] != -2 else None)
        sent = sum(
            len(q.choices) * (1 + (m.scoring.normalisation == "pmi"))
            for m in plan.members
            if isinstance(m.scoring, Cloze)
        )
        letters = decision.orders_used - sum(isinstance(m.scoring, Cloze) for m in plan.members)
        assert found.prompts[row] == sent + letters
