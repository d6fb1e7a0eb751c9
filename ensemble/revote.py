"""Many variants replayed from one set of stored scores, vectorised over questions.

What members say is loaded once (`ensemble.finest`); each variant then picks its orders and votes with numpy. The
numbers are those of `ensemble.votes.Voter`, which votes one question at a time.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ensemble.adaptive import EXACT, Certificate, Gate, walk
from ensemble.calibrate import certified, uncertified
from ensemble.calibration import LEAST, Population, draw, estimates_prior
from ensemble.combine import Combine, Floats, Ints, Mean, log_softmax, mean, vote_of
from ensemble.config import Cloze, Letter, Member, TaskPlan, fingerprint, is_adaptive
from ensemble.consistency import circular, flip_rate, vote_counts
from ensemble.finest import Key, Part, asked_as
from ensemble.grid import AblationConfig, Expanded
from ensemble.orders import make_orders
from ensemble.prior import by_option, estimate_prior
from ensemble.records import Order
from ensemble.tables import divisors, is_pmi, normalise
from ensemble.tracks import Said, Track, join

MEANS, TABLES = 5_000_000, 500_000  # questions in all that are remembered: about 400 MB each with four options
Chosen = npt.NDArray[np.bool_]
StoredPriors = Mapping[str, Mapping[int, Floats]]


class Voted(NamedTuple):
    """Of one variant, each [Q] in the order of the task's questions: choice, share (confidence), flip (flip rate, nan),
    circular (option of all cyclic orders, -1, or -2 where none were asked), prompts (sequences sent), tokens of
    them, and doubt (see `ensemble.adaptive.Walk`). certificate, gate: of adaptive votes."""

    choice: Ints
    share: Floats
    flip: Floats
    circular: Ints
    prompts: Ints
    tokens: Ints
    doubt: Floats
    certificate: Certificate | None
    gate: Gate | None


class Revoter:
    """Replays variants of one task; what several of them need is computed once."""

    def __init__(self, parts: Sequence[Part], config: AblationConfig, expanded: Expanded, stored: StoredPriors) -> None:
        """stored: file -> number of options -> prior, of members that name one."""
        self._parts, self._config, self._expanded, self._stored = parts, config, expanded, stored
        self._questions = sum(len(part.rows) for part in parts)
        self._population = Population({part.n: part.ranks for part in parts})
        self._means: dict[tuple[object, ...], tuple[Mean, Floats, Ints]] = {}
        self._tables: dict[tuple[object, ...], Floats] = {}

    def vote(self, plan: TaskPlan) -> Voted:
        drawn = draw(plan, self._population)
        keys = [asked_as(member, self._config, self._expanded) for member in plan.members]
        voted = _empty(self._questions)
        priors = [self._priors(part, plan, keys, drawn.prior, drawn.fit) for part in self._parts]
        certificate, gate = None, None
        if any(map(is_adaptive, plan.members)):
            tracks = [self._track(part, plan, keys, prior) for part, prior in zip(self._parts, priors, strict=True)]
            if drawn.test >= 0:
                pairs = list(zip(tracks, self._parts, strict=True))
                fit = [_cut(track, part.once & (part.ranks <= drawn.fit)) for track, part in pairs]
                test = [
                    _cut(track, part.once & (part.ranks > drawn.fit) & (part.ranks <= drawn.test))
                    for track, part in pairs
                ]
                fit, test = ([track for track in group if len(track.ballots)] for group in (fit, test))
                gate, certificate = certified(plan.adaptive, fit, test, self._population)
            else:
                gate, certificate = uncertified(plan.adaptive, len(self._population.distinct()))
            for part, prior, track in zip(self._parts, priors, tracks, strict=True):
                sampled = part.ranks <= drawn.test if drawn.test >= 0 else np.zeros(len(part.rows), dtype=bool)
                self._adaptively(part, plan, keys, prior, track, gate, sampled, voted)
        else:
            for i, (part, prior) in enumerate(zip(self._parts, priors, strict=True)):
                limits = {m: limit for (m, n), limit in drawn.prior.items() if n == part.n}
                self._plainly(i, part, plan, keys, prior, limits, voted)
        return voted._replace(certificate=certificate, gate=gate)

    def _plainly(
        self,
        number: int,
        part: Part,
        plan: TaskPlan,
        keys: Sequence[Key],
        priors: Mapping[int, Floats],
        limits: Mapping[int, int],
        voted: Voted,
    ) -> None:
        """Questions of the sample of a prior are asked in all cyclic orders too, hence a vote for each such group."""
        sampled = np.array([part.ranks <= limits.get(i, 0) if i in limits else np.zeros(len(part.rows), dtype=bool)
                            for i in range(len(keys))])  # fmt: skip
        for group in np.unique(sampled, axis=1).T:
            chosen = (sampled == group[:, None]).all(axis=0)
            found = [
                self._mean(number, part, i, member, keys[i], plan.combine, priors.get(i), bool(group[i]), chosen)
                for i, member in enumerate(plan.members)
            ]
            result = vote_of([m for m, _, _ in found], [m.weight for m in plan.members], plan.combine)
            rows = part.rows[chosen]
            voted.choice[rows], voted.share[rows] = result.choice, _pick(result.shares, result.choice)
            flips = np.array([flips for _, flips, _ in found])
            voted.flip[rows] = _mean_known(flips)
            voted.circular[rows] = _agreed([circle for _, _, circle in found])
            for i, member in enumerate(plan.members):
                orders = len(self._wanted(member, part.n, bool(group[i])))
                self._cost(part, keys[i], member, np.full(int(chosen.sum()), orders), chosen, voted)

    def _mean(
        self,
        number: int,
        part: Part,
        index: int,
        member: Member,
        key: Key,
        how: Combine,
        prior: Floats | None,
        sampled: bool,
        chosen: Chosen,
    ) -> tuple[Mean, Floats, Ints]:
        """The member's mean over its orders, flip rates and circular choices, for the chosen questions."""
        scoring = member.scoring
        what = (number, key, fingerprint(scoring), how, sampled, chosen.tobytes())
        if what not in self._means:
            if len(self._means) * self._questions > MEANS:
                self._means.clear()
            table = self._table(part, member, key, prior)
            orders = self._wanted(member, part.n, sampled)
            table = table[np.ix_(chosen.nonzero()[0], self._places(part, key, orders))]
            self._means[what] = mean(table, how), *_consistency(table, orders)
        return self._means[what]

    def _adaptively(
        self,
        part: Part,
        plan: TaskPlan,
        keys: Sequence[Key],
        priors: Mapping[int, Floats],
        track: Track,
        gate: Gate,
        sampled: Chosen,
        voted: Voted,
    ) -> None:
        gated = walk(track, gate)
        orders, choice, doubt = gated.orders, gated.choice, gated.doubt
        if sampled.any():
            exact = walk(_cut(track, sampled), EXACT)
            orders[sampled], choice[sampled], doubt[sampled] = exact.orders, exact.choice, exact.doubt
        voted.doubt[part.rows] = doubt
        for count in np.unique(orders).tolist():
            chosen = orders == count
            tables = []
            for i, member in enumerate(plan.members):
                adaptive = is_adaptive(member)
                wanted = self._wanted(member, part.n, False, plan)
                wanted = wanted[:count] if adaptive else wanted
                prior = priors.get(i) if (adaptive and count == 1) or not adaptive else None
                table = self._table(part, member, keys[i], prior)
                table = table[np.ix_(chosen.nonzero()[0], self._places(part, keys[i], wanted))]
                tables.append(mean(table, plan.combine))
                self._cost(part, keys[i], member, np.full(int(chosen.sum()), len(wanted)), chosen, voted)
            result = vote_of(tables, [m.weight for m in plan.members], plan.combine)
            rows = part.rows[chosen]
            early = count < track.ballots.shape[1]
            voted.choice[rows] = choice[chosen] if early else result.choice
            voted.share[rows] = _pick(result.shares, voted.choice[rows])
            voted.circular[rows] = -2  # orders were asked where the model wavered: that says nothing of the rest

    def _track(self, part: Part, plan: TaskPlan, keys: Sequence[Key], priors: Mapping[int, Floats]) -> Track:
        said = []
        for i, member in enumerate(plan.members):
            if is_adaptive(member):
                orders = self._wanted(member, part.n, False, plan)
                places = self._places(part, keys[i], orders)
                table = self._table(part, member, keys[i], None)[:, places]
                first = self._table(part, member, keys[i], priors.get(i))[:, places[0]]
                said.append(Said(table, member.weight, first))
            else:
                places = self._places(part, keys[i], self._wanted(member, part.n, False))
                said.append(Said(self._table(part, member, keys[i], priors.get(i))[:, places], member.weight))
        return join(said, plan.combine)

    def _table(self, part: Part, member: Member, key: Key, prior: Floats | None) -> Floats:
        """[Q, orders, n] of all stored orders."""
        scores = part.scores[key]
        what = (part.n, key, fingerprint(_numbers(member)), None if prior is None else prior.tobytes())
        if what not in self._tables:
            if len(self._tables) * self._questions > TABLES:
                self._tables.clear()
            self._tables[what] = normalise(
                member,
                scores.logprobs,
                divisors(member, scores.tokens, part.characters),
                scores.bare,
                None if prior is None else by_option(prior, scores.orders),
            )
        return self._tables[what]

    def _priors(
        self, part: Part, plan: TaskPlan, keys: Sequence[Key], limits: Mapping[tuple[int, int], int], fit: int
    ) -> dict[int, Floats]:
        """Per member that has one, the labels' prior of this number of options."""
        found = {}
        for i, member in enumerate(plan.members):
            if isinstance(member.scoring, Letter) and member.scoring.prior is not None:
                found[i] = self._stored[member.scoring.prior][part.n]
                continue
            limit = limits.get((i, part.n), -1) if estimates_prior(member) else fit if is_adaptive(member) else -1
            chosen = part.once & (part.ranks <= limit) if limit >= 0 else np.zeros(len(part.ranks), dtype=bool)
            if chosen.sum() >= (LEAST if is_adaptive(member) else 1):
                places = self._places(part, keys[i], make_orders("cyclic", part.n, 0))
                logprobs = part.scores[keys[i]].logprobs[np.ix_(chosen.nonzero()[0], places)]
                found[i] = estimate_prior(log_softmax(logprobs.astype(np.float64)))
        return found

    def _wanted(self, member: Member, n: int, sampled: bool, plan: TaskPlan | None = None) -> tuple[Order, ...]:
        if not isinstance(member.scoring, Letter):
            return make_orders("identity", n, 0)
        if is_adaptive(member):
            assert plan is not None
            return make_orders(plan.adaptive.reference, n, self._config.seed)
        orders = make_orders(member.scoring.orders, n, self._config.seed)
        return tuple(dict.fromkeys((*make_orders("cyclic", n, 0), *orders))) if sampled else orders

    def _places(self, part: Part, key: Key, orders: tuple[Order, ...]) -> Ints:
        had = {order: i for i, order in enumerate(part.scores[key].orders)}
        return np.array([had[order] for order in orders])

    def _cost(self, part: Part, key: Key, member: Member, orders: Ints, chosen: Chosen, voted: Voted) -> None:
        scores, rows = part.scores[key], part.rows[chosen]
        if isinstance(member.scoring, Cloze):
            sequences = np.full(len(rows), part.n * (1 + is_pmi(member)))
            tokens = scores.prompt[chosen] * part.n + scores.tokens[chosen].sum(axis=1)
        else:
            sequences, tokens = orders, scores.prompt[chosen] * orders
        if member.samples is None:
            voted.prompts[rows] += sequences
            voted.tokens[rows] += tokens


def _empty(questions: int) -> Voted:
    zeros = [np.zeros(questions, dtype=np.intp) for _ in range(4)]
    nothing = np.full(questions, np.nan)
    return Voted(zeros[0], np.zeros(questions), nothing, zeros[1], zeros[2], zeros[3], np.zeros(questions), None, None)


def _numbers(member: Member) -> dict[str, object]:
    """What of a member's scoring changes its table."""
    scoring = member.scoring
    if isinstance(scoring, Cloze):
        return {"normalisation": scoring.normalisation, "temperature": scoring.temperature}
    assert isinstance(scoring, Letter)
    return {"temperature": scoring.temperature}


def _consistency(table: Floats, orders: tuple[Order, ...]) -> tuple[Floats, Ints]:
    """[Q] flip rates, nan with one order, and circular choices, -2 where the cycle was not asked."""
    n = table.shape[2]
    choices = table.argmax(axis=2)
    rates = flip_rate(vote_counts(choices, n))
    asked = n > 1 and orders[:n] == make_orders("cyclic", n, 0)
    return rates, circular(choices[:, :n]).astype(np.intp) if asked else np.full(len(table), -2, dtype=np.intp)


def _pick(values: Floats, choice: Ints) -> Floats:
    return np.take_along_axis(values, choice[:, None], axis=1)[:, 0]


def _mean_known(rates: Floats) -> Floats:
    """[Q] mean over members of what is not nan."""
    known = ~np.isnan(rates)
    total = np.where(known, rates, 0.0).sum(axis=0)
    counts = known.sum(axis=0)
    result: Floats = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return result


def _agreed(circles: Sequence[Ints]) -> Ints:
    """[Q] the option of all members' cycles, -1 where they differ, -2 where nobody was asked a whole cycle."""
    asked = [circle for circle in circles if (circle != -2).all()]
    if not asked:
        return circles[0]
    same = np.array([circle == asked[0] for circle in asked]).all(axis=0)
    agreed: Ints = np.where(same, asked[0], -1)
    return agreed


def _cut(track: Track, chosen: Chosen) -> Track:
    means = track.means[chosen] if isinstance(track.means, np.ndarray) else track.means
    return Track(track.ballots[chosen], track.offset[chosen], track.first[chosen], means)
