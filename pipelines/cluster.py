"""Ray: the cluster a run uses, its engine actors, and the client that stage actors reach them through."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Ray Data's thread that a deadline left behind must not open a second connection when Ray is shut down.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError, RayTaskError

from ensemble import models
from ensemble.config import ROOT, ModelConfig, RayConfig, Sampling
from ensemble.engine import Engine, GenerateReply, ScoreReply, ScoreRequest
from ensemble.errors import ConfigError, EngineError, ModelError
from ensemble.fake import FakeEngine

RESTARTS = 10  # of one engine in a run
MESSAGE_TOKENS = 4096  # of questions that are sent to an engine together: one message costs a millisecond
PASSED_ON = ("QUORUM_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN")
STORAGE = ("AWS_", "GOOGLE_")  # what the names of variables of object stores begin with


def connect(config: RayConfig) -> None:
    """Joins the cluster at `ray.address` or RAY_ADDRESS, else starts one on this machine for this run alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    env = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(STORAGE)}
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not in_job:  # a job's working_dir is on the path already
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 2**29} if address == "local" else {}
    try:
        ray.init(
            address=address,
            runtime_env={} if in_job else {"env_vars": env},
            logging_level="ERROR",
            log_to_driver=False,
            **local,
        )
    except (ConnectionError, ValueError, RuntimeError) as e:
        reason = " ".join(str(e).split())[:300]
        raise ConfigError(
            f"no Ray cluster at {address!r} ({reason}): start one, or unset ray.address and RAY_ADDRESS"
        ) from e


class EngineSpec(NamedTuple):
    """All that an engine actor needs; plain data."""

    model: str
    config: ModelConfig
    device: str
    cwd: str


class EngineActor:
    """One engine in a process of its own. It starts at the first call, so a restarted actor starts itself."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: Any = None
        self._starting = asyncio.Lock()
        self._status = "waiting for resources"

    async def start(self) -> None:
        async with self._starting:
            if self._engine is None:
                self._engine = await self._start()
                self._status = "ready"

    async def status(self) -> str:
        return self._status

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        await self.start()
        return await self._alive(self._engine.score(requests))  # type: ignore[no-any-return]

    async def generate(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> GenerateReply:
        await self.start()
        return await self._alive(self._engine.generate(prompt, sampling, seed))  # type: ignore[no-any-return]

    async def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    async def _start(self) -> Engine:
        spec = self._spec
        if spec.config.engine.fake is not None:
            return FakeEngine(**spec.config.engine.fake)
        from ensemble.engine import VLLMEngine

        enter(spec.cwd)
        self._status = "preparing"
        folder = await asyncio.to_thread(models.prepare, spec.model, spec.config, self._report)
        self._status = "loading"
        await asyncio.sleep(0.2)  # lets a waiting status call answer: construction blocks this loop
        return VLLMEngine(spec.config, folder, spec.device)

    def _report(self, line: str) -> None:
        self._status = line

    async def _alive(self, call: Any) -> Any:
        from ensemble.engine import is_dead

        try:
            return await call
        except Exception as e:
            if is_dead(e):  # only a new process helps: Ray restarts the actor, the client asks again
                os._exit(1)
            raise


def start_engines(specs: Sequence[EngineSpec]) -> dict[str, list[Any]]:
    """Engine actors per model, all starting at once. Raises ConfigError where the GPUs do not suffice."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    needed = {s.model: s.config.engine.tensor_parallel_size for s in specs if s.device == "cuda"}
    if sum(needed.values()) > gpus:
        wants = ", ".join(f"{model} {n}" for model, n in needed.items())
        raise ConfigError(
            f"the models need {sum(needed.values())} GPUs at once ({wants}) and the cluster has {gpus}: "
            "run fewer models (--task), lower engine.tensor_parallel_size, or set engine.device: cpu"
        )
    auto = gpus // max(sum(needed.values()), 1)
    replicas = {s.model: _replicas(s, auto) for s in specs}
    total = sum(n * replicas[model] for model, n in needed.items())
    if total > gpus:
        raise ConfigError(f"engine.replicas ask for {total} GPUs and the cluster has {gpus}: lower them, or set auto")
    actor = ray.remote(EngineActor)
    started = {}
    for spec in specs:
        options = {"num_gpus": needed[spec.model]} if spec.device == "cuda" else {"num_cpus": 0.5}
        actors = [
            actor.options(max_concurrency=10_000, max_restarts=RESTARTS, max_task_retries=0, **options).remote(spec)
            for _ in range(replicas[spec.model])
        ]
        started[spec.model] = actors
    return started


def _replicas(spec: EngineSpec, auto: int) -> int:
    wanted = spec.config.engine.replicas
    if wanted == "auto":
        return auto if spec.device == "cuda" else 1
    return wanted


class Usage:
    """What one member's engines were sent and gave back, in tokens."""

    def __init__(self) -> None:
        self.requests = self.prompt_tokens = self.cached_tokens = self.output_tokens = 0

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        counts = dict(vars(self))
        self.__init__()  # type: ignore[misc]
        return counts


class _Waiting(NamedTuple):
    """A question's requests, and the future of their replies."""

    requests: Sequence[ScoreRequest]
    tokens: int
    replies: "asyncio.Future[list[ScoreReply]]"

    def succeed(self, replies: list[ScoreReply]) -> None:
        if not self.replies.done():  # its question may have run out of time
            self.replies.set_result(replies)

    def fail(self, error: Exception) -> None:
        if not self.replies.done():
            self.replies.set_exception(error)


class EngineClient:
    """An `Engine` over the actors of one model: the least busy one answers, and a dead one is asked again.

    All orders of a question come in one `score` call and so reach one engine, whose prefix cache they share. What
    several questions ask for at the same moment travels in one message of up to MESSAGE_TOKENS.
    """

    def __init__(self, actors: Sequence[Any], retries: int, seconds: float) -> None:
        self._actors, self._retries, self._seconds = actors, retries, seconds
        self._outstanding = [0] * len(actors)
        self._dead: set[int] = set()
        self._waiting: list[_Waiting] = []
        self._sending: set[asyncio.Task[None]] = set()
        self.usage = Usage()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        tokens = sum(len(r.prompt) + sum(map(len, r.continuations)) for r in requests)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        waiting = _Waiting(requests, tokens, loop.create_future())
        self._waiting.append(waiting)
        replies = await waiting.replies
        self.usage.requests += sum(len(r.continuations) for r in requests)
        self.usage.prompt_tokens += sum(r.prompt_tokens for r in replies)
        self.usage.cached_tokens += sum(r.cached_tokens for r in replies)
        return replies

    def _send(self) -> None:
        message: list[_Waiting] = []
        tokens = 0
        for waiting in self._waiting:
            if message and tokens + waiting.tokens > MESSAGE_TOKENS:
                self._start(message, tokens)
                message, tokens = [], 0
            message.append(waiting)
            tokens += waiting.tokens
        self._waiting = []
        self._start(message, tokens)

    def _start(self, message: list["_Waiting"], tokens: int) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(message, tokens))
        self._sending.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._sending.discard)

    async def _deliver(self, message: list["_Waiting"], tokens: int) -> None:
        requests = [request for waiting in message for request in waiting.requests]
        try:
            replies: list[ScoreReply] = await self._call("score", tokens, requests)
        except Exception as e:
            if len(message) == 1:
                message[0].fail(e)
            else:  # whose fault it is shows when each question goes alone
                await asyncio.gather(*(self._deliver([waiting], waiting.tokens) for waiting in message))
            return
        done = iter(replies)
        for waiting in message:
            waiting.succeed([next(done) for _ in waiting.requests])

    async def generate(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> GenerateReply:
        reply: GenerateReply = await self._call("generate", len(prompt) + sampling.max_tokens, prompt, sampling, seed)
        self.usage.requests += 1
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.cached_tokens += reply.cached_tokens
        self.usage.output_tokens += reply.tokens
        return reply

    async def _back(self, i: int) -> bool:
        """Waits until a dead engine has started again; False where Ray has given it up."""
        while True:
            try:
                await self._actors[i].start.remote()
                return True
            except ActorUnavailableError:  # its new process is not there yet
                await asyncio.sleep(1.0)
            except RayError:
                return False

    async def _call(self, verb: str, tokens: int, *arguments: Any) -> Any:
        for attempt in range(self._retries + 1):
            alive = [i for i in range(len(self._actors)) if i not in self._dead]
            if not alive:
                raise EngineError("every engine of the model is dead: see Ray's logs, then run the same command again")
            i = min(alive, key=self._outstanding.__getitem__)
            self._outstanding[i] += tokens
            try:
                return await asyncio.wait_for(getattr(self._actors[i], verb).remote(*arguments), self._seconds)
            except RayActorError as e:
                if attempt == self._retries:
                    raise EngineError(
                        f"the engine died {attempt + 1} times on this question ({_first_line(e)})"
                    ) from None
                if not await self._back(i):
                    self._dead.add(i)
            except RayTaskError as e:
                raise root_cause(e) from None
            except TimeoutError:
                raise EngineError(
                    f"no reply from the engine in {self._seconds:g} s: raise ray.request_seconds, or see its log"
                ) from None
            finally:
                self._outstanding[i] -= tokens
        raise AssertionError("unreachable")


def wait_for(ref: Any, seconds: float) -> Any:
    """The value of a Ray reference; errors come as the exception that was raised in the actor."""
    try:
        return ray.get(ref, timeout=seconds)
    except RayTaskError as e:
        raise root_cause(e) from None
    except GetTimeoutError:
        raise
    except RayActorError as e:
        raise ModelError(f"an engine's process died while it started ({_first_line(e)}): too little memory?") from None


def root_cause(error: BaseException) -> BaseException:
    """What was raised first, under the wrappers of Ray and Ray Data."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    return error


def enter(cwd: str) -> None:
    """Relative paths of a config mean the driver's folder, where that exists on this node."""
    if Path(cwd).is_dir():
        os.chdir(cwd)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if isinstance(error, RayTaskError) else lines[0])[:300] if lines else type(error).__name__
