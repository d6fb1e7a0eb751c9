"""The shipped templates against the prompts that competitions published, and against what a model was trained on."""

import json
from pathlib import Path

import pytest

from ensemble.config import ROOT, Shots, Template
from ensemble.errors import ConfigError, UnaskableError
from ensemble.load import load_config, read_yaml
from ensemble.plan import make_plan, member_description, store_hash
from ensemble.questions import parse_question
from ensemble.records import Question
from ensemble.render import Renderer, join_plain, uses_group
from ensemble.trained import prompt_warnings
from tests.conftest import question


def load(name: str, **changes: object) -> Template:
    record = read_yaml(ROOT / "configs/templates" / f"{name}.yaml")
    return Template.model_validate_json(json.dumps(record)).model_copy(update=changes)


def prompt(template: Template, q: Question, shown: str = "label", shots: int = 99) -> str:
    renderer = Renderer("t", template, shown)
    turns = renderer.turns(q, tuple(range(len(q.choices))), q.text, q.context, shots)
    return join_plain(turns, template.separator)


def write(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def choice_row(i: int, group: str, answer: int = 1, **fields: object) -> dict[str, object]:
    row = {"id": f"{group}{i}", "task": "multiple_choice", "text": f"{group} {i}?", "choices": ["no", "yes"]}
    return row | {"answer": answer, "group": group} | fields


# Written down from HELM's adapters: blocks end in a newline and are joined by one, so a blank line sets them apart.
HELM = {
    "helm_mmlu": (
        choice_row(1, "us_history"),
        "The following are multiple choice questions (with answers) about us history.\n\n"
        "Question: us_history 1?\nA. no\nB. yes\nAnswer: B\n\nQuestion: What?\nA. this\nB. that\nAnswer:",
    ),
    "helm_multiple_choice": (
        choice_row(1, "x", 0),
        "Question: x 1?\nA. no\nB. yes\nAnswer: A\n\nQuestion: What?\nA. this\nB. that\nAnswer:",
    ),
    "helm_bbq": (
        choice_row(1, "x", context="One came."),
        "The following are multiple choice questions (with answers).\n\n"
        "Passage: One came.\nQuestion: x 1?\nA. no\nB. yes\nAnswer: B\n\n"
        "Passage: Two met.\nQuestion: What?\nA. this\nB. that\nAnswer:",
    ),
    "helm_bigbench": (
        choice_row(1, "x"),
        "Answer truly.\n\n\nQuestion: x 1?\nA. no\nB. yes\nAnswer: B\n\nQuestion: What?\nA. this\nB. that\nAnswer:",
    ),
}


@pytest.mark.parametrize("name", HELM)
def test_helms_multiple_choice_prompts(tmp_path, name):
    row, expected = HELM[name]
    context = {"helm_bbq": "Two met.", "helm_bigbench": "Answer truly.\n\n"}.get(name)
    template = load(name, shots=Shots(file=write(tmp_path / "shots.jsonl", row), n=1))
    assert prompt(template, question("What?", ("this", "that"), group="us_history", context=context)) == expected


def test_helms_bigbench_prompt_without_options_and_prefix():
    assert prompt(load("helm_bigbench"), question("7 + 5?", (), "generation")) == "Question: 7 + 5?\nAnswer:"


def test_helms_summary_prompt(tmp_path):
    row = {"id": 1, "task": "summarization", "text": "Snow fell.", "summary": "It snowed."}
    template = load("helm_summary", shots=Shots(file=write(tmp_path / "shots.jsonl", row), n=1))
    asked = question("It  rained\n" + "on and " * 400, (), "summarization")
    assert prompt(template, asked) == (
        "###\nArticle: Snow fell.\n\nSummarize the above article in 3 sentences.\nIt snowed.\n\n"
        f"###\nArticle: It rained {' '.join(['on and'] * 255)}\n\nSummarize the above article in 3 sentences."
    )


def test_helms_gsm8k_prompt(tmp_path):
    solution = "Ann has 2 + 3 = <<2+3=5>>5 pens.\nThat is 5.\n#### 5"
    rows = (
        {"id": 1, "task": "math", "text": "Pens?", "answer": "5", "solution": solution},
        {"id": 2, "task": "math", "text": "Cups?", "answer": "6", "solution": "There are 6. The answer is 6."},
    )
    template = load("helm_gsm8k", shots=Shots(file=write(tmp_path / "shots.jsonl", *rows), n=2))
    assert prompt(template, question("Hats?", (), "math")) == (
        "Q: Pens?\nA: Ann has 2 + 3 = <<2+3=5>>5 pens. That is 5. The answer is 5.\n\n"
        "Q: Cups?\nA: There are 6. The answer is 6.\n\nQ: Hats?\nA:"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("matsuo_choice", "[問題]:空は？\n[選択肢]:[1. 青, 2. 赤, 3. 白]\n[答えの選択肢番号]:"),
        ("matsuo_summary", "空は？\n上記の文章を要約してください。要約:"),
        ("xlsum", "記事：\n空は？\n\n要約："),
        ("matsuo_generation", "次の質問に日本語で簡潔に答えてください。\n質問:空は？\n回答:"),
    ],
)
def test_prompts_of_the_matsuo_competition(name, expected):
    assert prompt(load(name), question("空は？", ("青", "赤", "白"))) == expected


def test_every_shipped_template_renders_every_task_it_is_for():
    for file in sorted((ROOT / "configs/templates").glob("*.yaml")):
        for q in (question(), question("What?", (), "generation", context="A passage.", group="g")):
            assert q.text in prompt(load(file.stem), q), file


# --- worked examples


def test_shots_of_the_questions_own_group(tmp_path):
    rows = [choice_row(i, group) for i in range(3) for group in ("art", "law")]
    template = load("letters", shots=Shots(file=write(tmp_path / "dev.jsonl", *rows), n=2, by_group=True))
    text = prompt(template, question("What?", group="law"))
    assert [line for line in text.splitlines() if line.startswith("Question")] == [
        "Question: law 0?", "Question: law 1?", "Question: What?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("group", "n", "message"),
    [
        ("sport", 1, r"0 rows of group 'sport' for 1 shots"),
        (None, 1, "group None"),
        ("art", 3, "2 rows of group 'art'"),
    ],
)
def test_a_group_with_too_few_shots_is_named(tmp_path, group, n, message):
    file = write(tmp_path / "dev.jsonl", choice_row(1, "art"), choice_row(2, "art"))
    template = load("letters", shots=Shots(file=file, n=n, by_group=True))
    with pytest.raises(UnaskableError, match=message):
        prompt(template, question(group=group))


def test_the_asked_question_is_not_its_own_worked_example(tmp_path):
    rows = [choice_row(i, "x") for i in range(3)]
    template = load("letters", shots=Shots(file=write(tmp_path / "dev.jsonl", *rows), n=3))
    assert prompt(template, question("x 1?", ("no", "yes"))).count("x 1?") == 1
    assert prompt(template, question("x 1?", ("yes", "no"))).count("x 1?") == 2  # other options: another question


def test_a_shot_with_more_options_than_labels_is_refused(tmp_path):
    file = write(tmp_path / "dev.jsonl", choice_row(1, "x", 2, choices=["a", "b", "c"]))
    template = load("letters", shots=Shots(file=file, n=1), labels=("X", "Y"))
    with pytest.raises(ConfigError, match=r"line 1: 3 options.*only 2 labels \(X, Y\)"):
        prompt(template, question("What?", ("no", "yes")))


# --- the store's key


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"question": "{{ group }}: {{ text }}"}, True),
        ({"prefill": "{% if group == 'x' %}!{% endif %}"}, True),
        ({"question": "the group of {{ text }}"}, False),
        ({"shots": Shots(file="f", n=1)}, False),
        ({"shots": Shots(file="f", n=1, by_group=True)}, True),
    ],
)
def test_whether_a_prompt_depends_on_the_group(changes, expected):
    assert uses_group(load("letters", **changes)) is expected


def test_only_prompts_that_depend_on_the_group_are_kept_by_it():
    config = load_config(ROOT / "configs/demo.yaml")
    (member,) = make_plan(config, ["multiple_choice"]).tasks["multiple_choice"]
    a, b, none, empty = (question(group=group) for group in ("a", "b", None, ""))
    assert store_hash(a, member) == store_hash(b, member) == a.hash
    hashes = {store_hash(q, member._replace(by_group=True)) for q in (a, b, none, empty)}
    assert len(hashes) == 4
    assert all(len(h) == 16 for h in hashes)


def test_a_plan_says_which_members_depend_on_the_group():
    config = load_config(ROOT / "configs/demo.yaml", ["tasks.multiple_choice.members.0.template=helm_mmlu"])
    by_group = {task: m.by_group for task, (m,) in make_plan(config, list(config.tasks)).tasks.items()}
    assert by_group == {"multiple_choice": True, "math": False, "generation": False, "summarization": False}


def test_the_key_covers_the_shots_that_some_question_sees(tmp_path):
    config = load_config(ROOT / "configs/demo.yaml")
    member, model = config.tasks["multiple_choice"].members[0], config.models["smollm2_gptq"]

    def key(*rows: dict[str, object], n: int = 1, by_group: bool = True) -> str:
        file = write(tmp_path / "dev.jsonl", *rows)
        template = load("letters", shots=Shots(file=file, n=n, by_group=by_group))
        return str(member_description(member, model, template, "cpu", "files")["shots"])

    art, law, more = choice_row(1, "art"), choice_row(1, "law"), choice_row(2, "art")
    assert key(art, law) != key(art)
    assert key(art, law) == key(art, law, more)  # nobody sees the second of art
    assert key(art, law) != key(art, law, by_group=False)
    assert key(art, by_group=False) == key(art, law, by_group=False)


# --- what a model was trained on

TASKS = ["multiple_choice", "math", "generation", "summarization"]


@pytest.mark.parametrize(
    ("trained_on", "overrides", "expected"),
    [
        ("{}", [], []),
        ("{summarization: chat_summary, multiple_choice: cloze}", [], []),
        (
            "{summarization: xlsum}",
            ["tasks.summarization.members.0.template=summary"],
            [
                "smollm2_gptq/summary: the model was trained on prompts of template 'xlsum'; this one differs from "
                "line 1 on, '###' instead of '記事：': set template: xlsum, or expect less of it"
            ],
        ),
        (
            "{multiple_choice: letters}",
            [],
            [
                "smollm2_gptq/cloze: the model was trained on prompts of template 'letters'; this one differs from "
                "line 2 on, 'Answer: red' instead of 'A. red': set template: letters, or expect less of it"
            ],
        ),
    ],
)
def test_prompts_of_another_form_than_trained(trained_on, overrides, expected):
    config = load_config(ROOT / "configs/demo.yaml", [f"models.smollm2_gptq.trained_on={trained_on}", *overrides])
    assert prompt_warnings(config, TASKS) == expected
    assert prompt_warnings(config, []) == []


@pytest.mark.parametrize(
    ("template", "trained", "found"),
    [
        ({"separator": "\n"}, {}, "line 2 on, 'Q: A question.' instead of ''"),
        ({"answer": "{{ answer }}"}, {}, "line 4 on, 'A:An answer.' instead of 'A: An answer.'"),
        ({"format": "chat"}, {}, "writes chat turns instead of running text"),
        ({}, {"format": "chat"}, "writes running text instead of chat turns"),
        ({"shots": {"file": "f.jsonl", "n": 3}}, {}, "shows 3 worked examples instead of 0"),
        ({"question": "{{ context or '' }}{{ text }}A:"}, {"question": "{{ text }}A:"}, "'A passage.A question.A: An"),
        ({"description": "other words"}, {}, None),
    ],
)
def test_the_first_difference_is_named(template, trained, found):
    base = {"instruction": "Solve.", "question": "Q: {{ text }}\nA:"}
    texts = {"asked": base | template, "learnt": base | trained}
    config = load_config(
        ROOT / "configs/demo.yaml",
        [
            f"templates={json.dumps(texts)}",
            "tasks={math: {members: [{model: smollm2_gptq, template: asked}]}}",
            "models.smollm2_gptq.trained_on={math: learnt}",
        ],
    )
    warnings = prompt_warnings(config, ["math"])
    assert len(warnings) == (found is not None)
    assert not found or found in warnings[0]


def at(folder: Path) -> str:
    return f"models.smollm2_gptq.source={{path: {folder}, package: null, file: null, sha256: null}}"


def test_a_checkpoint_folder_says_what_it_was_trained_on(tmp_path):
    file = tmp_path / "quorum_prompt.yaml"
    file.write_text('question: "### 質問\\n{{ text }}\\n### 回答"\nanswer: "\\n{{ answer }}"\n', encoding="utf-8")
    template = "tasks.generation.members.0.template="
    other = load_config(ROOT / "configs/demo.yaml", [at(tmp_path), template + "matsuo_generation"])
    (warning,) = prompt_warnings(other, ["generation"])
    assert f"template '{file}'; this one differs from line 1 on, '次の質問に日本語で簡潔に" in warning
    same = load_config(ROOT / "configs/demo.yaml", [at(tmp_path), f"{template}{file}"])
    assert prompt_warnings(same, ["generation"]) == []


@pytest.mark.parametrize(
    ("content", "trained_on", "message"),
    [
        ("question: 3", "{}", r"quorum_prompt.yaml: question: Input should be a valid string"),
        ("question: x", "{math: xlsun}", "trained_on: unknown template 'xlsun'; did you mean 'xlsum'"),
    ],
)
def test_what_it_was_trained_on_must_be_readable(tmp_path, content, trained_on, message):
    (tmp_path / "quorum_prompt.yaml").write_text(content)
    overrides = [at(tmp_path), f"models.smollm2_gptq.trained_on={trained_on}"]
    with pytest.raises(ConfigError, match=message):
        prompt_warnings(load_config(ROOT / "configs/demo.yaml", overrides), ["math"])


def test_the_demos_shots_cover_every_group_of_its_questions():
    shots = Shots(file="configs/demo/shots_choice.jsonl", n=2, by_group=True)
    rows = map(json.loads, (ROOT / "configs/demo/questions.jsonl").read_text(encoding="utf-8").splitlines())
    asked = [parse_question(row, i, "f", i) for i, row in enumerate(rows) if row["task"] == "multiple_choice"]
    assert len(asked) == 34
    for q in asked:
        text = prompt(load("letters", shots=shots), q)
        assert text.count("Answer: ") == 2
        assert ("果物" in text) == (q.group == "japanese")
