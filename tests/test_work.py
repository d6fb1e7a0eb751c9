"""How work is cut: everything once, in items of one size; and that nobody gets all of it."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from benchmarks.competition import rows
from ensemble.plan import Plan
from pipelines.work import CALLS, Part, calls, everything, places, shares
from tests.simulation import prepare, simulate

TASKS = ("multiple_choice", "summarization", "generation")
Blocks = Mapping[str, Mapping[str, int]]


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """Choices by one model, texts of two tasks by another."""
    return prepare(tmp_path_factory.mktemp("plan"), rows(1), writer="smollm2_gptq").plan


def made(blocks: int, last: int = 512, ordered: bool = False) -> Blocks:
    """Blocks of 512 questions and a last one, a third of each task; ordered: a task's come after another's."""
    sizes = [512] * (blocks - 1) + [last]
    if ordered:
        return {str(i): {TASKS[3 * i // blocks]: size} for i, size in enumerate(sizes)}
    return {str(i): {task: (size + k) // 3 for k, task in enumerate(TASKS)} for i, size in enumerate(sizes)}


def total(blocks: Blocks) -> Counter[str]:
    return sum(map(Counter, blocks.values()), Counter())


def taken(item: Sequence[Part], blocks: Blocks) -> list[tuple[str, str, int]]:
    """Block, task and number of the questions that `pipelines.stage.questions_of` finds in an item."""
    found = []
    for part in item:
        questions = [(part.block, task, i) for task in part.tasks or () for i in range(blocks[part.block].get(task, 0))]
        inside = [part.share[0] <= place < part.share[1] for place in places(len(questions))]
        found += [question for question, inside in zip(questions, inside, strict=True) if inside]
    return found


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("last", [512, 1])
@pytest.mark.parametrize(("n", "stages"), [(1, 1), (1, 6), (6, 6), (7, 6), (40, 6), (3, 24), (200, 24)])
def test_every_question_of_every_task_is_in_one_item(plan, n, stages, last, ordered):
    blocks = made(n, last, ordered)
    items = everything(plan, blocks, total(blocks), stages)
    found = Counter(question for item in items for question in taken(item, blocks))
    assert found == {(name, task, i): 1 for name, tasks in blocks.items() for task in tasks for i in range(tasks[task])}


@pytest.mark.parametrize("last", [512, 4, 300])
@pytest.mark.parametrize(
    ("n", "stages", "expected"), [(2, 6, 18), (4, 6, 18), (5, 6, 18), (19, 6, 24), (35, 6, 36), (2, 24, 48)]
)
def test_items_that_are_all_under_way_at_once_are_alike_and_as_many_for_each_actor(plan, n, stages, expected, last):
    blocks = made(n, last)
    items = everything(plan, blocks, total(blocks), stages)
    sizes = [len(taken(item, blocks)) for item in items]
    assert len(items) in (expected, expected - stages)  # with a short last block
    assert max(sizes) - min(sizes) <= 6
    assert all(len(item) <= 3 for item in items)  # each reads few blocks
    assert all(set(part.tasks) == set(TASKS) for item in items for part in item)


def test_early_and_late_questions_of_a_block_are_in_every_item(plan):
    """The longest come first: they would else be one actor's."""
    blocks = made(1)
    for item in everything(plan, blocks, total(blocks), stages=6):
        numbers = [i for _, _, i in taken(item, blocks)]
        assert sum(numbers) / len(numbers) == pytest.approx(sum(range(171)) / 171, rel=0.15)


def test_of_a_long_input_each_model_has_work_until_the_end(plan):
    blocks = {str(i): {"multiple_choice": 342, "summarization": 85, "generation": 85} for i in range(60)}
    items = [{task for part in item for task in part.tasks} for item in everything(plan, blocks, total(blocks), 6)]
    choices = [i for i, tasks in enumerate(items) if tasks == {"multiple_choice"}]
    texts = [i for i, tasks in enumerate(items) if tasks == {"summarization", "generation"}]  # by the other model
    assert len(choices) + len(texts) == len(items)
    for kind in (choices, texts):
        for k in range(4):
            assert len([i for i in kind if k / 4 <= i / len(items) < (k + 1) / 4]) == pytest.approx(
                len(kind) / 4, abs=1
            )


@pytest.mark.parametrize("ordered", [False, True])
def test_of_a_long_input_texts_come_first_where_one_model_answers_all(tmp_path, ordered):
    plan, blocks = prepare(tmp_path, rows(1)).plan, made(60, ordered=ordered)
    items = everything(plan, blocks, total(blocks), stages=6)
    kinds = [{question[1] for question in taken(item, blocks)} == {"multiple_choice"} for item in items]
    assert kinds == sorted(kinds)
    assert sum(kinds) == pytest.approx(len(items) / 3, abs=6)
    sizes = [len(taken(item, blocks)) for item in items]
    assert max(sizes) <= 520


@pytest.mark.parametrize(("questions", "expected"), [(3, 3), (50, 6), (250, 12)])
def test_few_questions_are_cut_into_few_items(questions, expected):
    assert len(shares([(Part("a"), 2), (Part("b"), 300)], questions, stages=6)) == expected


@pytest.mark.parametrize(("items", "stages", "expected"), [(18, 6, 3), (1, 1, 1), (2, 6, 1), (500, 6, CALLS)])
def test_nobody_holds_more_items_than_a_share(items, stages, expected):
    assert calls(items, stages) == expected


def test_a_stage_actor_that_is_ready_late_gets_its_share_all_the_same(tmp_path):
    work = prepare(tmp_path, rows(2))
    first, last = simulate(work, (1.0,) * 8, late=0.01).stages
    assert first + last == work.tasks.total()
    assert 0.8 < first / last < 1.25


def test_models_side_by_side_take_no_longer_than_the_slower_one_alone(tmp_path):
    """The texts of one model, which take long, do not keep the choices from the other."""
    everybody = list(rows(8))
    texts = [row for row in everybody if row["task"] != "multiple_choice"]
    seconds = []
    for name, some in (("texts", texts), ("both", everybody)):
        folder = tmp_path / name
        folder.mkdir()
        seconds.append(simulate(prepare(folder, some, writer="smollm2_gptq"), (1.0,)).seconds)
    assert seconds[1] <= 1.05 * seconds[0]
