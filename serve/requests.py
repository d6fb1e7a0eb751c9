"""Bodies of requests, within their limits, as checked records."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from ensemble.errors import InputError
from ensemble.names import meant, unknown
from ensemble.questions import parse_question
from ensemble.records import Question
from serve.description import QUESTION, QUESTIONS
from serve.refusals import Refusal
from serve.settings import Limits

FIELDS = QUESTION["properties"].keys()
FIELDS_OF_LIST = QUESTIONS["properties"].keys()
MOST_FIELDS = 20  # of a row that somebody may have typed; what another program has written is not searched for slips
SURE = 0.85  # of two names' letters that are the same: a field of the caller's own may be a little like one of ours

Checked = TypeVar("Checked", bound=BaseModel)


async def read_body(request: Request, limits: Limits) -> bytes:
    """Raises Refusal where it is too large, or does not come."""
    too_large = Refusal(413, f"the body is larger than {limits.body_bytes:,} bytes: send less at a time")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > limits.body_bytes:
        raise too_large
    pieces, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > limits.body_bytes:
                    raise too_large
                pieces.append(piece)
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {limits.body_seconds:g} s") from None
    except ClientDisconnect:
        raise Refusal(400, "the connection was closed before the body had arrived") from None
    return b"".join(pieces)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object. Raises Refusal."""
    try:
        found = json.loads(body, parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode()  # half of a character in two escapes is no text
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    except UnicodeError:
        raise Refusal(400, "the body is not UTF-8, or has half a character in an escape such as \\ud800") from None
    except ValueError as e:
        raise Refusal(400, f"the body is not JSON: {str(e)[:200]}") from None
    if not isinstance(found, dict):
        raise Refusal(400, f"the body must be a JSON object, this is {type(found).__name__}")
    return found


def checked(kind: type[Checked], data: Mapping[str, Any]) -> Checked:
    """Raises Refusal that names the first field that is wrong."""
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise Refusal(400, f"{place}: {first['msg']}") from None


class BadRow(Refusal):
    """A row of a list that is no question; id: its own, or else its number."""

    def __init__(self, id: int | str, message: str) -> None:
        super().__init__(400, message)
        self.id = id


def questions_of(data: Mapping[str, Any], limits: Limits) -> tuple[list[Question | BadRow], bool]:
    """The questions of a /v1/solve request, each one or why it is none; and whether it was a list of them.

    An id may be left out: then it is the question's number. So may the task: with choices it is multiple_choice, else
    generation. Raises Refusal where the request as a whole is wrong, or its only question.
    """
    several = "questions" in data
    if not isinstance(data.get("stream"), bool | None):
        raise Refusal(400, "stream must be true or false")
    if not several:
        found = _question(data, 0, limits)
        if isinstance(found, BadRow):
            raise found
        return [found], False
    for field in data.keys() - FIELDS_OF_LIST:
        raise Refusal(400, unknown("field", field[:40], FIELDS_OF_LIST))
    rows = data["questions"]
    if not isinstance(rows, list) or not rows:
        raise Refusal(400, "questions must be a list with at least one question")
    if (most := limits.questions) < len(rows):
        raise Refusal(400, f"{len(rows)} questions in one request, at most {most} are answered: send them in several")
    return _distinct([_question(row, i, limits) for i, row in enumerate(rows)]), True


def _distinct(rows: list[Question | BadRow]) -> list[Question | BadRow]:
    """An id that is there again names no row: who reads a stream could not tell the results apart."""
    first: dict[int | str, int] = {}
    return [
        BadRow(row.id, f"id {row.id!r} is there already in questions[{place}]; give every question its own")
        if isinstance(row, Question) and (place := first.setdefault(row.id, i)) != i
        else row
        for i, row in enumerate(rows)
    ]


def _question(row: object, index: int, limits: Limits) -> Question | BadRow:
    id: int | str = index
    if isinstance(row, dict):
        if isinstance(row.get("id"), int | str):
            id = row["id"]
        given = {key: value for key, value in row.items() if value is not None}
        tasks = given.keys() & {"task", "task_type"}
        if not tasks:
            given["task"] = "multiple_choice" if "choices" in given else "generation"
        row = {"id": index} | given
    try:
        _spelt(row)
        question = parse_question(row, index, "request", index + 1)
    except InputError as e:
        return BadRow(id, str(e))
    size = len(question.text) + len(question.context or "") + sum(map(len, question.choices))
    if size > limits.characters:
        return BadRow(id, f"the question has {size:,} characters, at most {limits.characters:,} are read: cut it")
    return question


def _spelt(row: object) -> None:
    """Raises InputError for a field that is not ours but almost: fields of others are ignored, and this one would be
    missed in silence."""
    if not isinstance(row, dict) or len(row) > MOST_FIELDS:
        return
    absent = FIELDS - row.keys()
    for field in row.keys() - FIELDS:
        if name := meant(field[:40], absent, SURE):
            raise InputError(f"unknown field {field[:40]!r}; did you mean {name!r}?")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
