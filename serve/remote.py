"""A served model as the gateway sees it: the engines behind a Serve handle, asked again where one dies."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from ensemble.config import Sampling
from ensemble.engine import Engine, GenerateReply, ScoreReply, ScoreRequest
from ensemble.errors import EngineError
from ensemble.vitals import Vitals
from serve.bridge import Head
from serve.refusals import Busy

DEAD = (RayActorError, AioRpcError)  # what is seen of a replica that dies, by Ray and by Serve's gRPC
RETRIES = 2  # of a call whose engine died
VITALS_SECONDS = 2.0
RESTART_SECONDS = 10.0  # after which a client may try again where engines are starting


class Model(Protocol):
    """What the gateway needs of a model."""

    def engine(self, session: str) -> Engine: ...

    async def respond(self, method: str, path: str, body: bytes) -> tuple[Head, bytes]: ...

    def stream(self, method: str, path: str, body: bytes) -> AsyncGenerator[Head | bytes]: ...

    async def vitals(self) -> list[Vitals]: ...


class Remote:
    """A model whose engines are replicas of a deployment."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def engine(self, session: str) -> Engine:
        """Everything of a session goes to one replica, in whose prefix cache it finds what it shares."""
        return _Session(self._handle.options(session_id=session))

    async def respond(self, method: str, path: str, body: bytes) -> tuple[Head, bytes]:
        return await _retried(lambda: self._handle.respond.remote(method, path, body))  # type: ignore[no-any-return]

    async def stream(self, method: str, path: str, body: bytes) -> AsyncGenerator[Head | bytes]:
        handle = self._handle.options(stream=True)
        began = False
        for attempt in range(RETRIES + 1):
            pieces = handle.stream.remote(method, path, body)
            try:
                async for piece in pieces:
                    began = True
                    yield piece
                return
            except DEAD as e:
                if began or attempt == RETRIES:
                    raise _restarting() from e
            except (RayTaskError, RayServeException) as e:
                raise _error(e) from None
            finally:
                pieces.cancel()

    async def vitals(self) -> list[Vitals]:
        """Of each engine that answers at once; not of one that is starting."""
        try:
            asked = self._handle.broadcast("vitals")
            found = await asked.results_async(timeout_s=VITALS_SECONDS, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError):  # none is there, or one hangs
            return []
        return [vitals for vitals in found if isinstance(vitals, Vitals)]


class _Session:
    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        return await _retried(lambda: self._handle.score.remote(requests))  # type: ignore[no-any-return]

    async def generate(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> GenerateReply:
        return await _retried(lambda: self._handle.generate.remote(prompt, sampling, seed))  # type: ignore[no-any-return]


async def _retried(call: Callable[[], Any]) -> Any:
    """call: sends, and gives Serve's response."""
    for attempt in range(RETRIES + 1):
        response = call()
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # the engine is to stop too
            raise
        except DEAD as e:
            if attempt == RETRIES:
                raise _restarting() from e
        except (RayTaskError, RayServeException) as e:
            raise _error(e) from None
    raise AssertionError("the last attempt returns or raises")


def _error(error: Exception) -> Exception:
    if isinstance(error, BackPressureError):
        return Busy(503, "the engines have enough to do: try again")
    if isinstance(error, DeploymentUnavailableError):
        return _restarting()
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, Exception) else EngineError(str(cause))


def _restarting() -> Busy:
    return Busy(503, "the engine is being started again: try again", RESTART_SECONDS)
