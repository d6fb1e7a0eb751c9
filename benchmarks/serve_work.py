"""What benchmarks/serve_load.py asks an endpoint, and how replies are checked.

No two requests are alike, and each reply is held against its own request.
"""

import argparse
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
from million import WORDS

LIST = 4  # questions
ECHOED = 20  # of so many completions one comes with its prompt
MADE = 256  # rows, which marks make unique
AROUND = 24  # tokens of a made prompt besides its passage


class Wrong(Exception):
    """kind: what is counted; text: what the reply was like."""

    def __init__(self, kind: str, text: object = "") -> None:
        self.kind, self.text = kind, str(text)[:300]


class Crossed(Wrong):
    """The reply is another request's."""


class Ask(NamedTuple):
    """One request, and what its reply is checked against: questions of solve, by id, or the prompt that is echoed."""

    body: dict[str, Any]
    questions: dict[str, dict[str, Any]]
    prompt: str | None


class Reply(NamedTuple):
    amount: int  # questions or tokens
    first: float | None


class Work:
    """The requests of a run, by their number, and the check of replies. mark: what no other run has."""

    def __init__(self, options: argparse.Namespace, model: str, mark: str) -> None:
        self.options, self.model, self.mark = options, model, mark
        lines = options.input.read_bytes().splitlines() if options.input else []
        self.rows = [json.loads(line) for line in lines if line.strip()] or _made_rows(options.prompt_tokens)
        self.seen: set[str] = set()  # ids of replies

    def ask(self, n: int) -> Ask:
        return self._solve(n) if self.options.work == "solve" else self._openai(n)

    async def read(self, ask: Ask, response: aiohttp.ClientResponse) -> Reply:
        return await (_read_results(ask, response) if ask.questions else self._read_openai(ask, response))

    def _row(self, n: int) -> tuple[str, dict[str, Any]]:
        return f"{self.mark}-{n}", self.rows[n % len(self.rows)]

    def _solve(self, n: int) -> Ask:
        many, stream = self.options.stream or n % 4 > 1, self.options.stream or n % 4 == 3
        questions = [_marked(*self._row(LIST * n + i)) for i in range(LIST if many else 1)]
        body = {"questions": questions, "stream": stream} if many else questions[0]
        return Ask(body, {question["id"]: question for question in questions}, None)

    def _openai(self, n: int) -> Ask:
        tag, row = self._row(n)
        prompt = f"{tag}: " + "\n".join(row[key] for key in ("context", "text") if row.get(key))
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.options.max_tokens, "temperature": 0}
        if self.options.ignore_eos:
            body["ignore_eos"] = True
        if self.options.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.options.work == "chat":
            return Ask(body | {"messages": [{"role": "user", "content": prompt}]}, {}, None)
        if n % ECHOED or self.model.startswith("ensemble:"):  # an ensemble echoes nothing
            return Ask(body | {"prompt": prompt}, {}, None)
        return Ask(body | {"prompt": prompt, "echo": True}, {}, prompt)

    async def _read_openai(self, ask: Ask, response: aiohttp.ClientResponse) -> Reply:
        texts: list[str] = []
        ids: set[str] = set()
        first: float | None = None
        tokens: int | None = None
        chat, part = self.options.work == "chat", "delta" if self.options.stream else "message"
        async for event in _events(response) if self.options.stream else _whole(response):
            if "error" in event:
                raise Wrong("error in a reply", event)
            ids.add(event["id"])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                texts.append((choice[part].get("content") if chat else choice["text"]) or "")
                if texts[-1] and self.options.stream:
                    first = first or time.perf_counter()
        if not texts or not all(ids):
            raise Wrong("no id or no choices", f"{len(texts)} choices, ids {ids}")
        if len(ids) > 1 or not ids.isdisjoint(self.seen):
            raise Crossed("ids of other replies", f"{ids}, of which one before had {ids & self.seen}")
        self.seen |= ids
        if ask.prompt is not None and not (text := "".join(texts)).startswith(ask.prompt):
            kind = Wrong if text.startswith(ask.prompt.partition(":")[0] + ":") else Crossed
            raise kind("echo differs", f"{text[:80]!r} for {ask.prompt[:80]!r}")
        most = self.options.max_tokens
        if tokens is None or not (tokens == most if self.options.ignore_eos else 0 <= tokens <= most):
            raise Wrong("completion_tokens", f"{tokens} of {most}")
        return Reply(tokens, first)


def _made_rows(tokens: int) -> list[dict[str, Any]]:
    """Passages of random words, each of which is a token."""
    draw = random.Random(64)
    rows: list[dict[str, Any]] = []
    for _ in range(MADE):
        row = {"task": "multiple_choice", "text": "Which of these stands in the passage?"}
        row["context"] = " ".join(draw.choices(WORDS, k=max(1, tokens - AROUND)))
        rows.append(row | {"choices": [" ".join(draw.sample(WORDS, 2)) for _ in range(4)]})
    return rows


def _marked(tag: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row as a question of its own: its tag is the id, stands first in what a model reads, and in each option."""
    place = "context" if row.get("context") else "text"
    question = row | {"id": tag, place: f"{tag}: {row[place]}"}
    if choices := row.get("choices"):
        texts = [choice["text"] if isinstance(choice, dict) else choice for choice in choices]
        question |= {"choices": [f"{text} {tag}" for text in texts], "answer": None}
    return question


async def _read_results(ask: Ask, response: aiohttp.ClientResponse) -> Reply:
    results: list[dict[str, Any]] = []
    first: float | None = None
    if ask.body.get("stream"):
        async for line in _lines(response):
            first = first or time.perf_counter()
            results.append(json.loads(line))
    else:
        async for data in _whole(response):
            results += data["results"] if "questions" in ask.body else [data]
    for result in results:
        if result.get("error"):
            raise Wrong("error of a question", result["error"])
        question = ask.questions.get(result["id"])
        if question is None or (question.get("choices") and result["answer_text"] not in question["choices"]):
            raise Crossed("another's result", f"{result['id']} {result['answer_text']!r} for {list(ask.questions)}")
    ids = [result["id"] for result in results]
    if sorted(ids) != sorted(ask.questions):
        raise Wrong("results missing or twice", f"{ids} for {list(ask.questions)}")
    if first is None and ids != list(ask.questions):
        raise Wrong("results out of order", f"{ids} for {list(ask.questions)}")
    return Reply(len(results), first)


async def _whole(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    yield json.loads(await response.read())


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Those with anything on them."""
    rest = b""
    async for data in response.content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        for line in filter(bytes.strip, whole):
            yield line
    if rest.strip():
        yield rest


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Of a stream in OpenAI's form, which tells its end; what is no event keeps a connection alive."""
    done = False
    async for line in _lines(response):
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            done = True
        elif line.startswith(b"data:"):
            yield json.loads(data)
    if not done:
        raise Wrong("stream without [DONE]")
