"""What a model is shown: texts against the published blocks, tokens against the context, and the cuts."""

import json
from pathlib import Path

import pytest

from ensemble import models
from ensemble.config import ROOT, Letter, Member, ModelConfig, Sampling, Shots, Source, Template
from ensemble.errors import ConfigError, PromptError, TooLongError
from ensemble.load import load_config, read_yaml
from ensemble.prompts import Prompter, cut_span
from ensemble.render import Renderer, join_plain
from ensemble.tokens import load_tokenizer
from tests.conftest import question


def template(name: str) -> Template:
    return Template.model_validate_json(json.dumps(read_yaml(ROOT / "configs/templates" / f"{name}.yaml")))


def prompter(folder: Path, tpl: Template, context=400, cut="tail", max_tokens=10, chat_template=None, scoring=None):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = chat_template
    model = ModelConfig(source=Source(path=str(folder)), context_length=context, chat=chat_template is not None)
    member = Member(model="m", template="t", cut=cut, sampling=Sampling(max_tokens=max_tokens), scoring=scoring)
    return Prompter(member, model, tpl, tokenizer), tokenizer


@pytest.fixture(scope="module")
def smollm2():
    """The demo model's tokenizer and config; the first call ever converts the model (about 30 s)."""
    config = load_config(ROOT / "configs/demo.yaml", ["models.smollm2={}"]).models["smollm2"]
    folder = models.prepare("smollm2", config, print, tokenizer_only=True)
    return load_tokenizer(folder, False), config


def test_the_letters_block_is_helms():
    q = question("What is two plus two?", ("three", "four"), context="A passage.")
    text = join_plain(Renderer("letters", template("letters"), "label").turns(q, (1, 0), q.text, q.context, 0), "\n\n")
    assert text == "Passage: A passage.\nQuestion: What is two plus two?\nA. four\nB. three\nAnswer:"


def test_shots_stand_before_the_question(tmp_path):
    shots = tmp_path / "shots.jsonl"
    rows = [
        {"id": 1, "task": "math", "text": "One and one?", "answer": "2", "solution": "1 + 1 = 2. The answer is 2."},
        {"id": 2, "task": "math", "text": "Two and one?", "answer": "3"},
    ]
    shots.write_text("\n".join(map(json.dumps, rows)))
    tpl = Template(instruction="Solve.", question="Q: {{ text }}\nA:", shots=Shots(file=str(shots), n=2))
    q = question("Five and one?", (), "math")
    text = join_plain(Renderer("x", tpl, "label").turns(q, (), q.text, None, 2), "\n\n")
    assert text == (
        "Solve.\n\nQ: One and one?\nA: 1 + 1 = 2. The answer is 2.\n\nQ: Two and one?\nA: 3\n\nQ: Five and one?\nA:"
    )


@pytest.mark.parametrize(("shown", "expected"), [("label", " B"), ("text", " blue")])
def test_a_shot_of_multiple_choice_is_answered_as_it_is_scored(tmp_path, shown, expected):
    shots = tmp_path / "shots.jsonl"
    row = {"id": 1, "task": "multiple_choice", "text": "Sky?", "choices": ["red", "blue"], "answer": 1}
    shots.write_text(json.dumps(row))
    tpl = Template(question="{{ text }}", shots=Shots(file=str(shots), n=1))
    turns = Renderer("x", tpl, shown).turns(question(), (0, 1, 2, 3), "Why?", None, 1)
    assert turns[1] == ("assistant", expected)


def test_letters_resolve_to_one_token_each_by_content(word_tokenizer):
    tpl = Template(question="{{ text }} {{ choices[0].text }}", answer="{{ answer }}")
    p, tok = prompter(word_tokenizer, tpl)
    asked = p.letters(question("Why", ("x", "y", "z")), (2, 0, 1))
    assert tok.decode(asked.prompt) == "Why z"  # the order shows option 2 first
    assert [tok.decode(c) for c in asked.continuations] == ["B", "C", "A"]  # of options 0, 1, 2


def naive_letters(tok, text: str, answers: list[str], special: bool) -> tuple[list[int], list[list[int]]]:
    """What `letters` must give: each label encoded with its whole prompt, one by one."""
    prompt = tok(text, add_special_tokens=special)["input_ids"]
    whole = [tok(text + answer, add_special_tokens=special)["input_ids"] for answer in answers]
    assert all(ids[: len(prompt)] == prompt and len(ids) == len(prompt) + 1 for ids in whole)
    return prompt, [ids[len(prompt) :] for ids in whole]


@pytest.mark.parametrize("name", ["letters", "chat_letters", "helm_mmlu", "matsuo_choice"])
def test_letters_are_those_of_the_naive_way(smollm2, name):
    tok, model = smollm2
    tpl = template(name)
    p = Prompter(Member(model="m", template=name, scoring=Letter(method="letter")), model, tpl, tok)
    renderer = Renderer(name, tpl, "label")
    for q in (
        question("Which gas do plants take in?", ("oxygen", "carbon dioxide", "helium"), group="high_school_biology"),
        question("空の色は何ですか？", ("青", "赤", "白", "黒", "緑")),
        question("2 + 2 = ?  ", ("4 ", " 5", "'s", "😀")),
    ):
        order = tuple(reversed(range(len(q.choices))))
        turns = renderer.turns(q, order, q.text, q.context, 0)
        text = join_plain(turns, tpl.separator)
        if tpl.format == "chat":
            messages = [{"role": role, "content": content} for role, content in turns[:-1]]
            text = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "Answer:"
        answers = [renderer.answer(renderer.labels[order.index(i)]) for i in range(len(order))]
        asked = p.letters(q, order)
        assert (asked.prompt, asked.continuations) == naive_letters(tok, text, answers, tpl.format != "chat")
        assert asked.facts.tokens == len(asked.prompt)


def words(folder: Path, vocabulary: list[str], begin: str | None = None, end: str | None = None):
    """A tokenizer with one token a word, spaces apart; words that it does not have are all <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *vocabulary]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    if begin or end:
        single = " ".join(filter(None, (begin, "$A", end)))
        tokenizer.post_processor = processors.TemplateProcessing(single, None, [("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


ASKED = {
    "letters": ("A", "B"),
    "numbers": ("1", "2"),
    ("ア", "イ", "ウ"): ("ア", "イ"),
    ("１", "２"): ("１", "２"),
}


@pytest.mark.parametrize("labels", ASKED)
@pytest.mark.parametrize(("begin", "end"), [(None, None), ("<s>", None), ("<s>", "</s>"), (None, "</s>")])
@pytest.mark.parametrize("chat", [False, True])
def test_labels_in_every_form_of_prompt(tmp_path, labels, begin, end, chat):
    tok = words(tmp_path, ["Q", " ", *ASKED[labels]], begin, end)
    tok.chat_template = "<s> {% for m in messages %}{{ m.content }} {% endfor %}"
    tpl = Template(question="{{ text }} ", prefill="Q " if chat else "", answer="{{ answer }}", labels=labels)
    model = ModelConfig(source=Source(path="x"), context_length=256, chat=chat)
    p = Prompter(Member(model="m", template="t", scoring=Letter(method="letter")), model, tpl, tok)
    asked = p.letters(question("Q", ("x", "y")), (1, 0))
    shown = tok.convert_ids_to_tokens(asked.prompt)
    # One beginning of sequence, the chat template's own or the tokenizer's, and never an end.
    assert shown == ["<s>", " ", "Q", " ", " ", "Q", " "] if chat else ([begin] if begin else []) + ["Q", " "]
    assert [tok.convert_ids_to_tokens(c) for c in asked.continuations] == [[x] for x in reversed(ASKED[labels])]
    assert p.text(question("Q", ("x", "y"))).ids == asked.prompt


@pytest.mark.parametrize("chat", [False, True])
def test_a_tokenizer_that_asks_for_truncation_and_padding_still_gives_whole_prompts(tmp_path, chat):
    tok = words(tmp_path, ["Q", " ", "A", "B"])
    tok.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    model = ModelConfig(source=Source(path="x"), context_length=256, chat=chat)
    tpl = Template(question="{{ text }} ", answer="{{ answer }}")
    p = Prompter(Member(model="m", template="t", scoring=Letter(method="letter")), model, tpl, tok)
    expected = p.letters(question("Q Q Q", ("x", "y")), (0, 1))
    tok.backend_tokenizer.enable_truncation(3)
    tok.backend_tokenizer.enable_padding(length=9)
    assert p.letters(question("Q Q Q", ("x", "y")), (0, 1)) == expected
    assert tok.convert_ids_to_tokens(expected.prompt)[:5] == ["Q", " ", "Q", " ", "Q"]


def test_tokenizers_written_in_python_do_too(smollm2):
    tok, model = smollm2

    def slow(text, **options):
        return tok(text, **options)

    slow.convert_ids_to_tokens = tok.convert_ids_to_tokens
    member = Member(model="m", template="letters", scoring=Letter(method="letter"))
    asked = [Prompter(member, model, template("letters"), t).letters(question(), (0, 1, 2, 3)) for t in (tok, slow)]
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("A", "B", "A"), r"labels: \['A', 'B', 'A'\]: give every option a label of its own"),
        (("A", ""), "that is not blank"),
        ((), "give every option a label"),
    ],
)
def test_labels_that_cannot_name_options(word_tokenizer, labels, message):
    with pytest.raises(ConfigError, match=message):
        prompter(word_tokenizer, Template(question="{{ text }}", labels=labels))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"labels": ("A", "B")}, 3, r"3 options, and only 2 labels \(A, B\): add labels, or set labels: letters"),
        ({"labels": ("ア", "イ", "ウ")}, 3, "label 'ア' is not one token.*use labels: letters, or score by cloze"),
        ({"labels": "numbers"}, 3, r"label '1' is not one token.*set the template's answer: '\{\{ answer \}\}'"),
        ({"labels": "numbers", "answer": "{{ answer }}"}, 10, "label '10' is not one token.*use labels: letters"),
        ({"prefill": " ", "answer": "{{ answer }}"}, 3, r"answer: ' \{\{ answer \}\}', and leave out the space"),
    ],
)
def test_labels_that_do_not_fit_name_their_cure(smollm2, changes, options, message):
    tok, model = smollm2
    tpl = template("letters").model_copy(update=changes)
    p = Prompter(Member(model="m", template="t", scoring=Letter(method="letter")), model, tpl, tok)
    with pytest.raises(PromptError, match=message):
        p.letters(question("Q?", tuple("abcdefghij"[:options])), tuple(range(options)))


def test_labels_without_tokens_of_their_own_are_refused(tmp_path):
    tok = words(tmp_path, ["Q", " ", "A"])
    tpl = Template(question="{{ text }} ", answer="{{ answer }}", labels=("ア", "イ"))
    model = ModelConfig(source=Source(path="x"), context_length=256)
    p = Prompter(Member(model="m", template="t", scoring=Letter(method="letter")), model, tpl, tok)
    with pytest.raises(PromptError, match="one token for several of the labels ア, イ: use labels: letters"):
        p.letters(question("Q", ("x", "y")), (0, 1))


@pytest.mark.parametrize(("answer", "named"), [(" {{ answer }}", "not one token"), ("x", "one token for several")])
def test_letters_that_do_not_resolve_are_refused(word_tokenizer, answer, named):
    p, _ = prompter(word_tokenizer, Template(question="{{ text }}", answer=answer), scoring=Letter(method="letter"))
    with pytest.raises(PromptError, match=named):
        p.letters(question(), (0, 1, 2, 3))


def test_cloze_continuations_are_the_options_texts(word_tokenizer):
    p, tok = prompter(word_tokenizer, template("cloze"))
    asked = p.cloze(question("Why?", ("yes", "no")))
    assert tok.decode(asked.prompt) == "Question: Why?\nAnswer:"
    assert [tok.decode(c) for c in asked.continuations] == [" yes", " no"]
    bare = p.unconditional(question("Why?", ("yes", "no")))
    assert tok.decode(bare.prompt) == "Answer:"
    assert bare.continuations == asked.continuations


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_chat_models_get_their_template_and_a_prefilled_turn(word_tokenizer):
    p, tok = prompter(word_tokenizer, template("chat_letters"), chat_template=CHAT)
    text = tok.decode(p.text(question("Why?", ("yes", "no"))).ids)
    assert text.startswith("<system>Answer the multiple-choice question with the letter of the right option.</><user>")
    assert text.endswith("Question: Why?\nA. yes\nB. no\n</><assistant>Answer:")


@pytest.mark.parametrize("cut", ["tail", "head"])
def test_a_long_text_keeps_exactly_what_fits(word_tokenizer, cut):
    # One token a byte: of the context's 100 tokens 10 are kept for the answer, 6 are "T: " and " S:".
    text = "".join(chr(97 + i % 26) for i in range(500))
    p, tok = prompter(word_tokenizer, Template(question="T: {{ text }} S:"), context=100, cut=cut)
    asked = p.text(question(text, (), "summarization"))
    kept = text[:84] if cut == "tail" else text[-84:]
    assert tok.decode(asked.ids) == f"T: {kept} S:"
    assert len(asked.ids) == 90
    assert asked.facts.cut_tokens == 416


def test_the_passage_is_cut_and_the_question_and_options_never(word_tokenizer):
    tpl = template("letters").model_copy(update={"answer": "{{ answer }}"})
    p, tok = prompter(word_tokenizer, tpl, context=120)
    q = question("Who?", ("Ann", "Bob"), context="z" * 900)
    shown = tok.decode(p.letters(q, (0, 1)).prompt)
    assert shown.endswith("z\nQuestion: Who?\nA. Ann\nB. Bob\nAnswer:")
    assert len(shown) == 119


def test_shots_are_dropped_before_the_text_is_cut(word_tokenizer, tmp_path):
    shots = tmp_path / "shots.jsonl"
    shots.write_text(
        "\n".join(json.dumps({"id": i, "task": "math", "text": "s" * 20, "answer": "1"}) for i in range(3))
    )
    tpl = Template(question="{{ text }}", separator="|", shots=Shots(file=str(shots), n=3))
    p, tok = prompter(word_tokenizer, tpl, context=100)
    # 90 tokens for the prompt; a shot with its separator takes 23. 30 characters leave room for two of them.
    asked = p.text(question("q" * 30, (), "math"))
    assert tok.decode(asked.ids) == ("s" * 20 + " 1|") * 2 + "q" * 30
    assert asked.facts.cut_tokens == 0
    assert tok.decode(p.text(question("q" * 88, (), "math")).ids) == "q" * 88


def test_cutting_can_be_forbidden(word_tokenizer):
    p, _ = prompter(word_tokenizer, Template(question="{{ text }}"), context=100, cut="forbid")
    with pytest.raises(TooLongError, match=r"10 tokens too long.*set cut: tail, head"):
        p.text(question("x" * 100, (), "generation"))


def test_options_that_leave_no_room_are_refused(word_tokenizer):
    p, _ = prompter(word_tokenizer, template("letters").model_copy(update={"answer": "{{ answer }}"}), context=60)
    with pytest.raises(TooLongError, match="leave no room"):
        p.letters(question("q", ("x" * 40, "y" * 40)), (0, 1))


@pytest.mark.parametrize(
    ("dropped", "centre", "expected"),
    [
        (1, 1.0, "ab 日本"),  # the last token, the end of the text
        (1, 0.0, " 日本語"),  # the first
        (2, 0.5, "ab語"),
        (1, 0.5, "ab 日語"),  # from 1.5, which Python rounds to the even 2
        (3, 0.9, "ab"),  # moved back so that three tokens are dropped
        (3, 0.1, "語"),
    ],
)
def test_a_cut_drops_neighbouring_tokens_around_its_centre(dropped, centre, expected):
    offsets = [(0, 2), (2, 4), (4, 5), (5, 6)]
    start, end = cut_span(offsets, dropped, centre)
    assert "ab 日本語"[:start] + "ab 日本語"[end:] == expected


@pytest.mark.parametrize(
    ("dropped", "centre", "expected"),
    [
        (1, 0.3, "a𠮷b"),  # one byte of the character goes with it only if all go
        (2, 0.5, "a𠮷b"),
        (4, 0.5, "ab"),
        (4, 1.0, "a𠮷"),
        (4, 0.0, "𠮷b"),
    ],
)
def test_a_character_of_several_tokens_stays_whole_and_single(dropped, centre, expected):
    offsets = [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]
    start, end = cut_span(offsets, dropped, centre)
    assert "a𠮷b"[:start] + "a𠮷b"[end:] == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [("{{ txet }}", "'txet' is undefined.*variables: text"), ("{% if %}", "template x")],
)
def test_a_template_that_cannot_be_rendered_says_why(source, message):
    with pytest.raises(ConfigError, match=message):
        Renderer("x", Template(question=source), "label").turns(question(), (0,), "t", None, 0)


@pytest.mark.parametrize(
    ("content", "n", "message"),
    [
        (None, 1, "no such file"),
        ('{"id": 1, "task": "math", "text": "x", "answer": "1"}', 2, "1 rows for 2 shots"),
        ('{"id": 1, "task": "math", "text": "x"}', 1, "needs a gold answer"),
        ("not json", 1, "not JSON lines"),
    ],
)
def test_shots_that_cannot_be_used(tmp_path, content, n, message):
    path = tmp_path / "shots.jsonl"
    if content is not None:
        path.write_text(content)
    renderer = Renderer("x", Template(question="{{ text }}", shots=Shots(file=str(path), n=n)), "label")
    with pytest.raises(ConfigError, match=message):
        renderer.shots(question())
