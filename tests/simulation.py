"""A cluster in one process and in virtual time: a loop whose clock jumps, and local stand-ins for Ray's actors.

The client, the engine actors and all that prompts, votes and stores are the real ones; only Ray's transport and the
GPUs are not there. What Python computes takes no virtual time, so that figures speak of placement and waiting alone:
the client's own cost is another measurement. Nothing may wait for a thread: the clock would not wait with it.
"""

import asyncio
import json
import selectors
import tempfile
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ensemble.answer import request_seed
from ensemble.fake import BLOCK
from ensemble.load import load_config
from ensemble.orders import make_orders
from ensemble.plan import Plan, make_plan, sample_seed
from ensemble.presets import tokens_in_flight
from ensemble.prompts import Prompter
from ensemble.read import Selection, iter_blocks, read_questions
from ensemble.store import open_store
from ensemble.tally import Tally
from pipelines.pool import Call, EngineActor, EngineSpec, Outcome, Score
from pipelines.stage import Job, Solver, questions_of, tokenizer
from pipelines.work import calls, everything

# What an L4 with a 7B model in 4 bit may do: assumptions, not measurements. Prefill: the 42,000 uncached tokens/s
# that an H200 was measured at (584 prompts of 365 tokens, 80% of them cached, bf16), scaled by the chips' nominal dense
# bf16 peaks of 121 and 989 TFLOP/s. A step takes at least what 4 GB of weights and the rest take at 300 GB/s. A batch
# of 64 texts writes half of what that would allow, because their KV caches are read too.
L4 = {
    "prefill_tokens_per_second": 5150.0,
    "decode_tokens_per_second": 2000.0,
    "decode_seconds_per_token": 0.016,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 64,
}
LENGTHS = (64, 80, 96, 112, 128)  # of the scripted texts, in tokens
STAGES = 2  # stage actors
MESSAGE_SECONDS = 0.001  # each way
STUCK_SECONDS = 10  # of real time, for which nothing is scheduled and nothing comes in


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs what is ready; when nothing is, its time is that of the next timer. The same program, the same order."""

    def __init__(self) -> None:
        self._virtual = 0.0
        self._clock_resolution: float
        super().__init__(_Jumps(self))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual

    def jump(self, seconds: float) -> None:
        self._virtual += seconds


class _Jumps(selectors.DefaultSelector):
    """Where the loop would sleep, it jumps."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(STUCK_SECONDS if timeout is None else 0)
        if timeout is None and not ready:
            raise RuntimeError("the simulation waits for something that never comes")
        if not ready and timeout is not None:
            self._loop.jump(timeout)
        return ready


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """As asyncio.run, in virtual time from 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class LocalActor:
    """`LocalActor(thing).method.remote(*args)` is an awaitable, as of a handle of Ray's; each way takes `seconds`."""

    def __init__(self, thing: Any, seconds: float = 0.0) -> None:
        self._thing, self._seconds = thing, seconds

    def __getattr__(self, name: str) -> "_Method":
        return _Method(getattr(self._thing, name), self._seconds)


class _Method:
    def __init__(self, method: Any, seconds: float) -> None:
        self._method, self._seconds = method, seconds

    def remote(self, *args: Any, **options: Any) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(self._call(*args, **options))

    async def _call(self, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(self._seconds)
        found = self._method(*args, **options)
        reply = await found if asyncio.iscoroutine(found) else found
        await asyncio.sleep(self._seconds)
        return reply


class Load(NamedTuple):
    """One engine after a run. most: the most tokens under way at a moment; message: of the largest message. busy: per
    moment the share of its compute that was used."""

    most: int
    message: int
    busy: list[float]


class Run(NamedTuple):
    """seconds: virtual, of the whole. computed: questions asked. stages: those of each stage actor."""

    seconds: float
    computed: int
    errors: dict[int, tuple[str, str]]
    engines: list[Load]
    stages: list[int]

    def timeline(self) -> str:
        """A line for each engine: of each moment the tenths of its compute that were used, * for all."""
        return "\n".join(
            f"{i}  {''.join('*' if share > 0.95 else str(int(share * 10)) for share in load.busy)}  most {load.most}"
            for i, load in enumerate(self.engines)
        )


class Board:
    """Nobody looks."""

    def add(self, done: Counter[tuple[str, bool]]) -> None:
        pass


class Engine(EngineActor):
    """The real engine actor; what is under way in it is written down."""

    def __init__(self, spec: EngineSpec, replica: int, speed: float) -> None:
        engine = spec.config.engine
        engine = engine.model_copy(update={"fake": (engine.fake or {}) | {"speed": speed}})
        super().__init__(spec._replace(config=spec.config.model_copy(update={"engine": engine})), replica)
        self.under_way = self.most = self.message = 0

    async def ask(self, calls: Sequence[Call], ticket: int | None = None) -> list[Outcome]:
        tokens = sum(map(size, calls))
        self.message = max(self.message, tokens)
        self.under_way += tokens
        self.most = max(self.most, self.under_way)
        try:
            return await super().ask(calls, ticket)
        finally:
            self.under_way -= tokens

    def busy_seconds(self) -> float:
        return self._engine.engine.busy_seconds if self._engine else 0.0


def size(call: Call) -> int:
    """Prompt and answer tokens of a call, as ray.tokens_in_flight counts them."""
    if isinstance(call, Score):
        return sum(len(r.prompt) + sum(map(len, r.continuations)) for r in call.requests)
    return len(call.prompt) + call.sampling.max_tokens


class Work(NamedTuple):
    """A competition that is read and planned, in its folder."""

    folder: Path
    plan: Plan
    blocks: dict[str, dict[str, int]]  # each with its questions per task
    tasks: Counter[str]


def prepare(
    folder: Path, rows: Iterable[dict[str, Any]], orders: str = "cyclic", writer: str = "smollm2", **ray: Any
) -> Work:
    """Writes rows and config into the folder and plans them, for engines as fast as an L4; writer: the model of the
    texts; ray: of the config's key."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(yaml.safe_dump(config(orders, writer) | {"ray": ray}))
    read = read_questions(str(folder / "rows.jsonl"), folder / "blocks", Selection(), print)
    plan = make_plan(load_config(folder / "run.yaml"), list(read.by_task), lambda _: "simulated", read.blocks)
    return Work(folder, plan, dict(zip(read.blocks, read.by_block, strict=True)), Counter(read.by_task))


def config(orders: str = "cyclic", writer: str = "smollm2", **fake: Any) -> dict[str, Any]:
    """A run config of three tasks, texts by the model `writer`; fake: further options of its engines."""
    texts = [" ".join(["so"] * n) for n in LENGTHS]
    engine = {"device": "cuda", "hardware": "L4", "fake": L4 | {"text": texts} | fake}
    choices = {"model": "smollm2", "template": "letters", "scoring": {"method": "letter", "orders": orders}}
    sampling = {"max_tokens": max(LENGTHS)}
    return {
        "models": {model: {"context_length": 4096, "engine": engine} for model in ("smollm2", writer)},
        "tasks": {
            "multiple_choice": {"members": [choices]},
            "summarization": {"members": [{"model": writer, "template": "summary", "sampling": sampling}]},
            "generation": {"members": [{"model": writer, "template": "short_answer", "sampling": sampling}]},
        },
    }


def simulate(
    work: Work, speeds: Sequence[float], moment: float = 0.5, until: float | None = None, late: float = 0.0
) -> Run:
    """Answers everything, into a new store, with an engine of each speed for each model; moment: seconds of the
    timeline's entries. until: epoch seconds of a deadline; the clock that it is read on stands all but still. late:
    seconds by which each stage actor is ready after the one before."""
    with tempfile.TemporaryDirectory(dir=work.folder) as store:
        return run(_simulate(work, open_store(store), speeds, moment, until, late))


async def _simulate(
    work: Work, store: Path, speeds: Sequence[float], moment: float, until: float | None, late: float
) -> Run:
    config, here = work.plan.config, str(Path.cwd())
    made: dict[str, list[Engine]] = {}
    for model in work.plan.models(list(work.plan.tasks)):
        spec = EngineSpec(model, config.models[model], "cuda", here, stall=float("inf"))
        made[model] = [Engine(spec, replica, speed) for replica, speed in enumerate(speeds)]
    engines = [engine for of_model in made.values() for engine in of_model]
    handles = {model: [LocalActor(e, MESSAGE_SECONDS) for e in of_model] for model, of_model in made.items()}
    tokens = {model: tokens_in_flight(config.ray, config.models[model].engine, "L4") for model in made}
    job = Job(work.plan, str(store), handles, LocalActor(Board()), here, STAGES, tokens, until=until)
    items = everything(work.plan, work.blocks, STAGES)
    at_once, left = calls(len(items), STAGES), iter(items)
    total, busy = Tally(), [[0.0] for _ in engines]
    computed = [0] * STAGES

    async def stage(i: int) -> None:
        """As Ray Data feeds one: the next item to whoever is free, as many as it may to whoever is ready first."""
        await asyncio.sleep(i * late)
        for item in left:
            tally = await solvers[i].solve(questions_of(item, work.plan))
            total.add(tally)
            computed[i] += tally.computed

    async def watch() -> None:
        while True:
            await asyncio.sleep(moment)
            for engine, seconds in zip(engines, busy, strict=True):
                seconds.append(engine.busy_seconds())

    watching = asyncio.ensure_future(watch())
    solvers = [Solver(job) for _ in range(STAGES)]
    await asyncio.gather(*(stage(i) for _ in range(at_once) for i in range(STAGES)))
    seconds = asyncio.get_running_loop().time()
    watching.cancel()
    shares = [[(after - before) / moment for before, after in pairwise(one)] for one in busy]
    loads = [Load(e.most, e.message, share) for e, share in zip(engines, shares, strict=True)]
    return Run(seconds, total.computed, total.errors, loads, computed)


class Demand(NamedTuple):
    """What a competition asks of L4s: seconds of compute, and seconds of its longest question alone."""

    compute: float
    longest: float

    def seconds(self, speeds: Sequence[float]) -> float:
        """What no schedule can beat."""
        return max(self.compute / sum(speeds), self.longest / max(speeds))


def demand(work: Work) -> Demand:
    """Counted from the prompts, with neither client nor engine: a prompt costs the tokens in which it differs from all
    that were sent before, in whole blocks, as if all engines shared one cache without bounds."""
    settings = work.plan.config
    tokens = tokenizer("smollm2", settings)
    members = {task: planned.member for task, (planned,) in work.plan.tasks.items()}
    prompters = {
        task: Prompter(member, settings.models["smollm2"], settings.templates[member.template], tokens)
        for task, member in members.items()
    }
    compute, longest, trie = 0.0, 0.0, {}
    for question in (q for block in iter_blocks(work.blocks) for q in block):
        member, prompter, written = members[question.task], prompters[question.task], 0
        if member.scoring is not None:
            orders = make_orders(member.scoring.orders, len(question.choices), settings.seed)
            prompts = [prompter.letters(question, order).prompt for order in sorted(orders)]
        else:
            prompts = [prompter.text(question).ids]
            written = LENGTHS[request_seed(sample_seed(member, settings.seed), question) % len(LENGTHS)]
        read = sum(_new_tokens(trie, prompt) for prompt in prompts) / L4["prefill_tokens_per_second"]
        compute += read + written / L4["decode_tokens_per_second"]
        longest = max(longest, read + written * L4["decode_seconds_per_token"])
    return Demand(compute, longest)


def _new_tokens(trie: dict[tuple[int, ...], Any], prompt: Sequence[int]) -> int:
    """Tokens of the prompt behind the blocks that the trie has; its blocks are in the trie from then on."""
    known, node, new = 0, trie, False
    for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
        block = tuple(prompt[start : start + BLOCK])
        new = new or block not in node
        known += 0 if new else BLOCK
        node = node.setdefault(block, {})
    return len(prompt) - min(known, (len(prompt) - 1) // BLOCK * BLOCK)  # the last token is always computed
