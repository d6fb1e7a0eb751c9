r"""What a generated text answers: its final number, or the option that it names.

Both prefer what follows an explicit marker ("The answer is", "Answer:", "####", "\boxed{", "答えは").
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

# Kana, kanji and hangul stand next to numbers and names without a space: "答えは-3です" holds -3.
_CJK = "\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uff66-\uff9f"
_WORD = rf"[^\W{_CJK}]"  # a letter or digit of a script that puts spaces between words

# Full-width ASCII, the minus sign and the en dash. Not NFKC, which would turn "cm²" into "cm2".
_TO_ASCII = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x2212: "-", 0x2013: "-", 0xFFE5: "¥"}
_LATEX_FRACTION = re.compile(r"([0-9]?)\\[dt]?frac\s?\{\s?(-?)([0-9]{1,15})\s?\}\s?\{\s?([0-9]{1,15})\s?\}")
_LATEX_SPACES = re.compile(r"\{,\}|,\\!")  # 1{,}234 and 1,\!234

# Possessive quantifiers keep every pattern here linear in the text.
_MARKER = re.compile(
    r"(?<!#)####(?!#|\s{0,3}[^\W0-9]{2})"  # GSM8K's, but not a Markdown heading such as "#### Step 2"
    r"|answer[\s*_]{0,4}(?:is\b|:|=)"
    r"|(?:答え|解答|回答|正解)[\s*]{0,4}(?:は|:)"
    r"|\\boxed\s?\{",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|。")
_NUMBER = re.compile(
    rf"""
    \^\s?\{{?-?[0-9.]++                                     # an exponent ("18 cm^2") is nobody's answer
    |
    (?P<sign>(?<!{_WORD})(?<![)\]}}%-])-)?                  # no minus in 10-12, covid-19, x^{{2}}-3
    (?:\\?[$€£¥])?
    (?:
        (?<!/)(?:(?P<whole>[0-9]{{1,9}})[ ])?
        (?P<numerator>[1-9][0-9]{{0,2}}(?:,[0-9]{{3}}){{1,4}}+|[0-9]{{1,15}}+)
        [ ]?/[ ]?(?P<denominator>[1-9][0-9]{{0,14}}+)(?![0-9/]|\.[0-9])   # 12/25/2024 is no fraction
    |
        (?P<decimal>
            (?:[1-9][0-9]{{0,2}}(?:,[0-9]{{3}}(?![0-9]))++|[0-9]++)(?:\.[0-9]++)?(?:e[-+]?[0-9]{{1,3}}(?![0-9a-z]))?
            |(?<!{_WORD})(?<!\.)\.[0-9]++
        )
    )""",
    re.VERBOSE | re.IGNORECASE,
)


def final_number(text: str) -> str | None:
    r"""The final number of a generated solution as a plain decimal string, or None where it has none.

    It is the first number behind the last marker that has one in its sentence (behind the sentence's last "=" where
    there is one: "The answer is 3 + 4 = 7"), else the last number of the text. Full-width digits count as digits.

    "1,234.50" becomes "1234.5", "$18." "18", "-3" stays, "50%" becomes "50", "1.5e3" "1500". Commas group thousands
    only where three digits follow each. A fraction stays one, since 1/3 has no finite decimal: "3/4" and
    "\frac{3}{4}" become "3/4", "2 1/2" becomes "5/2"; it is not reduced. Units and words such as "million" or "万"
    are not applied. `final_number` of its own result is that result. Linear in the length of the text; never raises.
    """
    text = _LATEX_FRACTION.sub(_plain_fraction, _LATEX_SPACES.sub(",", text.translate(_TO_ASCII)))
    for stated in _stated(text):
        sentence = _SENTENCE_END.split(stated, maxsplit=1)[0]
        for part in (sentence.rpartition("=")[2], sentence):
            for number in _numbers(part):
                return _normalised(number)
    last = deque(_numbers(text), maxlen=1)
    return _normalised(last[0]) if last else None


def _plain_fraction(match: re.Match[str]) -> str:
    digit, sign, numerator, denominator = match.groups()
    gap = " " if digit else ""  # 2\frac{1}{2} is two and a half
    return f"{digit}{gap}{sign}{numerator}/{denominator}"


def _stated(text: str) -> Iterator[str]:
    """What stands behind each marker, the last marker first, up to the end of the line or of the box.

    No piece reaches past the next marker, so that together they are no longer than the text.
    """
    marks = list(_MARKER.finditer(text))
    ends = [*(mark.start() for mark in marks), len(text)][1:]
    for mark, end in zip(reversed(marks), reversed(ends), strict=True):
        piece = text[mark.end() : end].lstrip(" \t\r\n*_:")
        yield piece.partition("}" if mark.group().endswith("{") else "\n")[0].rstrip()


def _numbers(text: str) -> Iterator[re.Match[str]]:
    return (match for match in _NUMBER.finditer(text) if match["decimal"] or match["numerator"])


def _normalised(number: re.Match[str]) -> str:
    if number["decimal"]:
        value = _decimal(number["decimal"])
    else:
        numerator, denominator = (int(number[name].replace(",", "")) for name in ("numerator", "denominator"))
        if number["whole"] and numerator < denominator:
            numerator += int(number["whole"]) * denominator
        value = f"{numerator}/{denominator}" if numerator else "0"
    return f"-{value}" if number["sign"] and value != "0" else value


def _decimal(digits: str) -> str:
    whole, _, part = format(Decimal(digits.replace(",", "")), "f").partition(".")  # exact, however many digits
    part = part.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{part}" if part else "")


_APOSTROPHE = re.compile(r"['\u2019]")
# All but letters, digits and spaces, the minus of a number, and what stands inside one (2.5, 1/2, 10:30).
_PUNCTUATION = re.compile(rf"(?!(?<!{_WORD})(?<![)\]])-\.?[0-9]|(?<=[0-9])[.,:/-][0-9])[^\w\s]|_")
_OPENING = r"(?:[\s\"'\u201c\u2018(\[{「『*_`$]|\\text\{)*+"
_NAMING = r"(?P<naming>(?:\b(?:option|choice)\b|選択肢)[\s(\[*:]*+)?"  # behind it a bare label is no article
# What may follow a label: a closing sign, a stop that does not go on as in "2.5" or "A.M.", a dash, or 2番, Bです.
_DELIMITER = (
    rf"(?:[^\S\n]*+(?:$|(?=\n)|[)\]}}」』、。*_`$]|[.;,!'\"\u201d\u2019](?!{_WORD})|:(?![0-9]))|\s++[-\u2013\u2014](?=\s)"
    r"|\s?番目?(?:です)?(?!\w)|\s?(?:です|である|だ(?:。|$)|が(?:正|適|答)))"
)
_BETWEEN = re.compile(r"^(?:[\s,&/)\]*、]|and\b|or\b|と|か|または)++")


def chosen_option(text: str, labels: Sequence[str], options: Sequence[str]) -> int | None:
    r"""The index of the option that a generated answer names; None where it names none, or more than one.

    labels, options: the same length; labels[i] ("B", "2", "10") is what options[i] was shown with.

    By falling strength, each looked for behind the markers first (the last one first) and then in the whole text:
    1. a label at the start: "B", "(b)", "B) Paris", "**B.**", "Option B", "Bです", "2番". A bare label needs a
       delimiter, the end, or its option's text behind it, so "A dog is ..." does not name option A. A text that is
       another option ("2.5", "A. Lincoln") names that one. Two labels ("A, B") name none.
    2. the text of an option and nothing else, up to case, punctuation and spaces;
    3. the only option whose text occurs in the answer as whole words (in Japanese: anywhere); an occurrence inside
       that of a longer option ("York" in "New York") does not count.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    stated = [piece for piece in _stated(text) if piece]
    sentences = [_SENTENCE_END.split(piece, maxsplit=1)[0] for piece in stated]
    by_label = _label_finder(labels, options)
    steps: list[tuple[Callable[[str], set[int]], list[str]]] = [
        (by_label, [*stated, text]),
        (lambda piece: _equal(piece, options), [*stated, text.partition("\n")[0], text]),
        (lambda piece: _contained(piece, options), [*sentences, text]),
    ]
    for find, pieces in steps:
        for piece in pieces:
            if named := find(piece):
                return named.pop() if len(named) == 1 else None
    return None


def _label_finder(labels: Sequence[str], options: Sequence[str]) -> Callable[[str], set[int]]:
    index = {unicodedata.normalize("NFKC", label).casefold(): i for i, label in enumerate(labels) if label}
    longest_first = "|".join(re.escape(label) for label in sorted(index, key=len, reverse=True)) or r"(?!)"
    pattern = re.compile(rf"{_OPENING}{_NAMING}(?P<label>{longest_first})(?!{_WORD})(?P<end>{_DELIMITER})?")

    def find(piece: str) -> set[int]:
        folded = piece.casefold()  # re.IGNORECASE would take a Turkish dotless i for an I
        match = pattern.match(folded)
        if match is None:
            return set()
        label, rest = index[match["label"]], folded[match.end() :]
        marked = bool(match["naming"]) or match["end"] is not None
        if marked and not _plain(rest):
            return {label}
        if equal := _equal(piece, options):
            return equal
        if _plain(rest) == _plain(options[label]):
            return {label}
        if not marked:
            return set()
        line = rest.partition("\n")[0]
        second = pattern.match(_BETWEEN.sub("", line, count=1))
        return {label, index[second["label"]]} if second and second["end"] is not None else {label}

    return find


def _equal(piece: str, options: Sequence[str]) -> set[int]:
    exact = {i for i, option in enumerate(options) if option.strip() == piece.strip()}  # tells "C" from "C++"
    plain = _plain(piece)
    return exact or {i for i, option in enumerate(options) if plain and _plain(option) == plain}


def _contained(piece: str, options: Sequence[str]) -> set[int]:
    piece, plain = _plain(piece), [_plain(option) for option in options]
    found = set()
    for words in sorted(filter(None, set(plain)), key=len, reverse=True):
        edge = rf"(?:{_WORD}|[^\w\s])"  # a sign that `_plain` left belongs to a number
        piece, count = re.subn(rf"(?<!{edge}){re.escape(words)}(?!{edge})", "\n", piece)
        if count:
            found |= {i for i, option in enumerate(plain) if option == words}
    return found


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_PUNCTUATION.sub(" ", _APOSTROPHE.sub("", text)).split())
