"""How work is cut: everything once, in items of one size; and that nobody gets all of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytest

from benchmarks.competition import rows
from ensemble.plan import Plan
from ensemble.questions import parse_question
from ensemble.records import Question
from pipelines import stage
from pipelines.missing import Missing
from pipelines.work import CALLS, Part, calls, everything, shares
from tests.simulation import prepare, simulate

TASKS = ("multiple_choice", "summarization", "generation")
BLOCK = 512  # questions


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    """Choices by one model, texts of two tasks by another."""
    return prepare(tmp_path_factory.mktemp("plan"), rows(1), writer="smollm2_gptq").plan


@pytest.fixture(scope="module")
def one_model(tmp_path_factory) -> Plan:
    return prepare(tmp_path_factory.mktemp("plan"), rows(1)).plan


class Input(NamedTuple):
    blocks: dict[str, list[Question]]
    missing: list[Counter[str]]

    def items(self, plan: Plan, stages: int) -> list[list[Part]]:
        return everything(plan, dict(zip(self.blocks, self.missing, strict=True)), stages)


def question(row: int, task: str) -> Question:
    """Those of a task differ in length."""
    choices = {"choices": ["a", "b"]} if task == "multiple_choice" else {}
    found = parse_question(
        {"id": row, "task": task, "text": "x" * (1 + row * 7 % 101), **choices}, row, "in.jsonl", row
    )
    assert isinstance(found, Question)
    return found


def made(n: int, last: int = BLOCK, lacks: Callable[[int], bool] = lambda row: True, ordered: bool = False) -> Input:
    """Blocks of questions, a shorter last one, a third of each task; ordered: a task's come after another's. lacks:
    whether the store lacks a row."""
    size = BLOCK * (n - 1) + last
    everybody = [question(row, TASKS[3 * row // size if ordered else row % 3]) for row in range(size)]
    blocks = {str(i): everybody[BLOCK * i : BLOCK * (i + 1)] for i in range(n)}
    missing = Missing([Counter(q.task for q in block) for block in blocks.values()])
    for q in everybody:
        if lacks(q.row_index):
            missing.add(q)
    return Input(blocks, missing.blocks)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Input, Sequence[Part], Plan], list[Question]]:
    """What a stage actor makes of an item."""

    def found(given: Input, item: Sequence[Part], plan: Plan) -> list[Question]:
        def read(names: Iterable[str]) -> Any:
            return (given.blocks[name] for name in names)

        monkeypatch.setattr(stage, "iter_blocks", read)
        return stage.questions_of(list(item), plan)

    return found


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("last", [BLOCK, 1])
@pytest.mark.parametrize(("n", "stages"), [(1, 1), (1, 6), (6, 6), (7, 6), (40, 6), (3, 24), (50, 1)])
def test_every_question_is_in_one_item(plan, taken, n, stages, last, ordered):
    given = made(n, last, ordered=ordered)
    found = Counter(q.row_index for item in given.items(plan, stages) for q in taken(given, item, plan))
    assert found == Counter(range(BLOCK * (n - 1) + last))


@pytest.mark.parametrize(
    ("n", "last", "stages", "expected"),
    [
        (2, BLOCK, 6, 18),
        (4, 464, 6, 18),  # 2,000 questions
        (5, 4, 6, 18),
        (19, BLOCK, 6, 24),
        (19, 4, 6, 24),
        (35, BLOCK, 6, 36),
        (2, BLOCK, 24, 48),
        (3, BLOCK, 24, 72),
    ],
)
def test_items_that_are_all_under_way_at_once_are_alike_and_as_many_for_each_actor(
    plan, taken, n, last, stages, expected
):
    given = made(n, last)
    items = given.items(plan, stages)
    assert len(items) == expected
    tasks = [Counter(q.task for q in taken(given, item, plan)) for item in items]
    sizes = [found.total() for found in tasks]
    assert max(sizes) - min(sizes) <= 6
    assert all(set(found) == set(TASKS) for found in tasks)
    assert all(len(item) <= 3 for item in items)  # each reads few blocks


@pytest.mark.parametrize("n", [1, 4, 20])
def test_within_an_item_texts_come_first_and_then_the_longest(plan, taken, n):
    given = made(n)
    for item in given.items(plan, 6):
        found = [(q.task == "multiple_choice", -len(q.text)) for q in taken(given, item, plan)]
        assert found == sorted(found)


@pytest.mark.parametrize("n", [1, 4])
def test_long_and_short_questions_are_in_every_item(plan, taken, n):
    """They would else be one actor's."""
    given = made(n)
    everybody = [len(q.text) for block in given.blocks.values() for q in block]
    for item in given.items(plan, 6):
        lengths = [len(q.text) for q in taken(given, item, plan)]
        assert sum(lengths) / len(lengths) == pytest.approx(sum(everybody) / len(everybody), rel=0.15)


@pytest.mark.parametrize(
    "lacks",
    [
        lambda row: row >= 95 * BLOCK,  # a run that was stopped
        lambda row: row % (7 * BLOCK) < BLOCK,
        lambda row: row % 20 == 0,
        lambda row: row % BLOCK < 9,
    ],
)
def test_what_a_stopped_run_has_left_is_shared_evenly(plan, taken, lacks):
    given = made(100, lacks=lacks)
    lacking = {q.row_index for block in given.blocks.values() for q in block if lacks(q.row_index)}
    items = given.items(plan, 6)
    left = [{q.row_index for q in taken(given, item, plan)} & lacking for item in items]
    assert set().union(*left) == lacking
    assert sum(map(len, left)) == len(lacking)
    average = len(lacking) / len(items)
    assert all(average / 2.5 < len(some) < 2 * average for some in left)
    assert len(items) >= 18
    assert len(items) % 6 == 0
    assert all(len(item) <= 8 for item in items)  # nobody reads blocks for long


def test_of_a_long_input_each_model_has_work_until_the_end(plan, taken):
    given = made(60)
    items = [{q.task for q in taken(given, item, plan)} for item in given.items(plan, 6)]
    choices = [i for i, tasks in enumerate(items) if tasks == {"multiple_choice"}]
    texts = [i for i, tasks in enumerate(items) if tasks == {"summarization", "generation"}]  # by the other model
    assert len(choices) + len(texts) == len(items)
    for kind in (choices, texts):
        for k in range(4):
            assert len([i for i in kind if k / 4 <= i / len(items) < (k + 1) / 4]) == pytest.approx(
                len(kind) / 4, abs=1
            )


@pytest.mark.parametrize("ordered", [False, True])
def test_of_a_long_input_texts_come_first_where_one_model_answers_all(one_model, taken, ordered):
    given = made(60, ordered=ordered)
    found = [taken(given, item, one_model) for item in given.items(one_model, 6)]
    kinds = [{q.task for q in some} == {"multiple_choice"} for some in found]
    assert kinds == sorted(kinds)
    assert sum(kinds) == pytest.approx(len(found) / 3, abs=6)
    assert max(map(len, found)) <= 520


@pytest.mark.parametrize(("questions", "expected"), [(3, 3), (50, 6), (250, 12)])
def test_few_questions_are_cut_into_few_items(questions, expected):
    assert len(shares([(Part("a"), 2), (Part("b"), questions - 2)], stages=6)) == expected


def test_a_little_of_many_blocks_is_cut_for_all_actors_alike_and_not_too_finely():
    assert len(shares([(Part(str(i)), 25) for i in range(40)], stages=6)) == 24
    assert len(shares([(Part(str(i)), 1) for i in range(2000)], stages=6)) == 120  # of 16 questions


def test_nothing_to_do_is_no_item():
    assert shares([], stages=6) == []


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
