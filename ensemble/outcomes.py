"""What each variant of an ablation does with the questions, from what was said about them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from ensemble.board import Outcome
from ensemble.config import Cloze, Letter, Member, is_adaptive
from ensemble.evidence import Evidence
from ensemble.finest import Key, asked_as, load
from ensemble.grading import grade
from ensemble.grid import AblationConfig, Expanded, Variant
from ensemble.orders import count_orders
from ensemble.records import Decision, Question, Sample
from ensemble.render import LETTERS, labels
from ensemble.revote import Revoter, StoredPriors
from ensemble.rouge import Words
from ensemble.votes import Voter

Known = tuple[Question, Sequence[Evidence]]


def outcomes(
    known: Sequence[Known],
    variants: Sequence[Variant],
    members: Mapping[Key, Member],
    config: AblationConfig,
    expanded: Expanded,
    metric: str,
    priors: StoredPriors,
) -> list[Outcome]:
    """known: one task's questions, with gold, and what each of the members said, in their order."""
    revoter: Revoter | None = None
    found = []
    for variant in variants:
        if all(isinstance(member.scoring, Letter | Cloze) for member in variant.plan.members):
            if revoter is None:
                revoter = Revoter(load(known, members, config.seed), config, expanded, priors)
            found.append(_scored(known, variant, revoter))
        else:
            found.append(_generated(known, variant, list(members), config, expanded, metric))
    return found


def _scored(known: Sequence[Known], variant: Variant, revoter: Revoter) -> Outcome:
    voted = revoter.vote(variant.plan)
    gold = np.array([question.gold for question, _ in known])
    adaptive = sum(map(is_adaptive, variant.plan.members))
    alone = adaptive == len(variant.plan.members)  # else their orders are not the only cost
    reference = variant.plan.adaptive.reference
    options = Counter(len(question.choices) for question, _ in known) if adaptive else Counter[int]()
    return Outcome(
        predictions=voted.choice,
        grades=(voted.choice == gold).astype(np.float64),
        prompts=voted.prompts,
        tokens=voted.tokens,
        confidence=voted.share,
        flips=voted.flip,
        circular=voted.circular,
        certificate=voted.certificate,
        expected=round(float(voted.doubt.mean()), 6) if adaptive else None,
        reference_orders=sum(adaptive * count_orders(reference, n) * k for n, k in options.items()) if alone else None,
    )


def _generated(
    known: Sequence[Known],
    variant: Variant,
    keys: Sequence[Key],
    config: AblationConfig,
    expanded: Expanded,
    metric: str,
) -> Outcome:
    members = variant.plan.members
    places = [keys.index(asked_as(member, config, expanded)) for member in members]
    shown = labels(expanded.templates[members[0].template]) if members[0].template else LETTERS
    voter = Voter(variant.plan, [variant.name] * len(members), config.near_tie, shown, config.seed)
    decisions, prompts, tokens = [], [], []
    for question, said in known:
        mine = [said[place] for place in places]
        decision = voter.best(question, mine)
        assert decision is not None
        texts = [
            sample
            for member, given in zip(members, mine, strict=True)
            for sample in cast(tuple[Sample, ...], given)[: member.sampling.samples]
        ]
        decisions.append(decision)
        prompts.append(len(texts))
        tokens.append(sum(sample.prompt.tokens + sample.tokens for sample in texts))
    words = variant.plan.rouge_words
    grades = [
        _grade(question, decision, metric, words) for (question, _), decision in zip(known, decisions, strict=True)
    ]
    return Outcome(_predictions(decisions, known), np.array(grades), np.array(prompts), np.array(tokens))


def _predictions(decisions: Sequence[Decision], known: Sequence[Known]) -> "np.ndarray | list[str]":
    if known[0][0].task == "multiple_choice":
        return np.array([-1 if d.prediction is None else int(d.prediction) for d in decisions])
    return [str(d.answer_text or d.prediction or "") for d in decisions]


def _grade(question: Question, decision: Decision, metric: str, words: Words) -> float:
    found = grade(question.task, decision.prediction, question.gold, [metric], words)
    assert found is not None
    return found[metric]
