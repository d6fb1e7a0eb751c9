"""Load on a running endpoint: clients that send their next request when the last is answered; one command.

python benchmarks/serve_load.py --work solve --clients 64,512 --seconds 60 --pid PID --out /tmp/load.json
python benchmarks/serve_load.py --work completions --model smollm2 --ignore-eos --stream \\
    --peer http://127.0.0.1:8001 --peer-model smollm2

Each client has one connection. No two requests are alike, and each reply is checked against its own request; crossed:
it belongs to another. solve asks one question in half of its requests, a list of four in a quarter and streams four in
the rest. A client that gets 429 or 503 is refused, which is no error, and waits Retry-After. A peer gets the same
requests, and no key.

A row for each number of clients. answered/s: a request still under way when the time is over counts, once answered, by
its share of time before; latencies are of all. first: until the first text, or the first line of a stream. lost: no
reply within --timeout. MiB: resident, of --pid and all its descendants, each second. generator: share of one core that
the clients took; near 1 they were the bottleneck. Exit status 1 where anything was crossed, lost or an error, or
nothing was answered.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import platform
import secrets
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]

from serve_work import Crossed, Reply, Work, Wrong

PATHS = {"solve": "/v1/solve", "completions": "/v1/completions", "chat": "/v1/chat/completions"}
AMOUNTS = {"solve": "questions/s", "completions": "tokens/s", "chat": "tokens/s"}
WITHOUT = 1.0  # seconds that a client waits where Retry-After is not there, and after an error


class Load:
    """A run of so many clients, and what they count."""

    def __init__(self, work: Work, url: str, clients: int, key: str | None, options: argparse.Namespace) -> None:
        self.work, self.url, self.clients, self.options = work, url.rstrip("/") + PATHS[options.work], clients, options
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.numbers = itertools.count()
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.refusals: list[float] = []
        self.memory: list[float] = []
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # of each kind the first
        self.in_time, self.amount = 0.0, 0.0
        self.without, self.crossed, self.lost = 0, 0, 0

    async def run(self, pid: int | None) -> dict[str, Any]:
        """The row of figures."""
        watch = asyncio.create_task(self._watch(pid)) if pid else None
        await asyncio.sleep(0.5 if pid else 0)  # a first sample, before there is anything to do
        self.started, cpu = time.perf_counter(), time.process_time()
        self.deadline = self.started + self.options.seconds
        progress = asyncio.create_task(self._progress())
        await asyncio.gather(*(self._client(i / self.clients) for i in range(self.clients)))
        whole, cpu = time.perf_counter() - self.started, time.process_time() - cpu
        await asyncio.sleep(1.5 if pid else 0)  # and a last one
        for task in filter(None, (watch, progress)):
            task.cancel()
        return self._figures(whole, cpu)

    async def _client(self, place: float) -> None:
        await asyncio.sleep(place * self.options.ramp)
        # An idle connection is given up before the server does: that would look like a cut one.
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=2)
        timeout, jar = aiohttp.ClientTimeout(total=self.options.timeout), aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self.headers, cookie_jar=jar
        ) as session:
            while (left := self.deadline - time.perf_counter()) > 0:
                if pause := await self._request(session):
                    await asyncio.sleep(min(pause, left))

    async def _request(self, session: aiohttp.ClientSession) -> float:
        """Seconds that its client waits before the next."""
        ask = self.work.ask(next(self.numbers))
        body = json.dumps(ask.body).encode()
        started = time.perf_counter()
        try:
            async with session.post(self.url, data=body) as response:
                if response.status in (429, 503):
                    await response.read()
                    self.refusals.append(time.perf_counter() - started)
                    after = response.headers.get("Retry-After", "")
                    self.without += not after.isdecimal()
                    return float(after) if after.isdecimal() else WITHOUT
                if response.status != 200:
                    raise Wrong(f"status {response.status}", await response.text())
                self._answered(started, await self.work.read(ask, response))
        except TimeoutError:
            self.lost += 1
        except Crossed as error:
            self.crossed += 1
            self.examples.setdefault("crossed", f"{error.kind}: {error.text}")
        except Wrong as error:
            return self._error(error.kind, error.text)
        except (aiohttp.ClientError, OSError) as error:
            return self._error(type(error).__name__, error)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return self._error("malformed", repr(error))
        return 0.0

    def _error(self, kind: str, example: object) -> float:
        self.errors[kind] += 1
        self.examples.setdefault(kind, str(example)[:300])
        return WITHOUT

    def _answered(self, started: float, reply: Reply) -> None:
        seconds = time.perf_counter() - started
        share = min(1.0, (self.deadline - started) / seconds)
        self.in_time += share
        self.amount += share * reply.amount
        self.latencies.append(seconds)
        if reply.first is not None:
            self.firsts.append(reply.first - started)

    async def _progress(self) -> None:
        for seconds in itertools.count(10, 10):
            await asyncio.sleep(self.started + seconds - time.perf_counter())
            counts = f"{len(self.latencies):,} answered, {len(self.refusals):,} refused, {self.errors.total():,} errors"
            print(f"{seconds} s: {counts}, {self.crossed:,} crossed, {self.lost:,} lost", flush=True)

    async def _watch(self, pid: int) -> None:
        while resident := await asyncio.to_thread(_resident, pid):
            self.memory.append(resident)
            await asyncio.sleep(1.0)
        self._error("the process of --pid is gone", pid)

    def _figures(self, whole: float, cpu: float) -> dict[str, Any]:
        memory, refusals = self.memory, [1000 * seconds for seconds in self.refusals]
        counts = {"answered": len(self.latencies), "whole": whole, "errors": dict(self.errors)}
        return {
            "endpoint": self.url,
            "clients": self.clients,
            "seconds": self.options.seconds,
            "answered/s": self.in_time / self.options.seconds,
            AMOUNTS[self.options.work]: self.amount / self.options.seconds,
            **_percentiles(self.latencies, {"p50 s": 50, "p95 s": 95, "p99 s": 99, "max s": 100}),
            **_percentiles(self.firsts, {"first p50 s": 50, "first p99 s": 99}),
            "refused": len(refusals),
            **_percentiles(refusals, {"refused p50 ms": 50, "refused p99 ms": 99}),
            "no Retry-After": self.without,
            "errors": ", ".join(f"{kind}: {n:,}" for kind, n in self.errors.items()) or 0,
            "crossed": self.crossed,
            "lost": self.lost,
            "MiB start": memory[0] if memory else None,
            "MiB end": memory[-1] if memory else None,
            "MiB most": max(memory, default=None),
            "generator": cpu / whole,
            "more": counts | {"examples": self.examples},  # in no table
        }


def _resident(pid: int) -> float:
    """MiB of a process and all below it; pages that they share count for each. 0 where it is gone."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return total / 2**20


def _percentiles(values: list[float], wanted: dict[str, float]) -> dict[str, float | None]:
    return {name: float(np.percentile(values, q)) if values else None for name, q in wanted.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, with the columns that any row has."""
    names = [name for name in rows[0] if name != "more" and any(row[name] is not None for row in rows)]
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    lines += ["| " + " | ".join(_cell(name, row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(name: str, value: str | float | None) -> str:
    if not isinstance(value, float):
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else value
    return f"{value:,.3f}" if name.endswith(" s") else f"{value:,.2f}" if name == "generator" else f"{value:,.1f}"


def main() -> None:
    options = parse()
    rows: list[dict[str, Any]] = []
    command = [word.replace(options.key, "KEY") if options.key else word for word in sys.argv]
    facts = {"command": command, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    facts |= {"python": platform.python_version(), "aiohttp": aiohttp.__version__}
    endpoints = [(options.base_url, options.model, options.key, options.pid)]
    endpoints += [(options.peer, options.peer_model, None, None)] if options.peer else []
    for clients in options.clients:
        mark = secrets.token_hex(4)
        for i, (url, model, key, pid) in enumerate(endpoints):
            print(f"{clients:,} clients for {options.seconds:g} s: {url}", flush=True)
            row = asyncio.run(Load(Work(options, model, mark), url, clients, key, options).run(pid))
            rows.append(row)
            for kind, text in row["more"]["examples"].items():
                print(f"{kind}, such as: {text}")
            if i:
                names = [name for name in ("answered/s", AMOUNTS[options.work]) if row[name]]
                row["more"]["ratios"] = ratios = {name: rows[-2][name] / row[name] for name in names}
                print("of the peer's: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
            if options.out:
                options.out.write_text(json.dumps(facts | {"rows": rows}, indent=1), "utf-8")
    print(table(rows))
    if any(row["generator"] > 0.85 for row in rows):
        print("the clients took most of their core: a faster endpoint would not show")
    sys.exit(any(row["errors"] or row["crossed"] or row["lost"] or not row["more"]["answered"] for row in rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--work", choices=PATHS, required=True)
    parser.add_argument("--model", default="", help="what completions and chat name")
    parser.add_argument("--clients", default="64", help="one number, or several: 64,512")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--ramp", type=float, default=0, help="seconds in which the clients begin, one after another")
    parser.add_argument("--key", help="of the endpoint")
    parser.add_argument("--input", type=Path, help="rows of questions to ask in turn, marked; left out: made ones")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=200, help="about so many, in made rows")
    parser.add_argument("--ignore-eos", action="store_true", help="each reply has --max-tokens")
    parser.add_argument("--stream", action="store_true", help="all replies in pieces")
    parser.add_argument("--timeout", type=float, default=120, help="seconds until a reply is lost")
    parser.add_argument("--pid", type=int, help="of the endpoint, for its memory")
    parser.add_argument("--peer", help="URL of an endpoint to ask the same right after")
    parser.add_argument("--peer-model", default="")
    parser.add_argument("--out", type=Path, help="figures, as JSON")
    options = parser.parse_args()
    options.clients = [int(n) for n in options.clients.split(",")]
    if options.work != "solve" and not (options.model and (options.peer_model or not options.peer)):
        parser.error("--model is needed, and with --peer also --peer-model")
    return options


if __name__ == "__main__":
    main()
