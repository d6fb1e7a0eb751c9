"""The steps of a run, in order: read, plan, replay what is stored, infer what is missing, write."""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

from ensemble import manifest, models, report
from ensemble.config import ModelConfig, RunConfig, votes_over_orders
from ensemble.errors import ConfigError, EngineError, ModelError, StoreError
from ensemble.files import location, remove_tree, write_json
from ensemble.grading import check_metrics
from ensemble.known import calibrated, replay
from ensemble.load import load_config
from ensemble.names import unknown
from ensemble.outputs import Written, write_errors
from ensemble.plan import Plan, describe_members, make_plan
from ensemble.read import InputSummary
from ensemble.records import TASKS, RowError
from ensemble.relative import check_baseline
from ensemble.rouge import check_words
from ensemble.tally import Tally
from ensemble.trained import prompt_warnings
from pipelines import cli, summary
from pipelines.deadline import Deadline, Saver
from pipelines.folder import Clock, lock, read_input, usable_store, writable
from pipelines.missing import Missing
from pipelines.progress import Progress
from pipelines.results import Results, check_outside, read_outside


def solve(options: argparse.Namespace, started: float) -> int:
    """started: epoch seconds, from which a deadline counts."""
    clock = Clock()
    config = load_config(options.config, cli.overrides(options))
    _check(config, options)
    folder = writable(location(config.output))
    errors: list[RowError] = []
    with ExitStack() as held:
        # A dry run may look at what another run is writing, so it keeps its own notes; a real one has the folder alone.
        if options.dry_run:
            scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        else:
            scratch = folder
            lock(folder, held)
        progress = held.enter_context(Progress())
        distinct = any(votes_over_orders(member) for plan in config.tasks.values() for member in plan.members)
        read = read_input(config.input or "", options, distinct, scratch, folder, errors, progress)
        clock.lap("read")
        files = _files_known(progress) if options.dry_run else models.fingerprint
        certify = options.deadline is None
        plan = make_plan(_covering(config, read), list(read.by_task), files, read.blocks, certify)
        for warning in prompt_warnings(config, read.by_task):
            progress.warn(warning)
        if options.fresh:
            remove_tree(scratch / "fresh-store")
        store = usable_store(scratch / "fresh-store" if options.fresh else location(config.store.path))
        outside = read_outside(options.gold, options.overlay, options.baseline)
        results = Results(folder, plan, store, read.blocks, outside, partial=options.deadline is not None)
        check_outside(results)
        if options.dry_run:
            summary.print_plan(plan, read, _missing(plan, store, read), store, folder)
            return cli.OK
        _describe(plan, store)
        lacking, written = _look(results, read)
        missing = lacking.tasks
        clock.lap("plan")
        stored = read.rows - missing.total()
        progress.note(f"{read.rows} questions, {stored} answered from the store, {missing.total()} to compute")
        tally, stopped, deadline = Tally(), None, None
        engines: dict[str, object] = {}
        if options.deadline is not None:
            deadline = Deadline.of(options.deadline, started, read.by_task)
        if missing:
            stopped, engines = _infer(results, str(store), lacking, progress, tally, deadline)
        clock.lap("infer")
        if written is None or missing:
            written = results.write(tally, stopped)
        if outside.gold is not None and written.gold_matched < read.rows:
            progress.warn(f"{options.gold}: has gold for {written.gold_matched} of {read.rows} questions, joined by id")
        write_errors(folder / "errors.jsonl", [*errors, *written.failed])
        clock.lap("write")
        seconds = clock.seconds | ({"inference": tally.seconds} if tally.seconds else {})
        facts = manifest.build(plan, read, missing, tally, written, seconds, store, sys.argv, started, engines)
        if deadline is not None:
            facts["deadline"] = deadline.kept(written, time.time())
        write_json(folder / "manifest.json", facts)
        report.write(folder / "report.html", plan, read, written, facts, [*errors, *written.failed], written.digest)
    summary.print_results(read, written, facts, folder, errors)
    if options.bell:
        print("\a", end="", file=sys.stderr)
    return cli.SOME_FAILED if errors or written.failed else cli.OK


def _files_known(progress: Progress) -> Callable[[ModelConfig], str]:
    """A dry run goes on where a model cannot be reached: what the store has of it is then not known."""

    @cache
    def files(model: str) -> str:
        try:
            return models.fingerprint(ModelConfig.model_validate_json(model))
        except ModelError as e:
            progress.warn(f"{e}; what the store has of this model is not known")
            return "unknown"

    return lambda model: files(model.model_dump_json())


def _describe(plan: Plan, store: Path) -> None:
    try:
        describe_members(plan, store)
    except OSError as e:
        raise ConfigError(f"store {store}: {e.strerror or e}; make it writable, or give --set store.path=DIR") from None


def _look(results: Results, read: InputSummary) -> tuple[Missing, Written | None]:
    missing = Missing(read.by_block)
    try:
        written = results.look(list(read.by_task), missing)
    except StoreError as e:  # nothing was started yet
        raise ConfigError(str(e)) from None
    return missing, written


def _missing(plan: Plan, store: Path, read: InputSummary) -> Counter[str]:
    """Questions per task that the store cannot decide."""
    try:
        plan = calibrated(plan, store, read.blocks)
        return Counter(q.task for q, decision in replay(plan, store, read.blocks) if decision is None)
    except StoreError as e:
        raise ConfigError(str(e)) from None


def _infer(
    results: Results,
    store: str,
    missing: Missing,
    progress: Progress,
    tally: Tally,
    deadline: Deadline | None,
) -> tuple[tuple[str, str] | None, dict[str, object]]:
    """Asks the models. Type and message of what kept questions from being asked; and what the engines did."""
    from pipelines.infer import Pass, infer
    from pipelines.watch import Watch

    stopped, watch = None, Watch(progress)
    try:
        with ExitStack() as saving:
            if deadline is not None:
                save = partial(results.write, tally, deadline.unreached())
                saving.enter_context(Saver(save, deadline, progress.warn))
            infer(results.plan, missing, Pass(store, results.blocks, progress, tally, deadline, watch))
    except (EngineError, StoreError) as e:  # what was answered until then is written all the same
        progress.warn(f"the run stopped: {e}")
        stopped = type(e).__name__, str(e)
    return stopped or (deadline.unreached() if deadline else None), watch.facts()


def _check(config: RunConfig, options: argparse.Namespace) -> None:
    if not config.input:
        raise ConfigError("no input: give --input FILE, or input: in the config")
    if options.task is not None and options.task not in TASKS:
        raise ConfigError(f"--task: {unknown('task', options.task, TASKS)}")
    for task, plan in config.tasks.items():
        if plan.metrics is not None:
            check_metrics(task, plan.metrics)
        check_words(plan.rouge_words)
    check_baseline(config)


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
