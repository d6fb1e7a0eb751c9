"""python -m serve --config configs/demo.yaml: the endpoint on this machine, until it is stopped."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# The thread that deploys must not open a second connection when it is stopped while engines load.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Serve's own set of settings for throughput (twice as many requests here), but for the one that needs HAProxy.
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_SERVE_ENABLE_DIRECT_INGRESS", "0")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from ensemble.errors import QuorumError
from serve.listener import bind, hold
from serve.settings import read_settings

NAME = "quorum"  # of the Serve application
DRAIN_SECONDS = 30.0
FLUSH_SECONDS = 1.0  # for the last answers on their way through Serve's proxies
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ROUTER_LOOP = "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        description="Serve the ensemble of a run config: /v1/solve, OpenAI's and the LLM Efficiency Challenge's "
        "protocols, and a page at /. Stop with Ctrl-C: what is under way is answered first.",
        epilog="example: python -m serve --config configs/demo.yaml --port 8000",
    )
    parser.add_argument("--config", default="configs/demo.yaml", metavar="FILE", help="run config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change of the run config")
    parser.add_argument(
        "--settings", default="{}", metavar="YAML", help="further arguments: '{limits: {in_flight: 64}}'"
    )
    parser.add_argument("--keys", metavar="FILE", help="API keys, a line `NAME KEY` each")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; any but this machine's needs --keys")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", default="local", help="of a Ray cluster; local: one for this server alone")
    return parser.parse_args()


def free_port(host: str) -> int:
    with bind(host, 0) as s:
        return int(s.getsockname()[1])


def main() -> int:
    options = parse()
    if options.host not in LOOPBACK and not options.keys:
        print(f"error: --host {options.host} is open to others: give --keys FILE", file=sys.stderr)
        return 2
    arguments = {"config": options.config, "set": options.set, "keys": options.keys} | (
        yaml.safe_load(options.settings) or {}
    )
    try:
        read_settings(arguments)
    except QuorumError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    direct = options.address == "local"  # on another machine nobody would look for a gateway
    try:
        held = hold(options.host, options.port)
    except OSError as e:
        print(
            f"error: port {options.port} of {options.host}: {e.strerror}: choose another with --port", file=sys.stderr
        )
        return 2
    with held:
        if direct:
            arguments["listen"] = {"host": options.host, "port": options.port}
        else:
            held.close()  # for Serve's proxies
        return run(arguments, options.address, options.host, free_port(options.host) if direct else options.port)


def run(arguments: dict[str, Any], address: str, host: str, port: int) -> int:
    """Until a signal, or until it fails to start. port: of Serve's proxy. Returns the exit status."""
    os.environ[ROUTER_LOOP] = "1"  # in this process, which has no event loop; read when Serve is imported
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    from serve.app import build, check

    del os.environ[ROUTER_LOOP]
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it would name its proxy's port
    try:
        check(arguments)
    except QuorumError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    local = {"include_dashboard": False, "object_store_memory": 2**29} if address == "local" else {}
    ray.init(address=address, logging_level="ERROR", log_to_driver=False, namespace="serve", **local)
    stop = threading.Event()

    def ask_to_stop(number: int, _: object) -> None:
        if stop.is_set() and address == "local":
            for process in psutil.Process().children(recursive=True):  # its Ray
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    started = time.monotonic()
    app = build(arguments)
    serve.start(http_options={"host": host, "port": port})
    print("engines are loading ...", flush=True)
    failed: list[BaseException] = []

    def deploy() -> None:
        try:
            serve.run(app, name=NAME)
        except BaseException as e:
            if not stop.is_set():  # else it is the stopping that ended it
                failed.append(e)
                stop.set()
            return
        seconds = time.monotonic() - started
        shown = arguments["listen"]["port"] if "listen" in arguments else port
        print(f"ready after {seconds:.0f} s: http://{host}:{shown}/  (docs at /docs)", flush=True)

    deploying = threading.Thread(target=deploy, daemon=True)
    deploying.start()
    stop.wait()
    if not failed:
        again = "; Ctrl-C again: at once" if address == "local" else ""
        print(f"stopping: what is under way is answered first{again}", flush=True)
        with contextlib.suppress(RayServeException, RayError, TimeoutError):  # then the rest is not waited for
            serve.get_app_handle(NAME).broadcast("drain").results(timeout_s=DRAIN_SECONDS)
            time.sleep(FLUSH_SECONDS)
    # Ray would tell of every actor that is ended on purpose.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        serve.shutdown()
        deploying.join(FLUSH_SECONDS)
        ray.shutdown()
    if failed:
        print(f"error: {' '.join(str(failed[0]).split())[:500]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
