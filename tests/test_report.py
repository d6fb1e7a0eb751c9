"""The report: what it says of a run, and a page that is whole, small and escaped."""

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ensemble import charts, figures, report
from ensemble.config import Letter, Member, RunConfig, TaskPlan, Template
from ensemble.grading import GradeBook
from ensemble.idle import CAUSES
from ensemble.outputs import Written
from ensemble.plan import Plan
from ensemble.read import InputSummary
from ensemble.records import RowError
from tests.predicted import Rows, choice, digest_of, failed, mixed, text_row


def write(path: Path, rows: Rows, errors: list[RowError] | None = None, slowest: Any = (), **more: Any) -> str:
    """The page for these rows, as a run would write it; `more` replaces parts of the manifest."""
    book, tasks = GradeBook(), Counter(question.task for question, _ in rows)
    for question, row in rows:
        book.add(question.task, question.group, row["grade"])
        if isinstance(question.gold, int | None) and question.choices:
            known = (row[key] for key in ("prediction", "confidence", "flip_rate", "circular"))
            book.consistency(question.task, question.group).add(question.gold, *known)
    lost = [RowError(q.file, q.line, q.id, **row["error"]) for q, row in rows if row["error"]]
    digest = digest_of(rows, slowest=slowest)
    member = Member(model="m", template="t", scoring=Letter(method="letter"))
    config = RunConfig(tasks={"multiple_choice": TaskPlan(members=(member,))}, templates={"t": Template(question="?")})
    facts = {
        "config": {"output": "runs/x", "seed": 0, "models": {"m": {"source": {"hub": "org/m", "path": None}}}},
        "fingerprint": "f" * 32,
        "command": ["pipelines/solve.py", "--config", "configs/mine.yaml"],
        "store": "runs/store",
        "versions": {"quorum": "abc", "vllm": "0.29.0"},
        "models": {"m": {"fingerprint": "0", "revision": None, "device": "cpu"}},
        "questions": {
            "total": len(rows), "answered": len(rows) - len(lost), "failed": len(lost), "bad_rows": 0,
            "from_store": 0, "computed": len(rows), "near_ties": sum(row["near_tie"] for _, row in rows),
        },
        "seconds": {"read": 1.0, "infer": 9.0, "write": 2.0, "inference": {"engines": 5.0, "solve": 3.0}},
        "usage": {},
        "drift": {"repeated": 0},
    }  # fmt: skip
    read = InputSummary(len(rows), dict(tasks), {}, 0, 0, 0, 1, [], [], len(rows), {}, [])
    answered = Counter(question.task for question, row in rows if not row["error"])
    nothing = Written._make([None] * len(Written._fields))
    written = nothing._replace(answered=answered, failed=lost, grades=book.summary(0), digest=digest)
    report.write(path, Plan(config, {}, {}), read, written, facts | more, [*(errors or []), *lost], digest)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would see: tags, ids, headings, and text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._within: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        self._within.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data: str) -> None:
        if self._within[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._within = self._within[:-1]


SECTIONS = {"scores", "confidence", "options", "inputs", "stability", "failures", "slowest"}
ALWAYS = {"questions", "cost", "examples", "run"}


def sections(html: str) -> set[str]:
    return set(re.findall(r'<h2 id="(\w+)"', html))


def engines(n: int) -> dict[str, Any]:
    """The manifest's part of n engines, each busier than the next, the last of them restarted."""
    counts = {"gpus": 1, "requests": 24, "prompt_tokens": 9000, "cached_tokens": 7200, "output_tokens": 24, "errors": 0}
    told = {"node": "h", "restarted": False, "cached_share": 0.8, "tokens_per_second": 2256.0, "memory_gib": 21.5}
    lives = [
        {"model": "m", "replica": i, "seconds": {"loading": 20.0, "busy": 70.0 - i, "tail": 10.0 + i}} | counts | told
        for i in range(n)
    ]
    lives.append(lives[-1] | {"restarted": True, "seconds": {"restart": 4.5}, "memory_gib": None})
    spent = {
        what: sum(life["seconds"].get(what, 0.0) for life in lives) for what in ("busy", "loading", "tail", "restart")
    }
    seconds = {"busy": 0.0, **dict.fromkeys(CAUSES, 0.0)} | spent | {"unused": 100.0}
    return {"engines": lives, "idle": {"of": "GPU", "devices": n + 1, "span": 100.0, "seconds": seconds}}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path):
    rows = list(mixed(600))
    assert write(tmp_path / "a.html", rows) == write(tmp_path / "b.html", rows)


@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [
        ([choice(i, letter_mass=0.9) for i in range(30)], {}, {"scores", "confidence", "options"}),
        ([choice(i, gold=None) for i in range(30)], {}, {"confidence", "options"}),
        ([text_row(i, "generation") for i in range(5)], {}, {"scores"}),
        ([text_row(i, "generation", prompt_tokens=10 + i) for i in range(40)], {}, {"scores", "inputs"}),
        ([text_row(0, "math", cut_tokens=5, cut_characters=[0, 2])], {}, {"scores", "inputs"}),
        ([failed(0)], {}, {"scores", "failures"}),
        ([choice(0, near_tie=True)], {}, {"scores", "confidence", "options", "stability"}),
        ([text_row(0, "math")], {"drift": {"repeated": 2, "mean": 0.1, "max": 0.2}}, {"scores", "stability"}),
        ([text_row(0, "math")], {"slowest": [{"row_index": 0, "seconds": 2.0}]}, {"scores", "slowest"}),
        ([text_row(0, "math")], engines(1), {"scores", "engines"}),
        ([text_row(0, "math")], {"engines": []}, {"scores"}),
    ],
)
def test_a_section_is_there_exactly_when_it_has_something_to_show(
    tmp_path: Path, rows: Rows, more: dict[str, Any], expected: set[str]
):
    html = write(tmp_path / "r.html", rows, **more)
    assert sections(html) == expected | ALWAYS
    linked = set(re.findall(r'<a href="#(\w+)">', html))
    assert linked - {"row"} == expected | ALWAYS


def test_scores_come_lowest_first_and_what_is_clearly_low_is_marked(tmp_path: Path):
    rows = [choice(i, right=i % 5 > 0, group="physics") for i in range(200)]
    rows += [choice(200 + i, right=i % 5 == 0, group="law") for i in range(200)]
    rows += [text_row(400 + i, "math", float(i % 10 == 0)) for i in range(100)]
    text = Page(write(tmp_path / "r.html", rows)).text
    order = [text.index(part) for part in ("math, numeric_match", "multiple_choice, accuracy", "law ▼ lowest group")]
    assert order == sorted(order)
    assert "math, numeric_match ▼ lowest task 0.100" in text
    assert "law ▼ lowest group ▼ clearly below the task 0.200" in text
    assert "physics 0.800" in text


def test_consistency_is_told_with_its_meaning_and_never_as_a_score(tmp_path: Path):
    rows = [choice(i, right=i % 4 > 0, gold=1 + (i % 4 == 0), flip_rate=0.5 * (i < 10), circular=1) for i in range(40)]
    rows = [(q, r | {"prediction": 1}) for q, r in rows]
    html = write(tmp_path / "r.html", rows)
    scores, options = (
        Page(html[: html.index('<h2 id="cost">')]).text,
        Page(html[html.index('<h2 id="options">') :]).text,
    )
    # 10 of 40 flip by 0.5; all circles choose B, the gold of 30; B is always found and C never; 0.8 sure, 0.75 right
    for measure, mean in [("flip rate", 0.125), ("CircularEval", 0.75), ("RStd", 0.5), ("ECE", 0.05)]:
        assert re.search(rf"{measure}[^.]* {mean:.3f} \d\.\d+ to \d\.\d+ 40 [A-Z]", options), measure
        assert measure not in scores
    assert "accuracy" in scores
    assert not re.search("flip_rate|circular_accuracy|rstd", html)
    without = Page(write(tmp_path / "r.html", [choice(i, gold=None, flip_rate=0.5) for i in range(20)])).text
    assert "0.500 0.500 to 0.500 20" in without
    assert "RStd" not in without
    assert "consistency" not in Page(write(tmp_path / "r.html", [text_row(0, "math")])).text


def test_a_group_of_few_questions_or_of_all_is_not_called_low(tmp_path: Path):
    rows = [choice(i, group="physics") for i in range(50)] + [choice(50, right=False, group="one question")]
    text = Page(write(tmp_path / "r.html", rows)).text
    assert "one question ▼ lowest group 0.000" in text
    alone = [choice(i, right=False, group="the only group") for i in range(20)]
    assert "▼ lowest" not in Page(write(tmp_path / "r.html", alone)).text


def test_with_a_baseline_tasks_are_compared_by_their_ratio_to_it(tmp_path: Path):
    rows = [choice(i, right=i % 2 > 0) for i in range(100)] + [
        text_row(100 + i, "summarization", 0.2) for i in range(9)
    ]
    entries = {
        "multiple_choice": {"metric": "accuracy", "mean": 0.5, "baseline": 0.8, "ratio": 0.625},
        "summarization": {"metric": "rouge1", "mean": 0.2, "baseline": 0.1, "ratio": 2.0},
    }
    text = Page(write(tmp_path / "r.html", rows, relative={"total": 2.625, "tasks": entries})).text
    assert "multiple_choice, accuracy ▼ lowest task" in text
    assert "against the baseline 2.625" in text
    assert "summarization rouge1 0.200 0.100 2.000" in text
    assert "summarization, rouge1 ▼ lowest task" in Page(write(tmp_path / "r.html", rows)).text


def test_tokens_cost_and_speed_by_hand(tmp_path: Path):
    def member(*counts: int) -> dict[str, int]:
        return dict(zip(("requests", "prompt_tokens", "cached_tokens", "output_tokens"), counts, strict=True))

    # Computed: a 1000 - 400 + 0 = 600, b 300 + 100 = 400, of 1000. The task's 1400 tokens in 7 s are 200 a second.
    usage = {"math": {"seconds": 7.0, "members": {"a": member(10, 1000, 400, 0), "b": member(5, 300, 0, 100)}}}
    text = Page(write(tmp_path / "r.html", [text_row(0, "math")], usage=usage)).text
    assert "math a 7.0 10 1,000 400 (40%) 600 0 60% 200" in text
    assert "math b 7.0 5 300 0 (0%) 300 100 40% 200" in text
    assert "12 s" in text  # 1 + 9 + 2


def test_the_parts_of_inference_stand_for_it_among_the_steps():
    spent = {"read": 1.0, "infer": 9.0, "write": 2.0, "inference": {"engines": 5.0, "solve": 3.0}}
    expected = [("read", 1), ("load models", 5), ("answer", 3), ("rest of inference", 1), ("write", 2)]
    assert [(name, float(value)) for name, value in charts.stages(spent).rows] == expected


def test_engines_are_told_life_by_life_and_drawn_with_what_they_waited_for(tmp_path: Path):
    text = Page(write(tmp_path / "r.html", [text_row(0, "math")], **engines(2))).text
    # Of 304.5 s (100 of them nobody's): busy 70 + 69, loading 40, tail 10 + 11, restart 4.5.
    assert "GPUs busy 46% of 100 s x 3; idle: unused 33%, loading 13%, tail 7%, restart 1%." in text
    assert "m/0 h 1 20.0 70.0 24 9,000 80% 24 2,256 0 21.5" in text
    assert "m/1 ▲ restarted h 1 4.5 0.0 24 9,000 80% 24 2,256 0" in text
    chart = charts.engines(engines(2))
    assert chart is not None
    assert chart.head == ("seconds", "loading", "busy", "restart", "tail", "unused")
    # The mean GPU of three; replica 1 with both its lives.
    assert chart.rows[0] == ("mean GPU", "13.3", "46.3", "1.5", "7.0", "33.3")
    assert chart.rows[2] == ("m/1", "20.0", "69.0", "4.5", "11.0", "0.0")
    assert "starved" not in chart.caption
    assert "tail: the engine had done its last work" in chart.caption


def test_of_many_engines_the_least_busy_are_drawn():
    chart = charts.engines(engines(40))
    assert chart is not None
    assert [row[0] for row in chart.rows[1:]] == [f"m/{i}" for i in range(28, 40)]
    assert "the 12 engines that were least busy" in chart.caption


def test_a_deadline_says_what_it_left_out(tmp_path: Path):
    late = {"seconds": 7200.0, "seconds_left": 3.0, "answered_in_full": 5, "answered_in_part": 2, "not_reached": 4}
    text = Page(write(tmp_path / "r.html", [text_row(0, "math")], deadline=late)).text
    assert "The deadline of 2 h 0 min left 4 questions unanswered and 2 answered in part." in text
    assert "5 questions were answered in full, 2 in part, 4 were not reached; 3 s were left" in text


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([choice(i, letter_mass=0.05) for i in range(10)], "in 100% of the questions the option labels hold under 10%"),
        ([choice(i, 0.9, i % 2 > 0) for i in range(100)], "the confidence is too sure, by 0.40 (ECE)"),
        ([choice(i, 0.3) for i in range(100)], "the confidence is too modest, by 0.70 (ECE)"),
        (
            [choice(i, right=i % 4 == 1, gold=i % 4) for i in range(200)],
            "option C is answered in 75% of the questions and right in 25%",
        ),
        ([choice(i, right=i % 4 == 0) for i in range(100)], "multiple_choice is no better than guessing (0.250)"),
        ([text_row(i, "math", prediction=None) for i in range(4)], "no answer could be read from 4 texts (100%)"),
        ([text_row(0, "math", cut_tokens=5, cut_characters=[0, 2])], "100% of the inputs were cut to fit"),
        ([choice(i, near_tie=i < 3) for i in range(30)], "10% of the answers are near ties"),
        ([failed(i) for i in range(3)] + [failed(9, "EngineError")], "4 rows have no answer, most often for TooLong"),
    ],
)  # fmt: skip
def test_what_stands_out_is_said_first(tmp_path: Path, rows: Rows, expected: str):
    text = Page(write(tmp_path / "r.html", rows)).text
    assert expected in text[: text.index("rows of 1 file")]


def test_where_nothing_stands_out_nothing_is_said(tmp_path: Path):
    assert "To look at first" not in write(tmp_path / "r.html", [choice(i, 0.95) for i in range(40)])


def test_failed_rows_are_grouped_with_place_and_cure(tmp_path: Path):
    errors = [RowError("in.jsonl", None, None, "InputError", "not JSON; close the brace")]
    rows = [failed(i) for i in range(report.SHOWN_ERRORS + 5)] + [failed(900, "EngineError")]
    text = Page(write(tmp_path / "r.html", rows, errors)).text
    places = [text.index(f"{kind}: {n}") for kind, n in (("TooLongError", 65), ("InputError", 1), ("EngineError", 1))]
    assert places[0] == min(places)
    assert "TooLongError: raise context_length" in text
    assert "q0 in.jsonl:1 " in text
    assert "5 more are in errors.jsonl" in text
    assert "not JSON; close the brace" in text
    assert "q900 in.jsonl:901" in text


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>&lt;"


def test_nothing_from_outside_becomes_markup(tmp_path: Path):
    fields = {"id": HOSTILE, "text": HOSTILE, "context": HOSTILE, "group": HOSTILE, "choices": (HOSTILE,) * 4}
    rows = [choice(i, right=False, **fields, samples=[HOSTILE], answer_text=HOSTILE) for i in range(30)]
    rows += [
        text_row(40 + i, "math", 0.0, answer_text=HOSTILE, prediction=HOSTILE, prompt_tokens=i + 1) for i in range(40)
    ]
    errors = [RowError(HOSTILE, 1, HOSTILE, HOSTILE, HOSTILE)]
    html = write(tmp_path / "r.html", rows, errors, command=["solve", HOSTILE], store=HOSTILE)
    page = Page(html)
    assert page.tags["script"] == 1
    assert page.tags["img"] == page.tags["b"] == 0
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert HOSTILE in page.text


def test_a_page_of_the_longest_texts_stays_under_three_megabytes(tmp_path: Path):
    text = "<日本&" * 5000
    rows: Rows = [
        text_row(i, task, (i % 7) / 10, text=text, context=text, answer_text=text, prediction=text, samples=[text] * 8,
                 cut_tokens=i % 3, cut_characters=[100, 5000] if i % 3 else None)
        for i, task in enumerate(["math", "summarization", "generation"] * 60)
    ]  # fmt: skip
    rows += [choice(1000 + i, text=text, group=f"{i} {text}", choices=(text,) * 4) for i in range(150)]
    html = write(tmp_path / "r.html", rows)
    assert len(html.encode()) < report.PAGE_BYTES
    assert html.count('class="example"') >= 8


def test_the_page_is_self_contained_and_well_formed(tmp_path: Path):
    html = write(tmp_path / "r.html", list(mixed(2000)), slowest=[{"row_index": 2, "seconds": 3.0}])
    page = Page(html)
    assert sections(html) == SECTIONS | ALWAYS
    assert len(page.ids) == len(set(page.ids))
    assert page.headings[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(page.headings))
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "action", "xlink:href")]
    assert {value[0] for value in loaded if value != "data:,"} == {"#"}
    assert "url(http" not in html
    assert "@import" not in html
    drawn = [(name, value) for tag, name, value in page.attributes if tag == "svg" and name in ("role", "aria-label")]
    assert len(drawn) == 2 * page.tags["svg"] > 10
    assert page.tags["figcaption"] == page.tags["figure"] == page.tags["svg"]
    assert sum(tag == "th" and name == "scope" for tag, name, _ in page.attributes) == page.tags["th"]
    targets = {value[1:] for value in loaded if value.startswith("#row-")}
    assert targets == {"row-2"} <= set(page.ids)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["solve.py", "--config", "configs/mine.yaml"], "mine"),
        (["solve.py", "--config=a/b.yaml", "--limit", "5"], "b"),
        (["solve.py"], "x"),
    ],
)
def test_the_run_is_called_by_its_config(command: list[str], name: str):
    assert report.run_name({"command": command, "config": {"output": "runs/x"}}) == name


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0123, "0.0123 s"),
        (4.256, "4.26 s"),
        (39.0, "39 s"),
        (59.96, "60 s"),
        (725, "12 min 5 s"),
        (12_000, "3 h 20 min"),
    ],
)
def test_seconds_for_people(value: float, expected: str):
    assert charts.seconds(value) == expected


def test_figures_are_text_in_the_colours_of_the_page():
    rows = [figures.Interval("日本史 $a$ <b>", 0.5, 0.4, 0.6, marked=True)]
    svg = figures.intervals("name", 'of "x" & <y>', rows)
    assert svg.startswith('<svg role="img" aria-label="of &#34;x&#34; &amp; &lt;y&gt;"')
    assert "日本史 $a$ &lt;b&gt;</text>" in svg
    assert "var(--warm)" in svg
    assert not re.search(r"#0[0-9]0|DejaVu|<style|<metadata", svg)
    assert svg == figures.intervals("name", 'of "x" & <y>', rows)
