"""report.html: one self-contained page that opens offline."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ensemble.files import replacing
from ensemble.outputs import Written
from ensemble.plan import Plan
from ensemble.read import InputSummary
from ensemble.records import RowError

SHOWN_ERRORS = 100


def write(
    path: Path, plan: Plan, read: InputSummary, written: Written, facts: Mapping[str, Any], errors: Sequence[RowError]
) -> None:
    """Every text that comes from outside is escaped by the template engine."""
    page = resources.files("ensemble").joinpath("report.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(page)
    html = template.render(
        read=read,
        written=written,
        facts=facts,
        tasks=plan.tasks,
        errors=errors[:SHOWN_ERRORS],
        n_errors=len(errors),
    )
    with replacing(path) as f:
        f.write(html)
