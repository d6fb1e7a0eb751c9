"""The endpoint's HTTP: who may ask, what may be asked, and the routes."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ensemble.errors import QuorumError, by_name
from ensemble.records import Question
from serve import challenge, completions
from serve.bridge import Head
from serve.description import COMPLETION, REFUSALS, SOLVE, request_body
from serve.desk import Desk
from serve.gateway import Gateway
from serve.metrics import exposition
from serve.recognise import Recognised, recognise
from serve.refusals import Busy, Refusal
from serve.requests import BadRow, checked, parse, questions_of, read_body

LOG = logging.getLogger("ray.serve")
PAGE = Path(__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
NDJSON = "application/x-ndjson"


def create_api(desk: Callable[[], Desk]) -> FastAPI:
    """desk: what answers, known once the process is up."""
    api = FastAPI(title="Quorum", description="An ensemble of models behind one endpoint.", version="1")
    api.include_router(_routes(desk))
    for kind in (Refusal, HTTPException, RequestValidationError, QuorumError):
        api.add_exception_handler(kind, _answer_error)
    api.add_middleware(Counted, desk=desk)
    return api


async def _answer_error(_: Request, error: Exception) -> Response:
    return _refusal(error).response()


def _refusal(error: Exception) -> Refusal:
    """What is told of an error: never a stack trace."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        allowed = (error.headers or {}).get("Allow")
        return Refusal(error.status_code, f"{error.detail}: use {allowed}" if allowed else str(error.detail))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return Refusal(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    if isinstance(error, QuorumError):
        return Refusal(400, str(error)) if isinstance(error, ValueError) else Busy(503, str(error))
    return Refusal(500, "something failed here; the server's log says what")


class Counted:
    """Counts responses and adds the headers that all of them have."""

    def __init__(self, app: ASGIApp, desk: Callable[[], Desk]) -> None:
        self._app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, begun = time.perf_counter(), False

        async def told(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(HEADERS)
                self._desk().metrics.answered(scope.get("route"), message["status"], time.perf_counter() - started)
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception as e:
            if begun:
                raise
            LOG.exception("a request failed")
            await _refusal(e).response()(scope, receive, told)


def _routes(desk: Callable[[], Desk]) -> APIRouter:
    routes = APIRouter()

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"Content-Security-Policy": POLICY})

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @routes.get("/readyz", responses={503: {"description": "an engine is not there"}})
    async def readyz() -> Response:
        """Whether every model has an engine."""
        lacking = await desk().lacking()
        return JSONResponse(
            {"status": "waiting" if lacking else "ready", "waiting_for": lacking}, 503 if lacking else 200
        )

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> PlainTextResponse:
        """Prometheus: of every gateway and of every engine."""
        desk().enter(request)
        asked = [model.vitals() for model in desk().gateway.served.values()]
        counts, said = await asyncio.gather(desk().counted(), asyncio.gather(*asked))
        text = exposition(counts, [vitals for of_model in said for vitals in of_model])
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @routes.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        desk().enter(request)
        gateway = desk().gateway
        data = [
            {"id": name, "object": "model", "created": gateway.started, "owned_by": "quorum"} for name in gateway.names
        ]
        return {"object": "list", "data": data}

    @routes.post("/v1/solve", openapi_extra=request_body(SOLVE), responses=REFUSALS)
    async def solve(request: Request) -> Response:
        """One question, or several; answers with scores, votes, orders used, members and grade."""
        caller, body = await _read(desk(), request)
        data = parse(body)
        desk().whole(data.get("model"))
        asked, several = questions_of(data, desk().limits)
        streamed = bool(data.get("stream")) or NDJSON in request.headers.get("accept", "")
        work = desk().flow(caller, len(asked), _solved(desk().gateway, asked))
        if streamed:
            first = await anext(work)  # what is refused as a whole is refused before the response begins
            return Closing(_lines(first, work), media_type=NDJSON)
        results: list[Any] = [None] * len(asked)
        async for i, row in work:
            results[i] = row
        return JSONResponse({"results": results} if several else results[0])

    async def completion(request: Request) -> Response:
        caller, body = await _read(desk(), request)
        path = completions.CHAT if "chat" in request.url.path else "/v1/completions"
        return await _completion(desk(), caller, path, body, parse(body))

    for path in ("/v1/completions", completions.CHAT):
        routes.post(path, openapi_extra=request_body(COMPLETION), responses=REFUSALS, name=path)(completion)

    @routes.post("/process", responses=REFUSALS, openapi_extra=request_body(challenge.Process))
    @routes.post("/models/{model}/process", responses=REFUSALS, openapi_extra=request_body(challenge.Process))
    async def process(request: Request, model: str = "") -> challenge.Processed:
        """The LLM Efficiency Challenge's."""
        caller, body = await _read(desk(), request)
        return await _process(desk(), caller, checked(challenge.Process, parse(body)), desk().named(model))

    @routes.post("/tokenize", responses=REFUSALS, openapi_extra=request_body(challenge.Tokenize))
    @routes.post("/models/{model}/tokenize", responses=REFUSALS, openapi_extra=request_body(challenge.Tokenize))
    async def tokenize(request: Request, model: str = "") -> Response:
        """With `text` the challenge's, with `prompt` or `messages` vLLM's."""
        caller, body = await _read(desk(), request)
        data = parse(body)
        member = desk().member(model or data.get("model"))
        if "text" not in data:
            return await _passed(desk(), caller, member, "POST", "/tokenize", _for_member(data, member), 1)
        started, asked = time.perf_counter(), checked(challenge.Tokenize, data)
        tokenizer = desk().gateway.tokenizer(member)
        ids = await desk().within(caller, 1, asyncio.to_thread(lambda: list(tokenizer(asked.text)["input_ids"])))
        shown = ids[: asked.max_length] if asked.truncation else ids
        return JSONResponse(challenge.Tokenized(tokens=shown, request_time=time.perf_counter() - started).model_dump())

    @routes.post("/detokenize", responses=REFUSALS, openapi_extra=request_body(COMPLETION))
    async def detokenize(request: Request) -> Response:
        """vLLM's."""
        caller, body = await _read(desk(), request)
        data = parse(body)
        member = desk().member(data.get("model"))
        return await _passed(desk(), caller, member, "POST", "/detokenize", _for_member(data, member), 1)

    @routes.get("/tokenizer_info", responses=REFUSALS)
    async def tokenizer_info(request: Request, model: str = "") -> Response:
        """vLLM's."""
        caller = desk().enter(request)
        return await _passed(desk(), caller, desk().member(model), "GET", "/tokenizer_info", b"", 1)

    @routes.post("/decode", responses=REFUSALS, openapi_extra=request_body(challenge.Decode))
    @routes.post("/models/{model}/decode", responses=REFUSALS, openapi_extra=request_body(challenge.Decode))
    async def decode(request: Request, model: str = "") -> challenge.Decoded:
        """The challenge's."""
        caller, body = await _read(desk(), request)
        started, asked = time.perf_counter(), checked(challenge.Decode, parse(body))
        tokenizer = desk().gateway.tokenizer(desk().member(model))
        if asked.tokens and max(asked.tokens) >= len(tokenizer):
            raise Refusal(400, f"tokens: {max(asked.tokens)} is not in the vocabulary of {len(tokenizer)}")
        text = await desk().within(caller, 1, asyncio.to_thread(lambda: str(tokenizer.decode(asked.tokens))))
        return challenge.Decoded(text=text, request_time=time.perf_counter() - started)

    return routes


async def _read(desk: Desk, request: Request) -> tuple[str, bytes]:
    """The caller, who is known before anything is read, and the body. Where nothing more gets in, it is not read."""
    caller = desk.enter(request)
    desk.admission.check(caller)
    return caller, await read_body(request, desk.limits)


async def _solved(gateway: Gateway, asked: list[Question | BadRow]) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
    """Results as they come, with their places; a question that fails says so in its own."""

    async def one(i: int, question: Question | BadRow) -> tuple[int, dict[str, Any]]:
        if isinstance(question, BadRow):
            return i, _unanswered(question.id, question.message)
        if not gateway.answers(question.task):
            return i, _unanswered(
                question.id, f"{question.task}: this ensemble answers {', '.join(gateway.plan.tasks)}"
            )
        try:
            return i, await gateway.solve(question)
        except Busy as e:
            if len(asked) == 1:
                raise
            return i, _unanswered(question.id, e.message, "EngineError")

    tasks = [asyncio.create_task(one(i, question)) for i, question in enumerate(asked)]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()


def _unanswered(id: int | str, message: str, kind: str = "InputError") -> dict[str, Any]:
    return {"id": id, "prediction": None, "error": {"type": kind, "message": message}}


class Closing(StreamingResponse):
    """Closes what it streams when it ends, also where its client has left: left to itself, a generator goes on until
    it is collected."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]  # it is one of ours


async def _lines(first: Any, rest: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        try:
            yield json.dumps(first[1], ensure_ascii=False).encode() + b"\n"
            async for _, row in rest:
                yield json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except (Refusal, QuorumError) as e:  # the response has begun: its end says why there is no more
            yield json.dumps(_refusal(e).body()).encode() + b"\n"


async def _completion(desk: Desk, caller: str, path: str, body: bytes, data: dict[str, Any]) -> Response:
    name = desk.named(data.get("model"))
    size = completions.size_of(path, data, desk.limits.prompts, desk.limits.max_tokens)
    if name == desk.gateway.name:
        completions.check_ensemble(data)
        prompt = completions.prompt_of(path, data)
        found = recognise(prompt) if prompt and size == 1 else None
        if found is not None:
            row = await _vote(desk, caller, found)
            text = found.reply(row["prediction"])
            if data.get("stream"):
                return StreamingResponse(completions.stream(path, name, text), media_type="text/event-stream")
            return JSONResponse(completions.reply(path, name, text, row["prompt_tokens"]))
    member = desk.member(name)
    if member != data.get("model"):
        body = _for_member(data, member)
    if not data.get("stream"):
        return await _passed(desk, caller, member, "POST", path, body, size)
    coming = desk.flow(caller, size, desk.gateway.served[member].stream("POST", path, body))
    head = await anext(coming)
    assert isinstance(head, Head)
    return Closing(_events(coming), head.status, media_type=head.content_type)


def _for_member(data: dict[str, Any], member: str) -> bytes:
    return json.dumps(data | {"model": member}, ensure_ascii=False).encode()


async def _events(coming: AsyncGenerator[Head | bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(coming):
        try:
            async for piece in coming:
                assert isinstance(piece, bytes)
                yield piece
        except (Refusal, QuorumError) as e:
            yield b"data: " + json.dumps(_refusal(e).body()).encode() + b"\n\n"


async def _passed(desk: Desk, caller: str, member: str, method: str, path: str, body: bytes, size: int) -> Response:
    head, content = await desk.within(caller, size, desk.gateway.served[member].respond(method, path, body))
    return Response(content, head.status, media_type=head.content_type)


async def _process(desk: Desk, caller: str, asked: challenge.Process, name: str) -> challenge.Processed:
    started = time.perf_counter()
    if name == desk.gateway.name and (found := recognise(asked.prompt)) is not None:
        row = await _vote(desk, caller, found)
        text = found.reply(row["prediction"])
        text = asked.prompt + text if asked.echo_prompt else text
        return challenge.voted(text, row["scores"], list(found.labels), time.perf_counter() - started)
    member = desk.member(name)
    data = challenge.completion_of(asked, member)
    completions.size_of("/v1/completions", data, desk.limits.prompts, desk.limits.max_tokens)
    work = desk.gateway.served[member].respond("POST", "/v1/completions", _for_member(data, member))
    head, content = await desk.within(caller, 1, work)
    if head.status != 200:
        raise Refusal(head.status, challenge.reason(content))
    return challenge.processed(json.loads(content), time.perf_counter() - started)


async def _vote(desk: Desk, caller: str, found: Recognised) -> dict[str, Any]:
    """The vote's result for a recognised question. Raises Refusal."""
    data = {"task": "multiple_choice", "text": found.text, "context": found.context, "choices": list(found.choices)}
    (question,), _ = questions_of(data | {"group": found.group}, desk.limits)
    assert isinstance(question, Question)
    if not desk.gateway.answers(question.task):
        raise Refusal(400, "this ensemble answers no multiple-choice questions")
    row = await desk.within(caller, 1, desk.gateway.solve(question))
    if row["error"]:
        error = row["error"]
        if issubclass(by_name(error["type"]), ValueError):
            raise Refusal(400, f"{error['type']}: {error['message']}")
        raise Busy(503, f"{error['type']}: {error['message']}")
    return row
