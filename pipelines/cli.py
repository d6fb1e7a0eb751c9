"""Options that the pipelines share, and how their errors end a process."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ensemble.errors import ConfigError, InputError, ModelError, PromptError, QuorumError
from ensemble.read import Selection
from pipelines.deadline import seconds

OK, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def parser(description: str, epilog: str, start: str) -> argparse.ArgumentParser:
    """What all pipelines over questions share; start: a config to begin with."""
    p = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config", required=True, metavar="FILE", help=f"config (YAML); {start} is a start")
    p.add_argument(
        "--input",
        metavar="FILE",
        help="question file, glob or folder: JSONL, a JSON array, Parquet or CSV; here, on s3:// or on gs://",
    )
    p.add_argument("--output", metavar="DIR", help="folder for the results; may be s3:// or gs://")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change one config key, lists by index: --set tasks.math.members.0.sampling.max_tokens=200",
    )  # fmt: skip
    p.add_argument(
        "--limit", type=_limit, metavar="N|0.1", help="the first N questions, or a share of each task and group"
    )
    p.add_argument("--task", help="only this task")
    p.add_argument("--ids", metavar="A,B", help="only these question ids")
    p.add_argument("--gold", metavar="FILE", help="grade by the answers of this question file, joined by id")
    p.add_argument("--dry-run", action="store_true", help="print the plan and what the store has; start nothing")
    p.add_argument(
        "--fresh",
        action="store_true",
        help="compute everything again, into OUTPUT/fresh-store, which is emptied first; "
        "an interrupted run starts anew",
    )
    return p


def solve_parser(description: str, epilog: str) -> argparse.ArgumentParser:
    p = parser(description, epilog, "configs/demo.yaml")
    p.add_argument(
        "--overlay", metavar="FILE", help="another submission: it is written again with this run's answers in place of "
        "its own (with --task: only that task's), to read one task's score off a leaderboard",
    )  # fmt: skip
    p.add_argument("--baseline", metavar="FILE", help="a submission to compare with: prints our means over its means")
    p.add_argument("--bell", action="store_true", help="ring the terminal's bell at the end")
    p.add_argument(
        "--deadline", type=seconds, metavar="2h", help="be done in this time: each question once, then the rest of "
        "the plan where it is expected to change most; a submission is there from the start and gets better",
    )  # fmt: skip
    return p


def selection(options: argparse.Namespace) -> Selection:
    ids = frozenset(part.strip() for part in options.ids.split(",")) if options.ids else None
    return Selection(options.limit, options.task, ids)


def overrides(options: argparse.Namespace) -> list[str]:
    """--set first, then the options that stand for a key."""
    keys = {"input": options.input, "output": options.output}
    return [*options.overrides, *(f"{key}={json.dumps(value)}" for key, value in keys.items() if value is not None)]


def run(main: Callable[[], int]) -> NoReturn:
    """Calls `main` and exits; an error that Quorum raised is one line, everything else keeps its traceback."""
    try:
        code = main()
    except (ConfigError, InputError, ModelError, PromptError) as e:
        print(f"error: {e}", file=sys.stderr)
        code = UNUSABLE
    except QuorumError as e:
        print(f"error: {e}", file=sys.stderr)
        code = SOME_FAILED
    except KeyboardInterrupt:
        print("stopped; what was computed is stored, and the same command goes on from there", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        code = SOME_FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is closed: taking the interpreter apart would cost most of a second


def _limit(text: str) -> int | float:
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a count (200) nor a share (0.1)") from None
    if value <= 0 or (isinstance(value, float) and value >= 1):
        raise argparse.ArgumentTypeError(f"{text}: a count is at least 1, a share lies between 0 and 1")
    return value
