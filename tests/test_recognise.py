"""Multiple-choice questions out of prompts: the forms that clients send, what is no question, and hostile texts."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.recognise import Recognised, recognise

MMLU = "The following are multiple choice questions (with answers) about soil science.\n"
BBQ = "The following are multiple choice questions (with answers).\n"
SHOT = "Question: Which floats?\nA. lead\nB. cork\nAnswer: B\n"
MELTS = ("Which melts first?", ("ice", "iron"))


def found(prompt: str) -> Recognised:
    recognised = recognise(prompt)
    assert recognised is not None
    return recognised


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("Question: Which melts first?\nA. ice\nB. iron\nAnswer:", "AB"),
        ("Which melts first?\nA. ice\nB. iron\nAnswer:", "AB"),
        ("Which melts first?\r\nA. ice\r\nB. iron\r\nAnswer: ", "AB"),
        ("Q: Which melts first?\nOptions:\n(A) ice\n(B) iron\nA:", "AB"),
        ("**Question:** Which melts first?\n\nA: ice\n\nB: iron\n\n**Answer:**", "AB"),
        ("### Question 3:\nWhich melts first?\n### Choices:\na) ice\nb) iron\n\n### The correct answer is", "ab"),
        ("Which melts first?\n  1. ice\n  2. iron\nAnswer (number only):\n", "12"),
        ("Which melts first?\n(1) ice\n(2) iron\nThe answer:", "12"),
        ("Which melts first?\n1) ice\n2) iron\nReply with the number.", "12"),
        ("Which melts first?\n1：ice\n2：iron\n番号で答えてください。", "12"),
        ("質問：Which melts first?\n1．ice\n2．iron\n回答：", "12"),
        ("質問：Which melts first?\n選択肢：\n0.ice\n1.iron\n答えは", "01"),
        ("質問：Which melts first?\n選択肢：0.ice,1.iron\n回答：", "01"),
        ("[問題]:Which melts first?\n[選択肢]:[1. ice, 2. iron]\n[答えの選択肢番号]:", "12"),
        ("Which melts first?\nＡ．ice\nＢ．iron\n答え：", "ＡＢ"),
        ("Which melts first?\nAnswer Choices: (A) ice (B) iron\nAnswer:", "AB"),
        ("Which melts first?\nA) ice\nB) iron\nAnswer with the letter only.", "AB"),
        ("Which melts first?\n\nA) ice\nB) iron\n\nPlease choose only one option.", "AB"),
        ("Which melts first?\n\nA. ice\nB. iron\n", "AB"),
        ("The following is a multiple choice question.\n\nWhich melts first?\nA) ice\nB) iron", "AB"),
        ("A. ice\nB. iron\nWhich melts first?", "AB"),
    ],
)
def test_a_question_in_each_form(prompt: str, labels: str) -> None:
    recognised = found(prompt)
    assert (recognised.text, recognised.choices) == MELTS
    assert recognised.labels == tuple(labels)
    assert (recognised.context, recognised.group, recognised.shots) == (None, None, 0)


@pytest.mark.parametrize("gap", ["", "\n"])
def test_helm_with_shots_and_a_subject(gap: str) -> None:
    recognised = found(f"{MMLU}{gap}{SHOT}{gap}{SHOT}{gap}Question: Which melts first?\nA. ice\nB. iron\nAnswer:")
    assert recognised == Recognised(*MELTS[:1], None, MELTS[1], ("A", "B"), "soil science", 2, " ")


def test_lm_eval_with_shots_and_a_subject() -> None:
    shot = SHOT.removeprefix("Question: ")
    recognised = found(f"{MMLU}\n{shot}\n{shot}\nWhich melts first?\nA. ice\nB. iron\nAnswer:")
    assert recognised == Recognised(*MELTS[:1], None, MELTS[1], ("A", "B"), "soil science", 2, " ")


def test_the_passage_is_of_the_last_question() -> None:
    block = "Passage: {}\nQuestion: Who sang?\nA. Ann\nB. Bo\nAnswer:"
    recognised = found(f"{BBQ}\n{block.format('Ann slept.')} B\n\n{block.format('Bo slept.')}")
    assert (recognised.text, recognised.context, recognised.shots) == ("Who sang?", "Bo slept.", 1)


@pytest.mark.parametrize("shots", [0, 2])
def test_a_text_before_the_first_question_is_its_context(shots: int) -> None:
    recognised = found(f"Cork is light.\n\n{SHOT * shots}Question: Which melts first?\nA. ice\nB. iron\nAnswer:")
    assert (recognised.text, recognised.context, recognised.shots) == ("Which melts first?", "Cork is light.", shots)


LOOPS = ("while x:\n    y()", "for z in x:\n    y()")


@pytest.mark.parametrize(
    ("text", "options", "choices"),
    [
        ("Which hold?\nI. Ice floats.\nII. Iron floats.", "A. I only\nB. both\nAnswer:", ("I only", "both")),
        ("Which hold?\n1. Ice floats.\n2. Iron floats.", "A. 1 only\nB. both\nAnswer:", ("1 only", "both")),
        ("Note\nA. Ice floats.\nB. Iron floats.\nWhich?", "1. A\n2. both\nAnswer:", ("A", "both")),
        ("How?", "A. a\n1. heat\n2. cool\nB. b\n1. cool\nAnswer:", ("a\n1. heat\n2. cool", "b\n1. cool")),
        ("Which halts?", f"A. {LOOPS[0]}\nB. {LOOPS[1]}\nAnswer:", LOOPS),
        ("Which halts?", f"A)\n{LOOPS[0]}\n\nB)\n{LOOPS[1]}", LOOPS),
        ("Which halts?", f"A) {LOOPS[0]}\nB) {LOOPS[1]}\n\nPick one.", LOOPS),
        ("Ice is", "A. 1.5 kg\nB. 10:30\nAnswer:", ("1.5 kg", "10:30")),
    ],
)
def test_several_lines(text: str, options: str, choices: tuple[str, ...]) -> None:
    """Statements in the question stay there, and an option takes all its lines."""
    recognised = found(f"{text}\n{options}")
    assert (recognised.text, recognised.choices) == (text, choices)


def test_a_hint_below_the_options_is_kept() -> None:
    assert found("Which?\nA. x\nB. y\nOne of them is light.").text == "Which?\nOne of them is light."


@pytest.mark.parametrize(
    ("end", "reply"),
    [
        ("\nAnswer:", " B"),
        ("\nAnswer: ", "B"),
        ("\nAnswer:\n", "B"),
        ("\nThe answer is", " B"),
        ("\n回答：", "B"),
        ("\nAnswer with the letter only.", "B"),
        ("", "B"),
    ],
)
def test_the_reply_has_the_white_space_that_the_prompt_lacks(end: str, reply: str) -> None:
    assert found(f"Which melts first?\nA. ice\nB. iron{end}").reply(1) == reply


@pytest.mark.parametrize(
    ("answer", "reply"), [(" A", " B"), ("A", "B"), (" (A)", " (B)"), ("\nA", "\nB"), (" A. ice", " B"), (" A.", " B")]
)
def test_the_reply_is_in_the_form_of_the_shots(answer: str, reply: str) -> None:
    block = "Which melts first?\nA. ice\nB. iron\nAnswer:"
    recognised = found(f"{block}{answer}\n\n{block}")
    assert (recognised.shots, recognised.reply(1)) == (1, reply)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "A",
        "Hello, how are you?",
        "Steps:\n1. mix\n2. bake\nWrite a summary",
        "Steps:\n1. mix\n2. bake",
        "Can you improve these steps?\n1. mix\n2. bake",
        "Steps:\nA. mix\nB. bake",
        "Agenda\nA. Opening\nB. Votes\nBest regards",
        "What is x?\n```\nA. x\nB. y\n```",
        "x = {\n  'a': 1,\n  'b': 2,\n}\nWhat is x?",
        "Why is this no YAML?\na: 1\nb: 2",
        "Which melts first?\nA. ice\nB. iron\nExplain why.",
        "Which melts first?\nA. ice\nB. iron\nAnswer: Let's think step by step.",
        "Think step by step. Which melts first?\nA. ice\nB. iron",
        "A. ice\nB. iron\nAnswer:",  # no question
        "Which melts first?\nA. ice\nAnswer:",
        "Which melts first?\nA. ice\nC. iron\nAnswer:",
        "Which melts first?\nB. ice\nC. iron\nAnswer:",
        "Which melts first?\nA. ice\nB. iron\nD. tin\nAnswer:",
        "Which melts first?\nC. ice\nA. iron\nB. tin\nAnswer:",
        "Which melts first?\nA. ice\nB. iron\nA. tin\nB. lead\nAnswer:",
        "Which melts first?\nA. ice\nB) iron\nAnswer:",
        "Which melts first?\nA. ice\nB.\nAnswer:",
        "Which melts first?\nA.\nB. iron\nAnswer:",
        "Which melts first?\n2. ice\n3. iron\nAnswer:",
        "選択肢：0.氷,2.鉄\n回答：",
        "質問：どれ？\n選択肢：0.氷,2.鉄\n回答：",
        "質問：どれ？\n選択肢：0.氷,1.\n回答：",
        "Which?\n" + "".join(f"{i}. x{i}\n" for i in range(1, 28)) + "Answer:",
        SHOT + "\nQuestion: Why?\nAnswer:",
        SHOT + "\nWhy?",
        SHOT,
        SHOT.replace("Answer: B", "Answer: the second") + "Question: Why?\nAnswer:",
        "Which melts first?\nA. ice\nB. iron\n\nThat was easy.\n\nNow write about ice.",
        "Which melts first?\nA. ice\nB. iron\n\nNow, what is ice?\nAnswer:",
        "Which melts first?\nA. ice\nB. iron\n" + "It was a long story. " * 40,
        "Which melts first?\nA. ice\nB. iron\n" + "It was a long story.\n" * 40 + "Answer:",
        "Who speaks?\nA: Hi.\nB: Hello.\nA: Bye.\nB: Bye.",
    ],
)
def test_what_is_no_question_with_options(prompt: str) -> None:
    assert recognise(prompt) is None


def test_26_options() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    recognised = found("Which?\n" + "".join(f"{x}. {x}{x}\n" for x in letters) + "Answer:")
    assert "".join(recognised.labels) == letters
    assert recognised.choices[25] == "ZZ"


N = 200_000
HOSTILE = {
    "spaces": " " * N,
    "spaces in an option": "Which?\nA. x\nB. y" + " " * N + "z",
    "newlines": "\n" * 1_000_000,
    "newlines in an option": "Which?\nA. x\nB. y" + "\n" * N + "z\nAnswer:",
    "blank lines": " \n" * N + "Answer:",
    "labels in a line": "A." * 100_000,
    "labels on lines": "A.\n" * 100_000,
    "pairs": "A. x\nB. y\n" * 50_000 + "Answer:",
    "two styles": "1. x\nA. y\n" * 50_000 + "Answer:",
    "all letters": "".join(f"{chr(65 + i % 26)}. x\n" for i in range(N)),
    "answers": "Answer: C\n" * 100_000,
    "shots": "Q?\nA. x\nB. y\nAnswer: C\n" * 40_000,
    "questions": "Question: x\n" * 50_000 + "A. x\nB. y\nAnswer:",
    "headers": "選択肢：\n" * N + "A. x\nB. y\n回答：",
    "options in a line": "q\n選択肢：" + "1.a," * 100_000 + "\n回答：",
    "spaces in a line of options": "q\n選択肢：1.a" + " " * N + ",2.b\n回答：",
    "an instruction": "The following" + " multiple choice" * 60_000 + "\nA. x\nB. y\nAnswer:",
    "brackets": "[" * N + "\n" + "#" * N + "\n" + "(" * N + "\nAnswer (" + "(" * N,
    "requests": "answer " * 150_000 + "\n1. x\n2. y",
    "a long option": "q?\nA. x\nB. " + "y\n" * 300_000 + "Answer:",
    "a long line below": "q?\nA. x\nB. y\n" + "word " * N,
    "surrogates": "\ud800\nA. \udfff\nB. \ud800\nAnswer:",
    "digits of other scripts": "q\n١. x\n٢. y\n²) z\nAnswer:",
}


@pytest.mark.parametrize("prompt", HOSTILE.values(), ids=HOSTILE.keys())
def test_time_is_linear(prompt: str) -> None:
    start = time.process_time()
    recognise(prompt)
    assert time.process_time() - start < 2


@given(st.text(alphabet="AB12ab.:)(\n \t：、,?Answer選択肢回答", max_size=60))
def test_never_raises(prompt: str) -> None:
    recognised = recognise(prompt)
    assert recognised is None or (recognised.text and all(recognised.choices) and 2 <= len(recognised.labels) <= 26)


WORD = st.text(alphabet="abcdefghijklm猫石水空éßж", min_size=2, max_size=7)  # no "answer" can be spelt
LINE = st.lists(WORD, min_size=1, max_size=6).map(" ".join)
QUESTION = st.tuples(LINE.map("{}?".format), st.lists(LINE, min_size=2, max_size=10))
LETTERS = "ABCDEFGHIJ"
MARKS = ["{}. ", "{}) ", "({}) ", "{}: ", "{}．", "{})"]

# instruction, before the question, before and between and after options, answer cue, white space of the answer
HELM = ("", "Question: ", "\n", "\n", "\n", "Answer:", " ")
FORMS = {
    "HELM": HELM,
    "MMLU": (MMLU, *HELM[1:]),
    "lm-eval": (MMLU + "\n", "", *HELM[2:]),
    "Japanese lines": ("", "質問：", "\n選択肢：\n", "\n", "\n", "回答：", ""),
    "Japanese line": ("", "質問：", "\n選択肢：", ",", "\n", "回答：", ""),
    "Matsuo": ("", "[問題]:", "\n[選択肢]:[", ", ", "]\n", "[答えの選択肢番号]:", ""),
}


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_a_rendered_question_comes_back(form: str, data: st.DataObject) -> None:
    instruction, ask, before, between, behind, cue, space = FORMS[form]
    names = data.draw(st.sampled_from([LETTERS, "abcdefghij", [str(i) for i in range(1, 11)], "0123456789"]))
    mark = data.draw(st.sampled_from([mark for mark in MARKS if names[0] != "a" or ":" not in mark]))
    questions = data.draw(st.lists(QUESTION, min_size=1, max_size=4))

    def block(text: str, choices: list[str]) -> str:
        shown = between.join(mark.format(names[i]) + choice for i, choice in enumerate(choices))
        return f"{ask}{text}{before}{shown}{behind}{cue}"

    gap = data.draw(st.sampled_from(["\n", "\n\n"]))
    shots = [f"{block(*shot)}{space}{names[data.draw(st.integers(0, len(shot[1]) - 1))]}{gap}" for shot in questions]
    text, choices = questions[-1]
    recognised = found(instruction + "".join(shots[:-1]) + block(text, choices))
    assert (recognised.text, recognised.choices) == (text, tuple(choices))
    assert recognised.labels == tuple(names[: len(choices)])
    assert (recognised.shots, recognised.context) == (len(questions) - 1, None)
    assert recognised.group == ("soil science" if instruction else None)
    assert recognised.reply(1) == space + names[1]


@given(QUESTION, st.sampled_from(["", "Answer with the letter only.", "Reply with just the letter, please!"]))
def test_a_chat_message_comes_back(question: tuple[str, list[str]], request: str) -> None:
    text, choices = question
    shown = "\n".join(f"{LETTERS[i]}) {choice}" for i, choice in enumerate(choices))
    recognised = found(f"{text}\n{shown}\n{request}")
    assert (recognised.text, recognised.choices) == (text, tuple(choices))
    assert recognised.reply(1) == "B"
