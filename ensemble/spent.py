"""How many option orders a task's votes took, and what the adaptive ones promise."""

from typing import Any

from ensemble.config import Letter, is_adaptive
from ensemble.orders import count_orders
from ensemble.plan import Plan
from ensemble.records import Decision, Question, Task


class VoteBook:
    """Adds up over a task's questions what their decisions took; constant memory."""

    def __init__(self, plan: Plan, task: Task) -> None:
        self._plan, self._task = plan, task
        members = plan.config.tasks[task].members
        self._adaptive = sum(map(is_adaptive, members))
        self._fixed = [member for member in members if not is_adaptive(member)]
        self._reference = plan.config.tasks[task].adaptive.reference
        self._questions = self._unfinished = self._orders = self._asked = self._all = self._exact = 0
        self._doubt = 0.0

    def add(self, question: Question, decision: Decision) -> None:
        self._orders += decision.orders_used
        if self._adaptive and decision.doubt is None:
            self._unfinished += 1
        elif self._adaptive:
            self._questions += 1
            self._asked += decision.orders_used - self._fixed_orders(len(question.choices))
            self._all += self._adaptive * count_orders(self._reference, len(question.choices))
            self._doubt += decision.doubt or 0.0
            self._exact += decision.doubt == 0

    def _fixed_orders(self, n: int) -> int:
        """Of the members that do not vote adaptively."""
        return sum(count_orders(m.scoring.orders, n) if isinstance(m.scoring, Letter) else 1 for m in self._fixed)

    def summary(self) -> dict[str, Any]:
        """orders: (member, order) pairs that decided. Of adaptive votes, over the `questions` whose vote has ended:
        asked: their orders; reference_orders: what all of them would have been; exact: questions that no further order
        could change; expected_disagreement: mean estimated probability that all orders choose another option;
        unfinished: questions that a deadline kept from ending; certificate: see `ensemble.adaptive.Certificate`."""
        found: dict[str, Any] = {"orders": self._orders}
        calibration = self._plan.calibrations.get(self._task)
        if calibration is None or calibration.certificate is None or not self._questions:
            return found
        return found | {
            "questions": self._questions,
            "unfinished": self._unfinished,
            "asked": self._asked,
            "reference": self._reference,
            "reference_orders": self._all,
            "share": round(self._asked / self._all, 4),
            "exact": self._exact,
            "expected_disagreement": round(self._doubt / self._questions, 6),
            "certificate": calibration.certificate._asdict(),
            "gate": calibration.gate._asdict(),
            "promise": calibration.certificate.sentence(),
        }


def sentence(task: str, votes: dict[str, Any]) -> str | None:
    """For people, of adaptive votes: what they took and what they promise; None of others."""
    if "certificate" not in votes:
        return None
    unfinished = f", {votes['unfinished']:,} others were not finished" if votes["unfinished"] else ""
    return (
        f"{task}: {votes['asked']:,} orders for {votes['questions']:,} questions{unfinished}, "
        f"{votes['asked'] / votes['questions']:.1f} each, where {votes['reference']} is {votes['reference_orders']:,} "
        f"({votes['share']:.1%}); {votes['exact']:,} are certain, and {votes['expected_disagreement']:.2%} of all are "
        f"expected to differ; {votes['promise']}"
    )
