"""Multiple-choice questions that come as one text, as HELM, lm-evaluation-harness and chat applications send them.

A text is refused where in doubt: a letter in reply to an ordinary text is worse than a vote that is not taken.
Patterns are anchored and bounded or possessive, so that the time is linear in the length of any text.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from unicodedata import normalize

MAX_CHOICES = 26
SHORT = 120  # characters of a line below the options
NEAR = 500  # characters of a question in which a request is looked for, at its start and at its end
LONG = 500  # characters of a last option of several lines, where the others are shorter

_EACH_LINE = re.IGNORECASE | re.MULTILINE
_BEGIN = r"^[^\S\n]*+[\[【*#]{0,4} ?"  # before the name of a part: "### Answer:", "**Answer:**", "[問題]:"
_COLON = r" ?\d{0,4}[\]】*]{0,4} ?[:：]\*{0,2}"
_CUES = (
    r"(?:(?:(?:the|your|my) )?(?:(?:correct|right|final|best) )?answer(?: is)?"
    r"|(?:正しい|正解の|答えの|回答の)?(?:回答|解答|答え|答|正解|選択肢の?番号|番号)は?|正しい選択肢は?)"
    r"(?: ?[(（][^()（）\n]{1,40}[)）])?"  # "Answer (letter only):"
)
_GIVEN = (  # "A", "(A)", "A. ice"
    r"(?P<lead>[^\S\n]{0,2}\n?[(（]?)(?:[A-ZＡ-Ｚ]|\d{1,2})(?P<close>[)）]?)"
    r"(?:[.．]?[^\S\n]*+$|(?:(?<=[)）])|[.．:：])[^\S\n].*$)"
)
_CUE = re.compile(rf"{_BEGIN}{_CUES}(?:{_COLON}|[\]】*]{{0,4}})", _EACH_LINE)
_ANSWERED = re.compile(rf"{_BEGIN}{_CUES}{_COLON}{_GIVEN}", _EACH_LINE)
_A_ANSWERED = re.compile(rf"^A:{_GIVEN}", re.MULTILINE)
_QUESTION = re.compile(rf"{_BEGIN}(?:Question|Q|問題|質問|設問|問){_COLON}", _EACH_LINE)
_PASSAGE = re.compile(rf"{_BEGIN}(?:Passage|Context|Article|文章|本文|文脈){_COLON}", _EACH_LINE)
_PART = re.compile(rf"{_BEGIN}(?:{_CUES}|Question|Q|問題|質問|設問|問|Passage){_COLON}", _EACH_LINE)
_HEADER = re.compile(rf"{_BEGIN}(?:(?:answer )?(?:options|choices)|選択肢){_COLON}", _EACH_LINE)

_NAME = r"[A-Za-zＡ-Ｚａ-ｚ]|\d{1,2}"
_LABEL = rf"(?:[(（](?P<inner>{_NAME})[)）]|(?P<outer>{_NAME})(?P<mark>[.．:：)）、]))"
# No labels: "1.5 m" and "10:30", "A.B. Smith", "C:\temp" and "C://".
_OPTION = re.compile(rf"^[^\S\n]*+{_LABEL}(?!(?<=\d[.:])\d|(?<=\.)[A-Za-z]\.|\\|//)", re.MULTILINE)
_INLINE = re.compile(rf"(?<![^\s,，、;；]){_LABEL}")

_MMLU = re.compile(r"\s{0,9}The following are multiple choice questions \(with answers\) about ([^\n]{1,200})")
_INSTRUCTION = re.compile(
    r"\s*+(?:the following|answer|choose|select|read|below|以下の|次の)[^?？\n]{0,200}?"
    r"(?:multiple[- ]choice|\(with answers\)|\bletter\b|選択肢|質問に)[^?？\n]{0,200}",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\b(?:answer|reply|respond|choose|select|pick)\b.{0,80}\b(?:letter|number|options?|choices?)\b"
    r"|multiple[- ]choice|選択肢|選んで|選びなさい|番号",
    re.IGNORECASE,
)
_ASKS_NUMBER = re.compile(r"\b(?:answer|reply|respond|choose|select|pick|give)\b.{0,80}\bnumber\b|番号", re.IGNORECASE)
_MORE = re.compile(
    r"(?<!not )(?<!n't )(?<!without )"
    r"(?:step by step|\b(?:explain|justify|describe|elaborate|summari[sz]e|write|translate|rewrite|discuss|why)\b"
    r"|reasoning|説明|理由|要約|翻訳)",
    re.IGNORECASE,
)
_REASONS = re.compile(r"step by step|explain (?:your|each)|your reasoning|理由を|説明して", re.IGNORECASE)
_FORM_WORDS = re.compile(
    r"(?:\W*+\b(?:an?|and|answers?|[bcd]|best|by|choices?|choose|correct|else|from|give|its|just|letters?|nothing|number|of|one"
    r"|only|options?|or|output|pick|please|reply|respond|response|return|right|select|single|the|with|your)\b)*+\W*",
    re.IGNORECASE,
)
_FORM = re.compile(
    r"(?:正解の|答えの)?(?:番号|記号|文字)(?:のみ|だけ)?(?:で|を)(?:お?答え|回答|選択|選ん|選び)\w{0,8}[。]?"
)


class Recognised(NamedTuple):
    """A multiple-choice question found at the end of a prompt."""

    text: str  # without label, options and the worked examples before it
    context: str | None  # what stands before "Question:": a passage, a task's own prefix
    choices: tuple[str, ...]  # in the order shown
    labels: tuple[str, ...]  # as shown: "A", "1", "a"
    group: str | None  # HELM's MMLU subject
    shots: int  # worked examples before it
    before: str = ""  # what the client expects around the label: as in the worked examples, where there are some
    after: str = ""

    def reply(self, choice: int) -> str:
        """The option's label, with the white space that the prompt lacks: " B" after "Answer:"."""
        return self.before + self.labels[choice] + self.after


class _Label(NamedTuple):
    name: str
    style: tuple[str, str]  # kind of name, mark
    rank: int  # 0 for A, 1 for 1
    start: int
    end: int


class _Options(NamedTuple):
    labels: list[_Label]
    choices: list[str]
    below: str = ""  # a line below the options


def recognise(prompt: str) -> Recognised | None:
    """The question with options that the prompt ends with, None where it ends with none."""
    text = prompt.replace("\r\n", "\n")
    body, cue = _split_cue(text)
    start, shots, given = _skip_shots(body, cue)
    block = body[start:]
    options = (_in_line(block) if cue else None) or _in_lines(block, bool(cue))
    if options is None or not all(options.choices):
        return None
    shown = block[: options.labels[0].start]
    question, context = _question(body, shown, shots)
    if not _is_form(options.below):
        question = f"{question}\n{options.below}".strip()
    near = f"{shown[:NEAR]}\n{shown[-NEAR:]}\n{options.below}"
    marked = shots > 0 or _QUESTION.search(shown) is not None
    if not question or not (cue or _asked(options.labels[0], near, options.below, marked)):
        return None
    subject = _MMLU.match(text)
    before, after = _around(cue, text, given)
    return Recognised(
        question,
        context,
        tuple(options.choices),
        tuple(label.name for label in options.labels),
        subject[1].strip().removesuffix(".") if subject else None,
        shots,
        before,
        after,
    )


def _split_cue(text: str) -> tuple[str, str]:
    """What stands before the answer cue of the last line, and the cue, empty where there is none."""
    end = text.rstrip()
    begin = end.rfind("\n") + 1
    line = end[begin:]
    return (end[:begin], line) if line == "A:" or _CUE.fullmatch(line) else (end, "")


def _skip_shots(body: str, cue: str) -> tuple[int, int, re.Match[str] | None]:
    """Where the last block begins, how many with options and an answer stand before it, and the last one's answer."""
    start = seen = shots = 0
    given = None
    for answer in (_A_ANSWERED if cue == "A:" else _ANSWERED).finditer(body):
        span = seen, answer.start()
        if _OPTION.search(body, *span) or _HEADER.search(body, *span):
            start, shots, given = answer.end(), shots + 1, answer
        seen = answer.end()
    return start, shots, given


def _around(cue: str, text: str, given: re.Match[str] | None) -> tuple[str, str]:
    if not cue:
        return "", ""
    before, after = (given["lead"], given["close"]) if given else (" " if cue.upper() != cue.lower() else "", "")
    return (before.lstrip() if text[-1].isspace() else before), after


def _asked(label: _Label, near: str, below: str, marked: bool) -> bool:
    """Whether a text without an answer cue asks for one of its options."""
    if _REASONS.search(near) or _MORE.search(below):
        return False
    if label.style[0] == "0":
        return _ASKS_NUMBER.search(near) is not None
    return marked or any(sign in near for sign in ("?", "？", "__")) or _ASKS.search(near) is not None


def _labels(pattern: re.Pattern[str], text: str) -> Iterator[_Label]:
    for match in pattern.finditer(text):
        name = match["inner"] or match["outer"]
        plain = normalize("NFKC", name)
        kind = "0" if plain.isdigit() else "A" if plain.isupper() else "a"
        if kind != "a" or match["mark"] not in (":", "："):  # "a: 1" is YAML
            rank = int(plain) if kind == "0" else ord(plain) - ord(kind)
            yield _Label(name, (kind, match["mark"] or "()"), rank, match.start(), match.end())


def _in_sequence(labels: Sequence[_Label]) -> bool:
    ranks = [label.rank for label in labels[: MAX_CHOICES + 1]]
    firsts = (0, 1) if labels and labels[0].style[0] == "0" else (0,)
    return 2 <= len(ranks) <= MAX_CHOICES and ranks[0] in firsts and ranks == [ranks[0] + i for i in range(len(ranks))]


def _in_line(block: str) -> _Options | None:
    """Options in the block's last line: "選択肢：0.foo,1.bar", "Options: (A) foo (B) bar"."""
    end = block.rstrip()
    header = _HEADER.match(end, end.rfind("\n") + 1)
    if header is None:
        return None
    line = end[header.end() :].strip()
    if line[:1] == "[" and line[-1:] == "]":
        line = line[1:-1].strip()
    found = list(_labels(_INLINE, line))
    labels = [label for label in found if label.style == found[0].style]
    if not _in_sequence(labels) or labels[0].start > 0:
        return None
    ends = [label.start for label in labels[1:]]
    choices = [line[a.end : b].strip().rstrip(",，、;； ") for a, b in zip(labels, ends, strict=False)]
    choices.append(line[labels[-1].end :].strip())
    return _Options([label._replace(start=header.start()) for label in labels], choices)


def _in_lines(block: str, cued: bool) -> _Options | None:
    """Options that begin lines, the last list of the block."""
    labels = _last_list(block)
    if labels is None or _PART.search(block, labels[0].end) or block.count("```", 0, labels[0].start) % 2:
        return None
    ends = [label.start for label in labels[1:]]
    choices = [block[a.end : b].strip() for a, b in zip(labels, ends, strict=False)]
    lines = [line.rstrip() for line in block[labels[-1].end :].strip().split("\n")]
    several = cued or any("\n" in choice for choice in choices)
    cut = lines.index("") if several and "" in lines else len(lines) if several else 1
    while cut > 1 and _is_form(lines[cut - 1]):
        cut -= 1
    last = "\n".join(lines[:cut])
    below = [line.strip() for line in lines[cut:] if line]
    if len(below) > 1 or any(len(line) > SHORT or (cued and not _is_form(line)) for line in below):
        return None
    if "\n" in last and len(last) > max(LONG, 2 * max(map(len, choices))):
        return None
    return _Options(labels, [*choices, last], *below)


def _last_list(block: str) -> list[_Label] | None:
    """The labels of the list of options; lists in its question and in its options are of another style."""
    styles: dict[tuple[str, str], list[_Label]] = {}
    for label in _labels(_OPTION, block):
        styles.setdefault(label.style, []).append(label)
    runs = (_run(labels, block) for labels in styles.values())
    best: list[_Label] = []
    for run in sorted((run for run in runs if run), key=lambda run: run[0].start):
        if any(best[0].start < label.start < best[-1].start for label in styles[run[0].style] if best):
            continue  # its labels are parts of options
        if best and run[0].style[0] == "0" and _adjoin(block, best[-1], run[0]):
            return None  # the last option's parts or the real options
        best = run
    return best or None


def _run(labels: list[_Label], block: str) -> list[_Label] | None:
    """The labels from the last A, or 1 or 0, on, where they are in sequence."""
    ranks = [label.rank for label in labels]
    first = 1 if labels[0].style[0] == "0" else 0
    begin = len(ranks) - 1 - ranks[::-1].index(first) if first in ranks else 0
    if first and begin and ranks[begin - 1] == 0:
        begin -= 1
    if not _in_sequence(labels[begin:]):
        return None
    # "C. x, A. y, B. z" is out of sequence, but a question may have statements I, V, X or i, v, x.
    follows = begin and labels[begin - 1].name not in "IVXivx" and _adjoin(block, labels[begin - 1], labels[begin])
    return None if follows else labels[begin:]


def _adjoin(block: str, first: _Label, second: _Label) -> bool:
    return "\n" not in block[first.end : second.start].strip()


def _question(body: str, shown: str, shots: int) -> tuple[str, str | None]:
    """The question's text and its context, of what is shown before the options."""
    header = _last(_HEADER, shown)
    if header and not shown[header.end() :].strip():
        shown = shown[: header.start()]
    mark = _last(_QUESTION, shown)
    if mark is None:
        return _without_instruction(shown) or shown.strip(), None
    passage = _PASSAGE.search(shown, 0, mark.start())
    lead, end = (shown[: passage.start()], passage.end()) if passage else (shown[: mark.start()], mark.start())
    if shots:
        firsts = [match.start() for match in (_PASSAGE.search(body), _QUESTION.search(body)) if match]
        lead = body[: min(firsts)] + lead
    context = f"{_without_instruction(lead)}\n{shown[end : mark.start()].strip()}".strip()
    return shown[mark.end() :].strip(), context or None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _without_instruction(text: str) -> str:
    """The text without a first line that says that questions with options follow."""
    line, _, rest = text.strip().partition("\n")
    return rest.strip() if _INSTRUCTION.fullmatch(line) else text.strip()


def _is_form(line: str) -> bool:
    """Whether a line says how to answer, and nothing about the question."""
    return len(line) <= SHORT and any(pattern.fullmatch(line.strip()) for pattern in (_FORM_WORDS, _FORM))
