"""How work is cut, everything once; that nobody gets all of it; and that engines leave room for who does it."""

from collections import Counter

import pytest

from benchmarks.competition import rows
from ensemble.plan import Plan
from pipelines.pool import cpu_share
from pipelines.stream import STAGE_CPUS
from pipelines.work import CALLS, Part, calls, everything, shares
from tests.simulation import prepare, simulate

QUESTIONS = 512  # of a block
TASKS = ("multiple_choice", "summarization", "generation")


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """Choices by one model, texts of two tasks by another."""
    return prepare(tmp_path_factory.mktemp("plan"), rows(1), writer="smollm2_gptq").plan


def taken(part: Part) -> list[tuple[str, int]]:
    """What `pipelines.stage.questions_of` takes of a block of QUESTIONS."""
    k, n = part.share
    return [(part.block, row) for row in range(QUESTIONS)[k::n]]


@pytest.mark.parametrize(("blocks", "stages"), [(1, 1), (1, 6), (6, 6), (40, 6), (3, 24), (200, 24)])
def test_every_question_of_every_task_is_in_one_item(plan, blocks, stages):
    names = [str(i) for i in range(blocks)]
    missing = Counter(dict.fromkeys(TASKS, blocks * QUESTIONS // 3))
    items = everything(plan, names, missing, stages)
    found = Counter((task, *row) for (part,) in items for task in part.tasks for row in taken(part))
    assert found == Counter((task, name, row) for task in TASKS for name in names for row in range(QUESTIONS))


@pytest.mark.parametrize(("blocks", "stages", "expected"), [(2, 6, 18), (5, 6, 18), (20, 6, 24), (1, 24, 72)])
def test_items_that_are_all_under_way_at_once_are_alike_and_as_many_for_each_actor(plan, blocks, stages, expected):
    missing = Counter(dict.fromkeys(TASKS, 600 * blocks))
    items = everything(plan, [str(i) for i in range(blocks)], missing, stages)
    assert len(items) == expected
    assert all(set(part.tasks) == set(TASKS) for (part,) in items)


def test_of_a_long_input_each_model_has_work_until_the_end(plan):
    missing = Counter({"multiple_choice": 20_000, "summarization": 5000, "generation": 5000})
    items = [set(part.tasks) for (part,) in everything(plan, [str(i) for i in range(60)], missing, stages=6)]
    choices = [i for i, tasks in enumerate(items) if tasks == {"multiple_choice"}]
    assert len(choices) == len(items) / 2  # the other half are texts, by the other model
    for k in range(10):
        assert len([i for i in choices if k / 10 <= i / len(items) < (k + 1) / 10]) == len(items) / 20


def test_of_a_long_input_texts_come_first_where_one_model_answers_all(tmp_path):
    plan = prepare(tmp_path, rows(1)).plan
    missing = Counter(dict.fromkeys(TASKS, 10_000))
    items = everything(plan, [str(i) for i in range(60)], missing, stages=6)
    assert [part.tasks == ["multiple_choice"] for (part,) in items] == [False] * 60 + [True] * 60


@pytest.mark.parametrize(("questions", "expected"), [(3, 3), (50, 6), (250, 12)])
def test_few_questions_are_cut_into_few_items(questions, expected):
    assert len(shares([Part("a"), Part("b")], questions, stages=6)) == expected


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


@pytest.mark.parametrize(("engines", "cpus"), [(1, 1), (1, 2), (4, 2), (8, 2), (3, 1), (2, 64)])
def test_engines_on_cpus_leave_room_for_a_stage_actor(engines, cpus):
    share = cpu_share(engines, cpus)
    assert 0 < share <= 0.5
    assert cpus - engines * share >= max(STAGE_CPUS, cpus / 2)
