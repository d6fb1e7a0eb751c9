"""The steps of a run, in order: read, plan, replay what is stored, infer what is missing, write."""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from ensemble import manifest, report
from ensemble.config import RunConfig
from ensemble.errors import ConfigError, EngineError, InputError, StoreError
from ensemble.files import output_error, write_json
from ensemble.grading import check_metrics
from ensemble.load import load_config
from ensemble.names import unknown
from ensemble.outputs import write_errors, write_results
from ensemble.plan import Plan, describe_members, make_plan, replay
from ensemble.questions import parse_question
from ensemble.read import InputSummary, find_inputs, iter_blocks, read_questions
from ensemble.records import TASKS, Gold, RowError
from ensemble.rows import iter_rows
from ensemble.store import open_store
from pipelines import cli, summary
from pipelines.progress import Progress


def solve(options: argparse.Namespace) -> int:
    clock = Clock()
    config = load_config(options.config, cli.overrides(options))
    _check(config, options)
    folder = _writable(Path(config.output))
    errors: list[RowError] = []
    with ExitStack() as held:
        # A dry run may look at what another run is writing, so it keeps its own notes; a real one has the folder alone.
        if options.dry_run:
            scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        else:
            scratch = folder
            _lock(folder, held)
        progress = held.enter_context(Progress())
        try:
            read = read_questions(config.input or "", scratch / "questions", cli.selection(options), errors.append)
        except InputError:
            write_errors(folder / "errors.jsonl", errors)
            raise
        for error in errors[:5]:
            progress.warn(f"{error.file}:{error.line}: {error.message}")
        if len(errors) > 5:
            progress.warn(f"{len(errors) - 5} more bad rows are in {folder / 'errors.jsonl'}")
        if read.missing_ids:
            progress.warn(f"--ids: no row has id {', '.join(read.missing_ids[:5])}")
        clock.lap("read")
        plan = make_plan(_covering(config, read), list(read.by_task))
        gold = read_gold(options.gold) if options.gold else None
        if options.fresh:
            shutil.rmtree(scratch / "fresh-store", ignore_errors=True)
        store = _store(scratch / "fresh-store" if options.fresh else Path(config.store.path))
        missing = _counted(plan, store, read)
        clock.lap("plan")
        if options.dry_run:
            summary.print_plan(plan, read, missing, store, folder)
            return cli.OK
        describe_members(plan, store)
        stored = read.rows - missing.total()
        progress.note(f"{read.rows} questions, {stored} answered from the store, {missing.total()} to compute")
        inference = stopped = None
        if missing:
            from pipelines.infer import infer

            try:
                inference = infer(plan, str(store), read.blocks, missing, progress)
            except (EngineError, StoreError) as e:  # what was answered until then is written all the same
                stopped = (type(e).__name__, str(e))
                progress.warn(f"the run stopped: {e}")
        clock.lap("infer")
        decided = replay(plan, store, iter_blocks(read.blocks))
        written = write_results(folder, plan, decided, inference.errors if inference else {}, gold, stopped)
        if gold is not None and written.gold_matched < read.rows:
            progress.warn(f"{options.gold}: has gold for {written.gold_matched} of {read.rows} questions, joined by id")
        write_errors(folder / "errors.jsonl", [*errors, *written.failed])
        clock.lap("write")
        facts = manifest.build(plan, read, missing, inference, written, clock.seconds, store, sys.argv)
        write_json(folder / "manifest.json", facts)
        report.write(folder / "report.html", plan, read, written, facts, [*errors, *written.failed])
    summary.print_results(read, written, facts, folder, errors)
    return cli.SOME_FAILED if errors or written.failed else cli.OK


class Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def count_missing(plan: Plan, store: Path, read: InputSummary) -> Counter[str]:
    """Questions per task that the store cannot decide."""
    return Counter(q.task for q, decision in replay(plan, store, iter_blocks(read.blocks)) if decision is None)


def read_gold(spec: str) -> dict[int | str, Gold]:
    """Gold answers by id out of a file of the question format. Raises InputError."""
    gold: dict[int | str, Gold] = {}
    for path in find_inputs(spec):
        for line, row in iter_rows(path):
            if isinstance(row, InputError):
                raise InputError(f"{path}:{line}: {row}")
            try:
                question = parse_question(row, 0, str(path), line)
            except InputError as e:
                raise InputError(f"{path}:{line}: {e}") from None
            if question.gold is not None:
                gold[question.id] = question.gold
    if not gold:
        raise InputError(f"{spec}: no row has a gold answer (answer or summary)")
    return gold


def _counted(plan: Plan, store: Path, read: InputSummary) -> Counter[str]:
    try:
        return count_missing(plan, store, read)
    except StoreError as e:  # nothing was started yet
        raise ConfigError(str(e)) from None


def _lock(folder: Path, held: ExitStack) -> None:
    """Until `held` closes no other run writes to the folder. Raises ConfigError where one does."""
    try:
        held.enter_context(FileLock(folder / ".lock", timeout=0))
    except Timeout:
        raise ConfigError(f"another run is writing to {folder}: wait for it, or give another --output") from None


def _check(config: RunConfig, options: argparse.Namespace) -> None:
    if not config.input:
        raise ConfigError("no input: give --input FILE, or input: in the config")
    if options.task is not None and options.task not in TASKS:
        raise ConfigError(f"--task: {unknown('task', options.task, TASKS)}")
    for task, plan in config.tasks.items():
        if plan.metrics is not None:
            check_metrics(task, plan.metrics)


def _covering(config: RunConfig, read: InputSummary) -> RunConfig:
    orphans = {task: n for task, n in read.by_task.items() if task not in config.tasks}
    if orphans:
        counts = ", ".join(f"{n} {task}" for task, n in orphans.items())
        first = next(iter(orphans))
        raise ConfigError(
            f"nobody answers {counts} rows: add members under tasks.{first} in the config, "
            f"or run one task with --task {next(iter(config.tasks))}"
        )
    return config


def _store(path: Path) -> Path:
    try:
        return open_store(path).resolve()
    except StoreError as e:  # before anything is computed, so that it counts as unusable config
        raise ConfigError(str(e)) from None


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as e:
        raise ConfigError(str(output_error(folder, e))) from None
    return folder
