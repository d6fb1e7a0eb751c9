"""Ray: the cluster a run uses, and what its errors mean."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ensemble.config import ROOT, RayConfig
from ensemble.errors import ConfigError, ModelError

PASSED_ON = ("QUORUM_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN")
_requested = False  # whether an autoscaler was asked for GPUs
STORAGE = ("AWS_", "GOOGLE_")  # what the names of variables of object stores begin with


def connect(config: RayConfig) -> None:
    """Joins the cluster at `ray.address` or RAY_ADDRESS, else starts one on this machine for this run alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers that Ray starts in advance, one a core, are without the variables below: ours start beside them anyway.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_enable_worker_prestart", "0")
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


class Node(NamedTuple):
    """A living node that has GPUs."""

    id: str
    gpus: int


def gpu_nodes() -> list[Node]:
    """By id, so that the same cluster is planned in the same way."""
    found = [Node(n["NodeID"], int(n["Resources"].get("GPU", 0))) for n in ray.nodes() if n["Alive"]]
    return sorted(node for node in found if node.gpus)


def await_gpus(wanted: int, seconds: float, note: Callable[[str], None]) -> list[Node]:
    """The nodes once the cluster has so many GPUs; an autoscaler is asked for them. Raises ConfigError after so many
    seconds."""
    global _requested
    patience = time.monotonic() + seconds
    if total(gpu_nodes()) < wanted:
        note(f"waiting for {wanted} GPUs, the cluster has {total(gpu_nodes())}")
        request_resources(bundles=[{"GPU": 1}] * wanted)
        _requested = True
    while total(nodes := gpu_nodes()) < wanted:
        if time.monotonic() > patience:
            raise ConfigError(
                f"ray.gpus asks for {wanted} GPUs and after {seconds:g} s the cluster has {total(nodes)}: "
                "add nodes, or lower ray.gpus"
            )
        time.sleep(1.0)
    return nodes


def release_gpus() -> None:
    """Takes back what an autoscaler was asked for, which would keep nodes up for ever."""
    global _requested
    if _requested:
        with contextlib.suppress(Exception):  # the cluster may be gone
            request_resources(bundles=[])
        _requested = False


def total(nodes: Sequence[Node]) -> int:
    """GPUs of all nodes."""
    return sum(node.gpus for node in nodes)


def wait_for(ref: Any, seconds: float) -> Any:
    """The value of a Ray reference; errors come as the exception that was raised in the actor."""
    try:
        return ray.get(ref, timeout=seconds)
    except RayTaskError as e:
        raise root_cause(e) from None
    except GetTimeoutError:
        raise
    except RayActorError as e:
        raise ModelError(f"an engine's process died while it started ({first_line(e)}): too little memory?") from None


def root_cause(error: BaseException) -> BaseException:
    """What was raised first, under the wrappers of Ray and Ray Data."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    return error


def enter(cwd: str) -> None:
    """Relative paths of a config mean the driver's folder, where that exists on this node."""
    if Path(cwd).is_dir():
        os.chdir(cwd)


def first_line(error: BaseException) -> str:
    """What an error of Ray says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if isinstance(error, RayTaskError) else lines[0])[:300] if lines else type(error).__name__
