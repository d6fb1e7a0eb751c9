"""The steps of an ablation, in order: read, expand, ask what the store lacks, replay every variant, compare, write."""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ensemble import board, leaderboard, manifest
from ensemble.board import Compared, Outcome
from ensemble.config import Cloze, Letter, Member, RunConfig, TaskPlan, fingerprint, votes_over_orders
from ensemble.errors import ConfigError, EngineError, StoreError
from ensemble.files import location, remove_tree, replacing, write_json
from ensemble.finest import Key, asked_as, finest
from ensemble.grading import DEFAULT_METRICS, check_metrics
from ensemble.grid import AblationConfig, Expanded, Variant, expand
from ensemble.known import known
from ensemble.load import load_ablation
from ensemble.outcomes import Known, outcomes
from ensemble.outputs import write_errors
from ensemble.plan import Plan, describe_members, make_plan
from ensemble.prior import load_prior, prior_key
from ensemble.read import InputSummary, iter_blocks
from ensemble.records import Gold, Question, RowError, Task
from ensemble.rouge import check_words
from ensemble.tally import Tally
from ensemble.votes import Ask
from pipelines import cli
from pipelines.folder import Clock, lock, read_input, usable_store, writable
from pipelines.missing import Missing
from pipelines.progress import Progress
from pipelines.results import check_gold, read_gold
from pipelines.standings import Lacking, print_board, print_plan


def ablate(options: argparse.Namespace, started: float) -> int:
    """started: epoch seconds."""
    clock = Clock()
    config = load_ablation(options.config, cli.overrides(options))
    if not config.input:
        raise ConfigError("no input: give --input FILE, or input: in the config")
    expanded = _of_task(expand(config), options.task)
    metrics = _metrics(config, expanded)
    folder = writable(location(config.output))
    errors: list[RowError] = []
    with ExitStack() as held:
        # A dry run may look at what another run is writing, so it keeps its own notes; a real one has the folder alone.
        empty = Path(held.enter_context(tempfile.TemporaryDirectory()))
        if not options.dry_run:
            lock(folder, held)
        progress = held.enter_context(Progress())
        scratch = empty if options.dry_run else folder
        read = read_input(config.input, options, _over_orders(expanded), scratch, folder, errors, progress)
        members = _asked(finest(config, expanded), read)
        plan = make_plan(run_config(config, expanded, members), list(members), blocks=read.blocks)
        variants = [v for v in expanded.variants if v.task in members]
        priors = _stored_priors(variants, plan, members, config, expanded, read)
        store = usable_store(empty / "store" if options.fresh else location(config.store.path))
        gold = read_gold(options.gold) if options.gold else {}
        check_gold(gold, read.blocks)
        left = [f"{n} {task}" for task, n in read.by_task.items() if task not in members]
        if left:
            progress.warn(f"left aside, for no grid is of their task: {', '.join(left)}")
        lacking = _lacking(plan, store, read)
        clock.lap("plan")
        progress.note(
            f"{len(variants)} variants of {', '.join(members)}: {lacking.prompts.total():,} prompts for "
            f"{lacking.questions.tasks.total():,} questions are not in the store"
        )
        _within(config.budget, lacking)
        if options.dry_run:
            print_plan(plan, variants, lacking)
            return cli.OK
        if options.fresh:
            remove_tree(folder / "fresh-store")
            store = usable_store(folder / "fresh-store")
        describe_members(plan, store)
        tally = Tally()
        if lacking.questions.tasks:
            _infer(plan, str(store), read, lacking.questions, progress, tally)
        clock.lap("infer")
        told, left_out = _known(plan, store, read, gold, tally)
        clock.lap("load")
        found: dict[Task, list[Outcome]] = {}
        for task, rows in told.items():
            mine = [v for v in variants if v.task == task]
            progress.note(f"{task}: replaying {len(mine)} variants over {len(rows)} questions")
            found[task] = outcomes(rows, mine, members[task], config, expanded, metrics[task], priors)
        clock.lap("replay")
        compared: dict[Task, Compared] = {}
        questions: dict[str, Any] = {}
        answers: dict[str, Any] = {}
        for task, rows in told.items():
            mine = [v for v in variants if v.task == task]
            asked = [question for question, _ in rows]
            reference = config.reference.get(task)
            compared[task] = board.compare_task(asked, mine, found[task], metrics[task], reference, config.seed)
            questions[task] = board.question_rows(asked)
            answers |= board.answers(mine, found[task])
        clock.lap("compare")
        write_errors(folder / "errors.jsonl", [*errors, *left_out])
        page = _board(config, compared)
        write_json(folder / "leaderboard.json", page)
        leaderboard.write(folder / "leaderboard.html", page, questions, answers)
        _write_routes(folder / "routes.yaml", config, expanded, compared)
        clock.lap("write")
        write_json(folder / "manifest.json", _manifest(config, plan, lacking, tally, clock, store))
    print_board(compared, folder)
    return cli.SOME_FAILED if errors or left_out else cli.OK


def _of_task(expanded: Expanded, task: str | None) -> Expanded:
    if task is None:
        return expanded
    variants = [v for v in expanded.variants if v.task == task]
    if not variants:
        raise ConfigError(f"--task {task}: no grid is of this task; add one, or take {expanded.variants[0].task}")
    return expanded._replace(variants=variants)


def _metrics(config: AblationConfig, expanded: Expanded) -> dict[Task, str]:
    """Per task what is compared. Raises ConfigError."""
    found = {v.task: config.metric.get(v.task, DEFAULT_METRICS[v.task][0]) for v in expanded.variants}
    for task, metric in found.items():
        check_metrics(task, [metric])
    check_words(config.rouge_words)
    return found


def _over_orders(expanded: Expanded) -> bool:
    return any(votes_over_orders(member) for v in expanded.variants for member in v.plan.members)


def _asked(members: Mapping[Task, dict[Key, Member]], read: InputSummary) -> dict[Task, dict[Key, Member]]:
    """Of the tasks that the input has. Raises ConfigError where a grid's task is not there."""
    for task in members:
        if task not in read.by_task:
            raise ConfigError(
                f"a grid is of {task}, and the input has only {', '.join(read.by_task)}: remove it, or name one --task"
            )
    return dict(members)


def run_config(config: AblationConfig, expanded: Expanded, members: Mapping[Task, dict[Key, Member]]) -> RunConfig:
    """A run that asks everybody; not checked, for it names members that no vote could combine."""
    return RunConfig.model_construct(
        input=config.input,
        output=config.output,
        seed=config.seed,
        near_tie=config.near_tie,
        tasks={task: TaskPlan(members=tuple(asked.values())) for task, asked in members.items()},
        models=config.models,
        templates=expanded.templates,
        store=config.store,
        ray=config.ray,
    )


def _stored_priors(
    variants: Sequence[Variant],
    plan: Plan,
    members: Mapping[Task, dict[Key, Member]],
    config: AblationConfig,
    expanded: Expanded,
    read: InputSummary,
) -> dict[str, dict[int, Any]]:
    """Priors out of files that members name. Raises ConfigError where one is of another model or template."""
    found: dict[str, dict[int, Any]] = {}
    options: set[int] | None = None
    for variant in variants:
        for member in variant.plan.members:
            path = member.scoring.prior if isinstance(member.scoring, Letter) else None
            if path is None:
                continue
            if options is None:
                options = {len(q.choices) for block in iter_blocks(read.blocks) for q in block if q.choices}
            place = list(members[variant.task]).index(asked_as(member, config, expanded))
            planned = plan.tasks[variant.task][place]
            found[path] = load_prior(path, planned.name, prior_key(plan.description(planned)), options)
    return found


def _lacking(plan: Plan, store: Path, read: InputSummary) -> Lacking:
    lacking = Lacking(Missing(read.by_block), Counter())
    try:
        for question, voter, evidence in known(plan, store, read.blocks):
            asks = voter.missing(question, evidence)
            if asks:
                lacking.questions.add(question)
                lacking.prompts[question.task] += sum(
                    ask.prompts * (len(question.choices) if isinstance(_scoring(plan, question, ask), Cloze) else 1)
                    for ask in asks
                )
    except StoreError as e:
        raise ConfigError(str(e)) from None
    return lacking


def _scoring(plan: Plan, question: Question, ask: Ask) -> object:
    return plan.tasks[question.task][ask.member].member.scoring


def _within(budget: int | None, lacking: Lacking) -> None:
    needed = lacking.prompts.total()
    if budget is not None and needed > budget:
        parts = ", ".join(f"{task} {n:,}" for task, n in lacking.prompts.items())
        raise ConfigError(
            f"the grids need {needed:,} prompts that the store lacks ({parts}), the budget is {budget:,}: "
            "take fewer orders, models or templates, or --limit 0.1, or raise budget"
        )


def _infer(plan: Plan, store: str, read: InputSummary, missing: Missing, progress: Progress, tally: Tally) -> None:
    from pipelines.infer import Pass, infer
    from pipelines.watch import Watch

    try:
        infer(plan, missing, Pass(store, read.blocks, progress, tally, None, Watch(progress)))
    except (EngineError, StoreError) as e:  # what was answered until then is compared all the same
        progress.warn(f"asking stopped: {e}")


def _known(
    plan: Plan, store: Path, read: InputSummary, gold: Mapping[int | str, Gold], tally: Tally
) -> tuple[dict[Task, list[Known]], list[RowError]]:
    """Per task the questions that have gold and of which nothing is missing; the rest as errors.

    Raises ConfigError where a task has none left.
    """
    found: dict[Task, list[Known]] = {task: [] for task in plan.tasks}
    left_out = []
    graded: Counter[str] = Counter()
    for question, voter, evidence in known(plan, store, read.blocks):
        if question.task not in found:
            continue
        if question.id in gold:
            question = replace(question, gold=gold[question.id])
        if question.gold is None:
            continue
        graded[question.task] += 1
        if voter.missing(question, evidence):
            kind, message = tally.errors.get(question.row_index, ("StoreError", "some of its scores are missing"))
            left_out.append(RowError(question.file, question.line, question.id, kind, message))
        else:
            found[question.task].append((question, evidence))
    for task, rows in found.items():
        if not graded[task]:
            raise ConfigError(f"no {task} question has a gold answer, so variants cannot be compared: give --gold FILE")
        if not rows:
            raise EngineError(f"no {task} question was answered by all members: see above, and run the same again")
    return found, left_out


def _board(config: AblationConfig, compared: Mapping[Task, Compared]) -> dict[str, Any]:
    return {
        "title": Path(config.output).name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint(config),
        "seed": config.seed,
        "input": config.input,
        "command": list(sys.argv),
        "job": manifest.job(),
        "tasks": {task: result.summary for task, result in compared.items()},
        "variants": [row for result in compared.values() for row in result.variants],
    }


def _write_routes(path: Path, config: AblationConfig, expanded: Expanded, compared: Mapping[Task, Compared]) -> None:
    """The best variants as a config for solve.py."""
    best = board.routes(compared)
    plans = {task: variant.plan.model_copy(update={"description": text}) for task, (variant, text) in best.items()}
    used = [member for plan in plans.values() for member in plan.members]
    run = RunConfig(
        input=config.input,
        output=str(Path(config.output) / "routes") if "://" not in config.output else f"{config.output}/routes",
        seed=config.seed,
        near_tie=config.near_tie,
        tasks=plans,
        models={m.model: config.models[m.model] for m in used if m.model},
        templates={m.template: expanded.templates[m.template] for m in used if m.template},
        store=config.store,
        ray=config.ray,
    )
    data = run.model_dump(mode="json", exclude_defaults=True)
    with replacing(path) as f:
        f.write(
            "# The best variant of each task, as an ablation chose it. python pipelines/solve.py --config this file\n"
        )
        yaml.safe_dump(data, f, sort_keys=False, allow_unicode=True, width=120)


def _manifest(
    config: AblationConfig, plan: Plan, lacking: Lacking, tally: Tally, clock: Clock, store: Path
) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint(config),
        "command": list(sys.argv),
        "job": manifest.job(),
        "store": str(store),
        "versions": manifest.versions(),
        "members": {m.name: m.key for members in plan.tasks.values() for m in members},
        "asked": {"questions": dict(lacking.questions.tasks), "prompts": dict(lacking.prompts)},
        "usage": manifest.usage(plan, tally),
        "seconds": clock.seconds | ({"inference": tally.seconds} if tally.seconds else {}),
    }
