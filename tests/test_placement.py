"""Waves and engines: tables worked out by hand, a search over all partitions, and the plan that a dry run prints."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble import costs, models
from ensemble.config import ROOT, RayConfig, RunConfig
from ensemble.errors import ConfigError
from ensemble.load import load_config
from ensemble.placement import Need, check_adaptive, cpu_share, gpus_here, nodes_of, pack, place, waves
from ensemble.plan import Plan, make_plan
from ensemble.read import InputSummary, Selection, read_questions
from pipelines.summary import print_plan


def need(model: str, gpus: int = 1, work: float = 1.0, replicas: int | str = "auto") -> Need:
    return Need(model, gpus, replicas, work)  # type: ignore[arg-type]


A, B, C = need("a"), need("b"), need("c")

TABLE = [
    # One model takes all GPUs, in engines of its size.
    ([A], [1], [{"a": 1}]),
    ([A], [8], [{"a": 8}]),
    ([A], [4, 4], [{"a": 8}]),
    ([need("a", 2)], [8], [{"a": 4}]),
    ([need("a", 2)], [3, 3], [{"a": 2}]),  # a GPU of each node has no other of its node
    ([need("a", 4)], [7], [{"a": 1}]),
    # Several at once: the spare GPUs go where most work waits for each GPU.
    ([A, B], [2], [{"a": 1, "b": 1}]),
    ([A, B], [8], [{"a": 4, "b": 4}]),
    ([need("a", 1, 3.0), need("b", 1, 1.0)], [8], [{"a": 6, "b": 2}]),
    ([need("a", 1, 0.0), need("b", 1, 0.0)], [4], [{"a": 2, "b": 2}]),
    ([need("a", 2, 1.0), need("b", 1, 1.0)], [8], [{"a": 2, "b": 4}]),  # equal work: equal GPUs
    ([need("a", 2, 30.0), need("b", 1, 1.0)], [6], [{"a": 2, "b": 2}]),  # a third engine of a would need b's GPU
    ([need("a", 4, 9.0), need("b", 1, 1.0)], [8], [{"a": 1, "b": 4}]),
    ([need("a", 2), need("b", 2), C], [4, 2], [{"a": 1, "b": 1, "c": 2}]),
    # They do not fit at once: as few waves as possible, work balanced.
    ([A, B], [1], [{"a": 1}, {"b": 1}]),
    ([A, B, C], [2], [{"a": 1, "b": 1}, {"c": 2}]),
    ([need("a", 1, 5.0), B, need("c", 1, 5.0)], [2], [{"a": 1, "c": 1}, {"b": 2}]),  # 5 + 0.5, not 5 + 2.5
    ([need("a", 2, 9.0), need("b", 1, 9.0), need("c", 1, 1.0)], [2], [{"a": 1}, {"b": 1, "c": 1}]),
    ([need("a", 8), need("b", 4), need("c", 4)], [8], [{"a": 1}, {"b": 1, "c": 1}]),
    ([need("a", 4), need("b", 2), need("c", 2)], [4, 2], [{"a": 1, "b": 1}, {"c": 3}]),
    # What is fixed stays, and the rest shares what is left.
    ([need("a", 1, 1.0, 2), B], [8], [{"a": 2, "b": 6}]),
    ([need("a", 1, 1.0, 2), need("b", 1, 1.0, 1)], [8], [{"a": 2, "b": 1}]),
    ([need("a", 2, 1.0, 2), need("b", 1)], [4], [{"a": 2}, {"b": 4}]),
    # Engines on CPUs are in the first wave with all of theirs.
    ([need("a", 0)], [], [{"a": 1}]),
    ([need("a", 0, 1.0, 3), B, C], [1], [{"a": 3, "b": 1}, {"c": 1}]),
    ([B, C, need("a", 0)], [1], [{"b": 1, "a": 1}, {"c": 1}]),
    ([], [4], []),
]  # fmt: skip


@pytest.mark.parametrize(("needs", "nodes", "expected"), TABLE)
def test_waves_and_engines(needs: list[Need], nodes: list[int], expected: list[dict[str, int]]) -> None:
    assert [wave.engines for wave in waves(needs, nodes)] == expected


def test_models_that_are_needed_together_share_a_wave() -> None:
    needs = [need("a", 1, 5.0), B, need("c", 1, 5.0)]
    assert [set(wave.engines) for wave in waves(needs, [2])] == [{"a", "c"}, {"b"}]
    assert [set(wave.engines) for wave in waves(needs, [2], [["a", "b"]])] == [{"a", "b"}, {"c"}]
    # Together before few: two waves of three and one GPUs would part b from d.
    needs = [need("a", 2), B, need("c", 3), need("d", 3)]
    assert [set(wave.engines) for wave in waves(needs, [5], [["b", "d"]])] == [{"a", "c"}, {"b", "d"}]
    needs = [need("a", 3), need("b", 3), need("c", 1), need("d", 1)]
    assert len(waves(needs, [4])) == 2
    assert [set(w.engines) for w in waves(needs, [4], [["c", "d"]])] == [{"a"}, {"b"}, {"c", "d"}]


@pytest.mark.parametrize(
    ("needs", "nodes", "message"),
    [
        ([need("m", 4)], [2, 2], "model m: an engine's 4 GPUs must be of one node, and the largest node has 2: lower"),
        ([A, need("m", 2)], [1] * 8, "the largest node has 1: lower engine.tensor_parallel_size"),
        ([need("m")], [], "model m needs a GPU and there is none: set models.m.engine.device: cpu"),
        ([need("m")], [0], "there is none"),
        (
            [need("m", 2, 1.0, 5)],
            [8],
            "model m: engine.replicas: 5 of 2 GPUs each need 10, and there is room for 4 (GPUs of each node: 8): "
            "set it to 4, or auto",
        ),
        ([need("m", 2, 1.0, 3)], [3, 3], "3 of 2 GPUs each need 6, and there is room for 2 (GPUs of each node: 3, 3)"),
    ],
)
def test_what_has_no_place_is_refused_with_numbers_and_cure(needs: list[Need], nodes: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        waves(needs, nodes)
    assert "\n" not in str(caught.value)


def exactly_packed(sizes: tuple[int, ...], nodes: list[int]) -> bool:
    """Whether any of all assignments fits."""
    for places in product(range(len(nodes)), repeat=len(sizes)):
        used = Counter[int]()
        for place_, size in zip(places, sizes, strict=True):
            used[place_] += size
        if all(used[node] <= gpus for node, gpus in enumerate(nodes)):
            return True
    return False


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, *rest = items
    for partition in partitions(rest):
        yield [[first], *partition]
        for i, part in enumerate(partition):
            yield [*partition[:i], [first, *part], *partition[i + 1 :]]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=5),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.lists(st.integers(0, 20), min_size=5, max_size=5),
)
def test_no_partition_needs_fewer_waves(sizes: list[int], nodes: list[int], work: list[int]) -> None:
    sizes = [min(size, 2 ** (max(nodes).bit_length() - 1)) for size in sizes]  # so that each fits alone
    needs = [need(str(i), size, work[i]) for i, size in enumerate(sizes)]
    found = waves(needs, nodes)
    fewest = min(
        len(partition)
        for partition in partitions(list(range(len(sizes))))
        if all(exactly_packed(tuple(sizes[i] for i in part), nodes) for part in partition)
    )
    assert len(found) == fewest
    assert sorted(model for wave in found for model in wave.engines) == sorted(map(str, range(len(sizes))))
    for wave in found:
        engines = [sizes[int(model)] for model, n in wave.engines.items() for _ in range(n)]
        assert_packed(engines, nodes)
        # And no engine more has room.
        assert all(pack([*engines, sizes[int(model)]], nodes) is None for model in wave.engines)


def assert_packed(sizes: list[int], nodes: list[int]) -> None:
    placed = pack(sizes, nodes)
    assert placed is not None
    used = Counter[int]()
    for node, size in zip(placed, sizes, strict=True):
        used[node] += size
    assert all(used[node] <= nodes[node] for node in used)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=6),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_packing_succeeds_whenever_it_is_possible(sizes: list[int], nodes: list[int]) -> None:
    if exactly_packed(tuple(sizes), nodes):
        assert_packed(sizes, nodes)
    else:
        assert pack(sizes, nodes) is None


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 3) | st.just("auto")), min_size=1, max_size=6),
    st.lists(st.integers(8, 24), min_size=3, max_size=8),
)
@settings(max_examples=40)
def test_odd_sizes_and_fixed_replicas_are_never_placed_over_what_there_is(
    wanted: list[tuple[int, int | str]], nodes: list[int]
) -> None:
    found = waves([need(str(i), gpus, i, replicas) for i, (gpus, replicas) in enumerate(wanted)], nodes)
    for wave in found:
        assert_packed([wanted[int(m)][0] for m, n in wave.engines.items() for _ in range(n)], nodes)
        assert all(n == wanted[int(m)][1] for m, n in wave.engines.items() if wanted[int(m)][1] != "auto")
    assert sum(len(wave.engines) for wave in found) == len(wanted)


def test_a_large_cluster_with_many_models_is_planned_too() -> None:
    needs = [need(str(i), 2 ** (i % 4), 1.0 + i) for i in range(14)]
    (only,) = waves(needs[:10], [8] * 16)
    assert sum(n * 2 ** (int(model) % 4) for model, n in only.engines.items()) == 128
    assert sum(len(wave.engines) for wave in waves(needs, [8])) == 14


@pytest.mark.parametrize(
    ("config", "found", "nodes"),
    [
        ({}, [8, 8], [8, 8]),
        ({}, [], []),
        ({"gpus": 8}, [1], [8]),
        ({"gpus": 8, "gpus_per_node": 4}, [], [4, 4]),
        ({"gpus": 10, "gpus_per_node": 4}, [], [4, 4, 2]),
        ({"gpus": 2, "gpus_per_node": 4}, [], [2]),
        ({"gpus_per_node": 4}, [8], [8]),
    ],
)
def test_the_nodes_that_are_planned_with(config: dict[str, int], found: list[int], nodes: list[int]) -> None:
    assert nodes_of(RayConfig(**config), found) == nodes


@pytest.mark.parametrize(("shown", "gpus"), [(None, 3), ("0,2", 2), ("", 0), ("-1", 0), ("0,1,2,3,4", 3)])
def test_gpus_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: str | None, gpus: int) -> None:
    monkeypatch.setattr(models, "DEV", tmp_path)
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert gpus_here() == gpus


# Two models of one billion parameters each in shape, on GPUs; neither is there.
CONFIG = """
models:
  one: {source: {path: /none/one}, context_length: 1000, shape: SHAPE, engine: {device: cuda, hardware: L4}}
  two: {source: {path: /none/two}, context_length: 1000, shape: SHAPE, engine: {device: cuda, hardware: L4}}
  small: {source: {path: /none/small}, context_length: 1000, engine: {device: cpu}}
templates:
  ask: {question: "{{ text }}{% for c in choices %} {{ c.label }} {{ c.text }}{% endfor %}"}
  free: {question: "{{ text }}"}
tasks: TASKS
input: IN
store: {path: STORE}
"""
SHAPE = "{parameters: 2.0, bits: 16, layers: 16, kv_heads: 8, head_dim: 64}"
LETTER = "{model: MODEL, template: ask, scoring: {method: letter, orders: ORDERS}}"


def planned(folder: Path, tasks: str, rows: list[dict[str, object]], *more: str) -> tuple[Plan, InputSummary]:
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(CONFIG.replace("SHAPE", SHAPE).replace("TASKS", tasks))
    return plan_of(load_config(folder / "run.yaml", more), folder)


def plan_of(config: RunConfig, folder: Path) -> tuple[Plan, InputSummary]:
    read = read_questions(str(folder / "in.jsonl"), folder / "blocks", Selection(), lambda error: None)
    return make_plan(config, list(read.by_task), lambda model: "files", read.blocks), read


def choice(i: int, text: str = "x" * 40) -> dict[str, object]:
    return {"id": f"c{i}", "task": "multiple_choice", "text": text, "choices": ["aaaaaa", "bbbbbb", "cccccc"]}


def both(orders: str) -> str:
    members = ", ".join(LETTER.replace("MODEL", model).replace("ORDERS", orders) for model in ("one", "two"))
    return f"{{multiple_choice: {{members: [{members}], combine: mean_prob}}}}"


def test_work_counts_computed_tokens_times_parameters(tmp_path: Path) -> None:
    tasks = (
        "{multiple_choice: {members: ["
        + LETTER.replace("MODEL", "one").replace("ORDERS", "cyclic")
        + "]}, generation: {members: [{model: small, template: free, sampling: {max_tokens: 10}}]}}"
    )
    rows = [choice(i) for i in range(4)] + [{"id": f"g{i}", "task": "generation", "text": "y" * 80} for i in range(100)]
    plan, read = planned(tmp_path, tasks, rows)
    # 40 + 3 * (1 + 1 + 1 + 6) = 67 characters: 16 tokens; 43 of them (" A ") stand before the options differ: 10.
    # 3 orders compute 16 + 2 * 6 = 28 tokens, of 2 billion parameters, for 4 questions: 224.
    # 80 characters are 20 tokens and 10 new ones count 4 each: 60, of a model of unknown size, for 100 questions.
    found = costs.needs(plan, read.blocks, Counter({"multiple_choice": 4, "generation": 100}))
    assert found == [Need("one", 1, "auto", 224.0), Need("small", 0, "auto", 6000.0)]
    # Only what is missing counts, and a model of stored answers is not started.
    assert costs.needs(plan, read.blocks, Counter({"multiple_choice": 1, "generation": 0})) == [
        Need("one", 1, "auto", 56.0)
    ]
    (planned_one,) = plan.tasks["multiple_choice"]
    asked = costs.samples(plan, read.blocks, {"multiple_choice": 4})["multiple_choice"]
    assert costs.cost(plan, "multiple_choice", planned_one, asked, 4) == (12, 12 * 16, 4 * 28)


def test_models_that_vote_adaptively_together_need_their_gpus_at_once(tmp_path: Path) -> None:
    plan, read = planned(tmp_path, both("adaptive"), [choice(i) for i in range(3)])
    needs = costs.needs(plan, read.blocks, read.by_task)
    assert [wave.engines for wave in place(plan, needs, [2])] == [{"one": 1, "two": 1}]
    with pytest.raises(ConfigError) as caught:
        place(plan, needs, [1])
    for word in ("tasks.multiple_choice: orders: adaptive", "one 1, two 1", "latin:2", "quantize", "more GPUs"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="adaptive"):
        check_adaptive(plan, waves(needs, [1]))


def test_votes_over_fixed_orders_may_come_in_waves(tmp_path: Path) -> None:
    plan, read = planned(tmp_path, both("cyclic"), [choice(i) for i in range(3)])
    needs = costs.needs(plan, read.blocks, read.by_task)
    assert [wave.engines for wave in place(plan, needs, [1])] == [{"one": 1}, {"two": 1}]


def cells(text: str, title: str) -> list[list[str]]:
    """The rows of the printed table of that title, without its head."""
    lines = text[text.index(title) :].splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def printed(plan: Plan, read: InputSummary, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    print_plan(plan, read, Counter(read.by_task), folder / "store", folder / "out")
    return capsys.readouterr().out


def test_the_dry_run_of_the_matsuo_config_on_eight_l4s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [
        {"id": i, "task": "multiple_choice", "text": "問" * 100, "choices": [c * 10 for c in "一二三四五"]}
        for i in range(30)
    ]
    rows += [{"id": f"s{i}", "task": "summarization", "text": "記" * 1000} for i in range(10)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(ROOT / "configs/matsuo_l4.yaml", ["ray.gpus=8", "input=in.jsonl"])
    plan, read = plan_of(config, tmp_path)
    # A choice: 163 Japanese and 36 other characters, 163 + 9 = 172 tokens; 105 and 11 of them, 107 tokens, stand
    # before the options. Five orders compute 172 + 4 * 65 = 432 tokens: 30 * 432 * 69 = 894,240 (77%).
    # A summary: 1,006 tokens of prompt and 256 new ones that count 4 each: 10 * 2,030 * 13 = 263,900.
    # Both take two GPUs an engine. Of 447,120 and 131,950 a GPU the first gets another engine (223,560), and then the
    # last one (149,040).
    out = printed(plan, read, tmp_path, capsys)
    assert cells(out, "waves on 8 GPUs (ray.gpus)") == [
        ["1 of 1", "8", "0", "stablebeluga2_70b_gptq", "3", "2", "77%"],
        ["", "", "", "openorca_stx", "1", "2", "23%"],
    ]
    assert out.count(": fits") == 2


def test_the_dry_run_of_the_matsuo_config_on_fewer_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": i, "task": "multiple_choice", "text": "問", "choices": ["答", "別"]} for i in range(3)]
    rows += [{"id": f"s{i}", "task": "summarization", "text": "記" * 50} for i in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(ROOT / "configs/matsuo_l4.yaml", ["ray.gpus=3", "input=in.jsonl"])
    plan, read = plan_of(config, tmp_path)
    found = cells(printed(plan, read, tmp_path, capsys), "waves on 3 GPUs (ray.gpus)")
    assert [row[:6] for row in found] == [
        ["1 of 2", "2", "1", "stablebeluga2_70b_gptq", "1", "2"],
        ["2 of 2", "2", "1", "openorca_stx", "1", "2"],
    ]
    plan = plan._replace(config=load_config(ROOT / "configs/matsuo_l4.yaml", ["ray.gpus=8", "ray.gpus_per_node=1"]))
    with pytest.raises(ConfigError, match="2 GPUs must be of one node, and the largest node has 1"):
        printed(plan, read, tmp_path, capsys)


def test_without_any_gpu_known_one_engine_a_model_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "DEV", tmp_path)
    plan, read = planned(tmp_path, both("cyclic"), [choice(i) for i in range(3)])
    out = printed(plan, read, tmp_path, capsys)
    assert "waves on 2 GPUs (assumed, enough for all models at once; name yours: --set ray.gpus=N)" in " ".join(
        out.split()
    )
    assert [row[:6] for row in cells(out, "waves on")] == [
        ["1 of 1", "2", "0", "one", "1", "1"],
        ["", "", "", "two", "1", "1"],
    ]
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    out = printed(plan, read, tmp_path, capsys)
    assert "waves on 1 GPU (of this machine)" in out
    assert [row[0] for row in cells(out, "waves on")] == ["1 of 2", "2 of 2"]


@pytest.mark.parametrize(("engines", "cpus"), [(1, 1), (1, 2), (4, 2), (8, 2), (3, 1), (2, 64)])
def test_engines_on_cpus_leave_half_of_them_to_stage_actors(engines, cpus):
    share = cpu_share(engines, cpus)
    assert 0 < share <= 0.5
    assert cpus - engines * share >= cpus / 2
