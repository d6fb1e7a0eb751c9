"""Worked examples: rows of a question file, the same for every question or those of the question's own group."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ensemble.config import ROOT, Shots, Template, fingerprint
from ensemble.errors import ConfigError, UnaskableError
from ensemble.records import Question

T = TypeVar("T")


class Shot(NamedTuple):
    question: Question
    answer: str  # as it is shown, before the template's `answer`


def read_shots(shots: Shots, names: Sequence[str] | None) -> dict[str | None, list[Shot]]:
    """The first `n` rows under the key None, or by_group the first `n` of each group that has any.

    names: what options are called in an answer; None: their texts. Raises ConfigError.
    """
    return {group: [_shot(row, line, shots, names) for line, row in rows] for group, rows in _shown(shots).items()}


def of_group(table: Mapping[str | None, Sequence[T]], shots: Shots, group: str | None) -> Sequence[T]:
    """What `table`, with the keys of `read_shots`, has for a question of `group`. Raises ConfigError."""
    key = group if shots.by_group else None
    found = table.get(key, ())
    if len(found) < shots.n:
        of = f" of group {key!r}" if shots.by_group else ""
        kind = UnaskableError if shots.by_group else ConfigError
        raise kind(f"{shots.file}: {len(found)} rows{of} for {shots.n} shots; lower shots.n or add rows")
    return found


def shots_fingerprint(template: Template) -> str:
    """Digest of the rows that are shown, "" where there are none. Raises ConfigError."""
    if template.shots is None:
        return ""
    rows = {group: [row for _, row in rows] for group, rows in _shown(template.shots).items()}
    return fingerprint(list(rows.items()) if template.shots.by_group else of_group(rows, template.shots, None))


def _shown(shots: Shots) -> dict[str | None, list[tuple[int, dict[str, Any]]]]:
    """Line numbers and rows of the file that some question may see, by group."""
    table: dict[str | None, list[tuple[int, dict[str, Any]]]] = {} if shots.by_group else {None: []}
    for line, row in _rows(shots):
        group = None
        if shots.by_group and row.get("group") is not None:
            group = str(row["group"])
        found = table.setdefault(group, [])
        if len(found) < shots.n:
            found.append((line, row))
    return table


def _shot(row: dict[str, Any], line: int, shots: Shots, names: Sequence[str] | None) -> Shot:
    from ensemble.questions import parse_question

    try:
        question = parse_question(row, 0, shots.file, line)
    except ValueError as e:
        raise ConfigError(f"{shots.file}, line {line}: {e}") from None
    if question.gold is None:
        raise ConfigError(f"{shots.file}, line {line}: a shot needs a gold answer; add answer, or solution and answer")
    if not isinstance(question.gold, int):
        answer = question.gold[0]
    elif names is None:
        answer = question.choices[question.gold]
    elif len(question.choices) > len(names):
        raise ConfigError(
            f"{shots.file}, line {line}: {len(question.choices)} options, and the template has only {len(names)} labels"
            f" ({', '.join(names)}); add labels, or leave the row out"
        )
    else:
        answer = names[question.gold]
    return Shot(question, str(row.get("solution", answer)))


def _rows(shots: Shots) -> list[tuple[int, dict[str, Any]]]:
    path = next((p for p in (Path(shots.file), ROOT / shots.file) if p.is_file()), None)
    if path is None:
        raise ConfigError(f"shots.file: no such file: {shots.file}; give it from the working directory or the project")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [(i, json.loads(line)) for i, line in enumerate(lines, 1) if line.strip()]
    except ValueError as e:
        raise ConfigError(f"{path}: not JSON lines: {e}") from None
    if not all(isinstance(row, dict) for _, row in rows):
        raise ConfigError(f"{path}: every line is a question row in braces")
    return rows
