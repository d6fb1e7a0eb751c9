"""What pydantic found wrong with a config, one line for each cause: the key, what is wrong, and what would be right."""

from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from ensemble.config import Record
from ensemble.names import unknown


def problems(error: ValidationError, kind: type[Record]) -> list[str]:
    """kind: of the record that was to be made. A bad member also empties its list: only the innermost of nested errors
    tells the cause."""
    errors = error.errors()
    return [_explain(x, kind) for x in errors if not any(_inside(y["loc"], x["loc"]) for y in errors)]


def _inside(inner: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _explain(error: Any, kind: type[Record]) -> str:
    place, kinds = _walk(error["loc"], kind)
    if error["type"] == "extra_forbidden":
        *outer, key = place
        return f"{'.'.join(outer) or 'top level'}: {unknown('key', key, (n for k in kinds for n in k.model_fields))}"
    where = ".".join(place) or "top level"
    if error["type"] == "missing":
        return f"{where}: missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict | list) else f" (given: {error['input']!r})"
    return f"{where}: {message}{given}"


def _walk(loc: Sequence[int | str], kind: type[Record]) -> tuple[list[str], list[type[Record]]]:
    """The place without the names that unions give their parts; and the records that may stand around its last key."""
    place, kinds, of_mapping = [], [kind], False
    for part in map(str, loc):
        found = [] if of_mapping else [k.model_fields[part].annotation for k in kinds if part in k.model_fields]
        tagged = [] if of_mapping or found else [k for k in kinds if part in _tags(k)]
        if not tagged:
            place.append(part)
        if found or tagged:
            kinds = tagged or [record for annotation in found for record in _records(annotation)]
        of_mapping = any(get_origin(annotation) is dict for annotation in found)
    return place, kinds


def _records(annotation: Any) -> Iterable[type[Record]]:
    """Of all records that the annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return [annotation]
    return [record for inner in get_args(annotation) for record in _records(inner)]


def _tags(kind: type[Record]) -> tuple[Any, ...]:
    """By which a union of records knows this one: `method` of a scoring."""
    return get_args(kind.model_fields["method"].annotation) if "method" in kind.model_fields else ()
