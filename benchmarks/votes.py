"""Votes over option orders on recorded scores: what each kind of order costs, and what it buys. Needs no model.

python benchmarks/votes.py STORE INPUT [--key KEY] [--out FOLDER]

STORE holds one member's letter scores in all orders of the questions in INPUT (`orders: full`). Each plan is replayed
as solve would run it: the voter asks, and what it asks for comes out of the store, so that the sample which calibrates
PriDe or adaptive voting is counted like any other order. With --out the whole curve of cost against disagreement and
accuracy is printed too, and drawn in FOLDER/votes_NAME.svg, NAME being the store's.
"""

import argparse
import io
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ensemble.adaptive import Certificate
from ensemble.calibrate import calibrate
from ensemble.calibration import Population, draw, needs_sample, rank
from ensemble.compare import intervals
from ensemble.config import Adaptive, Letter, Member, TaskPlan
from ensemble.consistency import Consistency
from ensemble.evidence import Evidence, merge_scores, pick_orders
from ensemble.figures import ACCENT, COLOURS, INK, LINE, MUTED, WARM
from ensemble.read import Selection, iter_blocks, read_questions
from ensemble.records import Decision, Question, Score
from ensemble.store import StoreReader, open_store
from ensemble.votes import Voter

SEED, NEAR_TIE = 0, 0.1
CERTIFIED = (0.001, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)  # max_disagreement
BUDGETS = (2, 3, 4, 6, 8, 12, 16)  # orders a question, without a guarantee
LIGHT = {"ink": "#1a1c1f", "muted": "#5c636b", "line": "#dfe3e8", "accent": "#2160c4", "warm": "#b3491a"}
DARK = {"ink": "#e8eaed", "muted": "#a3abb5", "line": "#363b42", "accent": "#82b1ff", "warm": "#ff9e64"}


class Setting(NamedTuple):
    """A plan with its name. certify: False plays an input that is too small to certify anything."""

    name: str
    plan: TaskPlan
    certify: bool = True


class Played(NamedTuple):
    """What a setting decided: per question its decision and the orders that it was asked in."""

    setting: Setting
    decisions: list[Decision]
    orders: np.ndarray
    certificate: Certificate | None

    @property
    def predictions(self) -> np.ndarray:
        return np.array([decision.prediction for decision in self.decisions])


def letters(name: str, orders: str, debias: str = "none", certify: bool = True, **adaptive: Any) -> Setting:
    scoring = Letter(method="letter", orders=orders, debias=debias)  # type: ignore[arg-type]
    member = Member(model="recorded", template="letters", scoring=scoring)
    return Setting(name, TaskPlan(members=(member,), combine="mean_prob", adaptive=Adaptive(**adaptive)), certify)


FULL = letters("full", "full")
TABLE = (
    letters("identity", "identity"),
    letters("cyclic", "cyclic"),
    letters("PriDe 5%", "identity", "pride"),
    letters("latin:2", "latin:2"),
    FULL,
    letters("adaptive 1%", "adaptive"),
)
CURVE = (
    *TABLE[:4],
    *(letters(f"latin:{k}", f"latin:{k}") for k in (3, 4, 5)),
    *(letters(f"sampled:{k}", f"sampled:{k}") for k in (2, 4, 8, 12, 16)),
    FULL,
    *(letters(f"adaptive {share:.3g}%", "adaptive", max_disagreement=share / 100)
      for share in (100 * value for value in CERTIFIED)),
    *(letters(f"no guarantee, budget {budget}", "adaptive", certify=False, budget=budget) for budget in BUDGETS),
    letters("no guarantee, no budget", "adaptive", certify=False),
)  # fmt: skip


def play(setting: Setting, questions: Sequence[Question], stored: Sequence[Score]) -> Played:
    """Runs a plan over the questions as solve does, with the store in the place of the engine."""
    plan = setting.plan
    ranks: dict[int, list[int]] = {}
    for question in questions:
        ranks.setdefault(len(question.choices), []).append(rank(question, SEED))
    population = Population(ranks)
    drawn = draw(plan, population, setting.certify)
    voter = Voter(plan, ["recorded"], NEAR_TIE, seed=SEED, drawn=drawn)
    calibration = None
    if needs_sample(plan):
        sample = [(q, asked(voter, q, s)) for q, s in zip(questions, stored, strict=True) if voter.in_sample(q)]
        calibration = calibrate(plan, voter, drawn, population, sample, {}, SEED)
        voter = voter.with_calibration(calibration)
    decisions, orders = [], []
    for question, score in zip(questions, stored, strict=True):
        known = asked(voter, question, score)
        decision = voter.best(question, known)
        assert decision is not None
        assert isinstance(known[0], Score)
        decisions.append(decision)
        orders.append(len(known[0].orders))
    return Played(setting, decisions, np.array(orders), calibration.certificate if calibration else None)


def asked(voter: Voter, question: Question, stored: Score) -> list[Evidence]:
    """What is known of the question once the voter asks no more."""
    known: Score | None = None
    while asks := voter.missing(question, [known]):
        known = merge_scores(known, pick_orders(stored, asks[0].orders))
    return [known]


def recorded(store: str, spec: str, key: str | None) -> tuple[list[Question], list[Score]]:
    """The multiple-choice questions with gold, and what the store's member said about each in all orders."""
    root = open_store(store)
    keys = [key] if key else sorted(path.name for path in (root / "scores").glob("*"))
    if len(keys) != 1:
        sys.exit(f"store {store} has scores of {len(keys)} members ({', '.join(keys)}): name one with --key")
    with tempfile.TemporaryDirectory() as folder:
        summary = read_questions(spec, Path(folder), Selection(task="multiple_choice"), lambda error: None)
        read = [q for block in iter_blocks(summary.blocks) for q in block if q.gold is not None]
    scores = StoreReader(root, "scores", keys[0]).scores([q.hash for q in read])
    pairs = [(q, s) for q, s in zip(read, scores, strict=True) if s and len(s.orders) == math.factorial(len(q.choices))]
    if len(pairs) < len(read) or not pairs:
        sys.exit(f"store {store} has {len(pairs)} of {len(read)} questions in all orders: solve them with orders: full")
    return [q for q, _ in pairs], [s for _, s in pairs]


class Row(NamedTuple):
    """A setting's line. Shares in [0, 1]; bounds of 95%; None where it has no such number."""

    name: str
    accuracy: float
    low: float
    high: float
    rstd: float
    flip_rate: float | None
    circular: float | None
    ece: float
    orders: float
    share: float
    disagreement: float
    certificate: Certificate | None


def rows(questions: Sequence[Question], played: Sequence[Played]) -> Iterator[Row]:
    gold = np.array([q.gold for q in questions])
    clusters = np.unique([q.hash.hex() for q in questions], return_inverse=True)[1]
    accuracy = intervals(np.stack([p.predictions == gold for p in played], 1).astype(np.float64), clusters, SEED)
    full = next(p for p in played if p.setting.name == FULL.name)
    for i, one in enumerate(played):
        steady = Consistency()
        for answer, decision in zip(gold.tolist(), one.decisions, strict=True):
            choice = int(decision.prediction)  # type: ignore[arg-type]
            steady.add(answer, choice, decision.confidence, decision.flip_rate, decision.circular)
        means = {name: found["mean"] for name, found in steady.summary(SEED).items()}
        yield Row(
            one.setting.name,
            float(accuracy.mean[i]), float(accuracy.low[i]), float(accuracy.high[i]),
            means["rstd"], means.get("flip_rate"), means.get("circular_accuracy"), means["ece"],
            float(one.orders.mean()), float(one.orders.sum() / full.orders.sum()),
            float((one.predictions != full.predictions).mean()), one.certificate,
        )  # fmt: skip


def print_table(found: Sequence[Row]) -> None:
    head = ("orders", "accuracy (95%)", "RStd", "flip rate", "CircularEval", "ECE", "orders a question", "of full")
    _print((*head, "other than full"), (
        (r.name, f"{r.accuracy:.1%} ({r.low:.1%} to {r.high:.1%})", f"{100 * r.rstd:.2f}", _percent(r.flip_rate),
         _percent(r.circular), f"{r.ece:.3f}", f"{r.orders:.2f}", f"{r.share:.1%}", f"{r.disagreement:.2%}")
        for r in found
    ))  # fmt: skip
    for r in found:
        if r.certificate is not None:
            print(f"\n{r.name}: {r.certificate.sentence()}")


def print_curve(found: Sequence[Row]) -> None:
    _print(("orders", "orders a question", "of full", "other than full", "accuracy", "sample", "promised"), (
        (r.name, f"{r.orders:.2f}", f"{r.share:.1%}", f"{r.disagreement:.2%}", f"{r.accuracy:.1%}",
         f"{r.certificate.fit + r.certificate.test:,}" if r.certificate else "",
         "" if r.certificate is None or not r.certificate.guarantee else f"{r.certificate.max_disagreement:.1%}")
        for r in sorted(found, key=lambda r: r.orders)
    ))  # fmt: skip


def _print(head: Sequence[str], lines: Any) -> None:
    print("|", " | ".join(head), "|\n|", " | ".join(["---"] * len(head)), "|")
    for line in lines:
        print("|", " | ".join(line), "|")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def draw_curve(found: Sequence[Row], path: Path) -> None:
    """Disagreement and accuracy over orders a question, an SVG whose colours follow light and dark."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 12}
    buffer = io.StringIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        figure = Figure(figsize=(10, 8.6), facecolor="none")
        upper, lower = figure.subplots(2, 1, sharex=True)
        _panel(upper, found, [100 * r.disagreement for r in found], "decisions other than full, %", LABELLED)
        _panel(lower, found, [100 * r.accuracy for r in found], "accuracy, %")
        lower.set_xlabel("orders a question, calibration counted", color=INK)
        upper.set_yscale("symlog", linthresh=1)  # what is promised lies under 1%, what one order does far above
        upper.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50], ["0", "0.5", "1", "2", "5", "10", "20", "50"])
        upper.set_ylim(-0.1, 1.3 * 100 * max(r.disagreement for r in found))
        upper.minorticks_off()
        figure.legend(*upper.get_legend_handles_labels(), loc="upper center", ncols=3, frameon=False, labelcolor=INK)
        figure.tight_layout(rect=(0, 0, 1, 0.93))
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for colour, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{colour})")
    light, dark = ("; ".join(f"--{k}: {v}" for k, v in theme.items()) for theme in (LIGHT, DARK))
    themes = f"<style>:root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("<defs>", f"{themes}\n<defs>", 1))


WHOLE = ("identity", "cyclic", "latin", "full")
SERIES: tuple[tuple[str, str, str, Callable[[Row], bool]], ...] = (
    ("identity, cyclic, latin:k, full", INK, "D-", lambda r: r.name.split(":")[0] in WHOLE),
    ("sampled:k", MUTED, "x:", lambda r: r.name.startswith("sampled")),
    ("PriDe 5%", INK, "^", lambda r: r.name.startswith("PriDe")),
    ("adaptive, no guarantee", WARM, "s--", lambda r: r.certificate is not None and not r.certificate.guarantee),
    ("adaptive, certified", ACCENT, "o-", lambda r: r.certificate is not None and r.certificate.guarantee),
)  # fmt: skip
LABELLED = ("adaptive 10%", "adaptive 5%", "adaptive 2%", "adaptive 1%", "adaptive 0.1%")


def _panel(axes: Any, found: Sequence[Row], values: Sequence[float], label: str, named: Sequence[str] = ()) -> None:
    axes.set_facecolor("none")
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 4, 8, 16, 24], ["1", "2", "4", "8", "16", "24"])
    axes.minorticks_off()
    axes.tick_params(length=0, colors=MUTED)
    axes.grid(color=LINE)
    axes.set_axisbelow(True)
    axes.set_ylabel(label, color=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    for kind, colour, look, belongs in SERIES:
        points = sorted((r.orders, value, r.name) for r, value in zip(found, values, strict=True) if belongs(r))
        axes.plot([p[0] for p in points], [p[1] for p in points], look, color=colour, label=kind, markersize=6)
        for x, y, name in points:
            if name in named:
                at = {"xytext": (-6, -6), "textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 10}
                axes.annotate(name.removeprefix("adaptive "), (x, y), color=colour, **at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="folder of the score store")
    parser.add_argument("input", help="the questions in Quorum's form: file, glob or folder")
    parser.add_argument("--key", help="the member, a folder under STORE/scores; left out: the only one")
    parser.add_argument("--out", type=Path, help="also print the curve, and draw it in this folder")
    options = parser.parse_args()
    questions, stored = recorded(options.store, options.input, options.key)
    print(f"{len(questions):,} questions of {options.store}\n")
    played = {setting.name: play(setting, questions, stored) for setting in TABLE}
    print_table(list(rows(questions, list(played.values()))))
    if options.out:
        for setting in CURVE:
            if setting.name not in played:
                played[setting.name] = play(setting, questions, stored)
        found = list(rows(questions, list(played.values())))
        print()
        print_curve(found)
        draw_curve(found, options.out / f"votes_{Path(options.store).name.removeprefix('store-')}.svg")


if __name__ == "__main__":
    main()
