"""One question: from a row of the input to a checked `Question`, and to an Arrow table and back.

A row has `id`, `task` (or `task_type`), `text`, and may have `context`, `choices`, `answer` (or `summary`) and
`group`. Other fields are ignored, and null stands for "not there" in every field.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeGuard

from ensemble.errors import InputError
from ensemble.names import unknown
from ensemble.records import TASKS, ChoiceId, Gold, Question, Task

MAX_CHOICES = 26  # one letter each
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Columns of a table of questions and their Arrow types. `id`, `choice_ids` and `gold` are JSON texts: an Arrow
# column has one type, and 1 and "1" are different ids.
SCHEMA = {
    "row_index": "int64",
    "file": "string",
    "line": "int64",
    "id": "string",
    "task": "string",
    "text": "string",
    "context": "string",
    "choices": "list",
    "choice_ids": "string",
    "gold": "string",
    "group": "string",
    "hash": "binary",
}

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def parse_question(row: object, row_index: int, file: str, line: int) -> Question:
    """The checked question of a parsed row; InputError (one line: what is wrong, and the cure) where it is none."""
    if not isinstance(row, dict):
        raise InputError(f'a row must be an object {{"id": ..., "task": ..., "text": ...}}, this is {_show(row)}')
    question_id = _id(row.get("id"))
    task = _task(row)
    text = _string(row.get("text"), "text", "a string that holds the question")
    if not text.strip():
        raise InputError("text is blank; write the question there, or remove the row")
    context = row.get("context")
    if context is not None:
        context = _string(context, "context", "a string, or leave it out")
    choices, choice_ids = _choices(row.get("choices")) if task == "multiple_choice" else ((), None)
    return Question(
        row_index=row_index,
        file=file,
        line=line,
        id=question_id,
        task=task,
        text=text,
        context=context,
        choices=choices,
        choice_ids=choice_ids,
        gold=_gold(row, task, choices, choice_ids),
        group=_group(row.get("group")),
        hash=content_hash(task, text, context, choices),
    )


def readable_id(row: object) -> int | str | None:
    """The id of a row that may be bad, for its error record; None where there is no valid one."""
    try:
        return _id(row.get("id")) if isinstance(row, dict) else None
    except InputError:
        return None


def content_hash(task: str, text: str, context: str | None, choices: Sequence[str]) -> bytes:
    """16 bytes over what a model could be shown. Stores are keyed by it: a change here makes them all stale."""
    return hashlib.blake2b(_to_json([task, text, context, *choices]).encode(), digest_size=16).digest()


def to_table(questions: Sequence[Question]) -> Any:
    """A pyarrow.Table with the columns of SCHEMA, one row per question; `from_table` gives equal questions back."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: list(map(attrgetter(name), questions)) for name in SCHEMA}
    columns["id"] = [_to_json(x) for x in columns["id"]]
    for name in ("choice_ids", "gold"):
        columns[name] = [None if x is None else _to_json(x) for x in columns[name]]
    types = {"int64": pa.int64(), "string": pa.string(), "list": pa.list_(pa.string()), "binary": pa.binary()}
    return pa.table(columns, schema=pa.schema([(name, types[kind]) for name, kind in SCHEMA.items()]))


def from_table(table: Any) -> list[Question]:
    """The questions of a table that `to_table` made."""
    columns = {name: table.column(name).to_pylist() for name in SCHEMA}
    columns["id"] = [json.loads(x) for x in columns["id"]]
    columns["choices"] = [tuple(x) for x in columns["choices"]]
    for name in ("choice_ids", "gold"):
        columns[name] = [None if x is None else _tuples(json.loads(x)) for x in columns[name]]
    return [Question(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _id(value: object) -> int | str:
    if value is None:
        raise InputError("id is missing; give every row a unique id, a string or a whole number")
    if not _is_int_or_str(value):
        raise InputError(f"id is {_show(value)}; write a string or a whole number")
    if isinstance(value, str) and not _string(value, "id").strip():
        raise InputError("id is empty; give every row a unique id, a string or a whole number")
    return value


def _task(row: dict[str, object]) -> Task:
    name = row.get("task")
    if name is None:
        name = row.get("task_type")
    if name is None:
        raise InputError(f"task is missing; available: {', '.join(sorted(TASKS))}")
    for task in TASKS:
        if task == name:
            return task
    raise InputError(unknown("task", name[:40], TASKS) if isinstance(name, str) else _wrong("task", name, "a string"))


def _choices(value: object) -> tuple[tuple[str, ...], tuple[ChoiceId, ...] | None]:
    """The option texts, and their choice_ids where the options are objects."""
    if value is None:
        raise InputError("choices is missing; a multiple_choice row needs a list of 2 to 26 options")
    if not isinstance(value, list):
        raise InputError(_wrong("choices", value, "a list of strings or of {choice_id, text}"))
    if not 2 <= len(value) <= MAX_CHOICES:
        count = f"{len(value)} option" + "s" * (len(value) != 1)
        raise InputError(f"choices has {count}; a question needs 2 to {MAX_CHOICES}, one letter each")
    if not any(isinstance(option, dict) for option in value):
        return tuple(_option(option, i) for i, option in enumerate(value)), None
    ids: list[ChoiceId] = []
    for i, option in enumerate(value):
        if not isinstance(option, dict):
            raise InputError(f"choices[{i}] is {_show(option)} among objects; write all as strings or all as objects")
        choice_id = option.get("choice_id")
        if not _is_int_or_str(choice_id):
            raise InputError(_wrong(f"choices[{i}].choice_id", choice_id, "a string or a whole number"))
        if isinstance(choice_id, str):
            _string(choice_id, f"choices[{i}].choice_id")
        if choice_id in ids:
            raise InputError(f"choice_id {_show(choice_id)} is there twice; give every option its own")
        ids.append(choice_id)
    return tuple(_option(option.get("text"), i) for i, option in enumerate(value)), tuple(ids)


def _option(value: object, index: int) -> str:
    text = _string(value, f"the text of choices[{index}]")
    if not text.strip():
        raise InputError(f"choices[{index}] is blank; write its text or remove the option")
    return text


def _gold(
    row: dict[str, object], task: Task, choices: tuple[str, ...], choice_ids: tuple[ChoiceId, ...] | None
) -> Gold | None:
    value = row.get("answer")
    if task == "multiple_choice":
        if value is None:
            return None
        return _gold_index(value, choices) if choice_ids is None else _gold_choice(value, choice_ids)
    if value is None:
        value = row.get("summary")
    if value is None:
        return None
    references = value if isinstance(value, list) else [value]
    if not references:
        raise InputError("answer is an empty list; write at least one reference, or null where there is none")
    return tuple(_reference(reference) for reference in references)


def _gold_index(value: object, choices: tuple[str, ...]) -> int:
    """The index that an index or a letter names."""
    last = len(choices) - 1
    if isinstance(value, str) and len(value) == 1 and value.isascii() and value.isalpha():
        index = LETTERS.index(value.upper())
        if index > last:
            raise InputError(
                f"answer {value!r} is out of range: the {last + 1} choices have letters A to {LETTERS[last]}"
            )
        return index
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= last:
            raise InputError(f"answer {value} is out of range: the {last + 1} choices have indices 0 to {last}")
        return value
    hint = f", here {choices.index(value)}" if isinstance(value, str) and value in choices else ""
    raise InputError(
        _wrong("answer", value, f"the option's index (0 to {last}){hint} or letter (A to {LETTERS[last]})")
    )


def _gold_choice(value: object, choice_ids: tuple[ChoiceId, ...]) -> int:
    """The index of the option that a choice_id names."""
    if _is_int_or_str(value):
        if value in choice_ids:
            return choice_ids.index(value)
        names = [str(choice_id) for choice_id in choice_ids]
        if str(value) in names:
            return names.index(str(value))
    known = ", ".join(_show(choice_id) for choice_id in choice_ids)
    raise InputError(_wrong("answer", value, f"one of the choice_ids: {known}"))


def _reference(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError("answer is a number too large to hold; write it as a string")
        return str(value)
    text = _string(value, "answer", "a string, a number or a list of those, or null where there is no gold")
    if not text.strip():
        raise InputError("answer is blank; write null or leave it out where there is no gold")
    return text


def _group(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value is None else _string(value, "group", "a string or a whole number, or leave it out")


def _string(value: object, field: str, cure: str = "a string") -> str:
    if not isinstance(value, str):
        raise InputError(_wrong(field, value, cure))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{field} has half of a surrogate pair at character {error.start + 1}, which is no text; "
                "write the whole character (a \\ud83d needs its \\ude00), or remove it"
            ) from None
    return value


def _is_int_or_str(value: object) -> TypeGuard[int | str]:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _wrong(field: str, value: object, cure: str) -> str:
    return f"{field} is {'missing' if value is None else _show(value)}; write {cure}"


def _show(value: object) -> str:
    """A value of JSON in a few words: rows may hold megabytes."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."
    return json.dumps(value)[:40] if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"
