"""How many option orders a task's votes took, and what the adaptive ones promise."""

from typing import Any

from ensemble.config import is_adaptive
from ensemble.orders import count_orders
from ensemble.plan import Plan
from ensemble.records import Decision, Question, Task


class VoteBook:
    """Adds up over a task's questions what their decisions took; constant memory."""

    def __init__(self, plan: Plan, task: Task) -> None:
        self._plan, self._task = plan, task
        members = plan.config.tasks[task].members
        self._adaptive = sum(map(is_adaptive, members))
        self._reference = plan.config.tasks[task].adaptive.reference
        self._questions = self._orders = self._others = self._all = self._exact = 0
        self._doubt = 0.0
        self._fixed = len(members) - self._adaptive

    def add(self, question: Question, decision: Decision) -> None:
        self._questions += 1
        self._orders += decision.orders_used
        if self._adaptive and decision.doubt is not None:
            self._all += self._adaptive * count_orders(self._reference, len(question.choices))
            self._doubt += decision.doubt
            self._exact += decision.doubt == 0

    def summary(self) -> dict[str, Any]:
        """orders: asked for (member, order) pairs. Of adaptive votes also reference_orders: what all of them would have
        been; exact: questions that no further order could change; expected_disagreement: mean estimated probability
        that all orders choose another option; certificate: see `ensemble.adaptive.Certificate`."""
        found: dict[str, Any] = {"questions": self._questions, "orders": self._orders}
        calibration = self._plan.calibrations.get(self._task)
        if calibration is None or calibration.certificate is None or not self._all:
            return found
        return found | {
            "reference": self._reference,
            "reference_orders": self._all,
            "share": round(self._orders / self._all, 4) if not self._fixed else None,
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
    each = votes["orders"] / votes["questions"]
    return (
        f"{task}: {votes['orders']:,} orders asked, {each:.1f} a question, where {votes['reference']} is "
        f"{votes['reference_orders']:,}; {votes['exact']:,} questions are certain, of the rest the estimate expects "
        f"{votes['expected_disagreement']:.2%} of all decisions to differ from those of all orders; {votes['promise']}"
    )
