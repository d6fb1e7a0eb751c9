"""The leaderboard: what it says, how large it is, and in headless Chromium how it sorts, filters and compares."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from scipy import stats

from ensemble import leaderboard

CHROMIUM = shutil.which("chromium")
browsing = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">'\"&"
CHOICE, MATH, SUMMARY = "multiple_choice", "math", "summarization"
GROUPS = ["biology", "a law of <b>groups</b> with a rather long name", "physics"]
ORDERS = {"identity": 1.0, "cyclic": 4.0, "adaptive": 6.5, "full": 24.0}


def interval(values: Any) -> dict[str, Any]:
    kept = np.asarray(values, float)
    kept = kept[~np.isnan(kept)]
    half = 1.96 * float(kept.std()) / len(kept) ** 0.5 if len(kept) else 0.0
    mean = float(kept.mean()) if len(kept) else float("nan")
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "n": len(kept)}


class Made:
    """A leaderboard with its questions and answers; `pages` gives the arguments of the page."""

    def __init__(self) -> None:
        self.board: dict[str, Any] = {
            "title": f"spring {HOSTILE}", "created": "2026-11-21T10:00:00", "fingerprint": "0f3a", "seed": 7,
            "input": "questions.jsonl", "command": ["ablate.py"], "tasks": {}, "variants": [],
        }  # fmt: skip
        self.questions: dict[str, list[dict[str, Any]]] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.random = np.random.default_rng(0)

    def task(self, task: str, metric: str, axes: list[dict[str, Any]], n: int, groups: list[str], **text: str) -> None:
        """A variant per element of axes, the later the better, and the more orders the dearer."""
        group_of = self.random.integers(0, len(groups), n) if groups else None
        gold = self.random.integers(0, 4, n)
        self.questions[task] = [
            {
                "id": f"q{i}",
                "group": groups[group_of[i]] if group_of is not None else None,
                "text": f"Question {i}? {text.get('question', '')}",
                "choices": [f"{w} {i}" for w in ("ice", "iron", "snow", "gas")] if task == CHOICE else [],
                "gold": int(gold[i]) if task == CHOICE else [f"answer {gold[i]}"],
            }
            for i in range(n)
        ]
        ease = self.random.normal(0, 1, n)
        found = []
        for k, of_variant in enumerate(axes):
            skill = -0.2 + 0.9 * k / len(axes) + 0.1 * np.log(ORDERS.get(of_variant.get("orders", ""), 1.0))
            right = ease + self.random.normal(0, 0.7, n) < skill
            picked = np.where(right, gold, (gold + self.random.integers(1, 4, n)) % 4)
            grades = right.astype(float)
            if task == CHOICE:
                predictions: Any = picked.astype(np.int16)
                predictions[: min(k, 2)] = -1  # some gave no answer
                grades = (predictions == gold).astype(float)
            else:
                predictions = [f"answer {p}" for p in picked]
            if metric.startswith("rouge"):
                grades = np.round(self.random.beta(2, 3, n) * leaderboard.GRADE_STEPS) / leaderboard.GRADE_STEPS
            name = f"{task[:4]}-{k:03d}"
            self.answers[name] = {"predictions": predictions, "grades": grades}
            found.append(self.variant(name, task, of_variant, grades, groups, group_of))
        self.board["variants"] += found
        best = max(found, key=lambda v: v["score"]["mean"])
        base = self.answers[found[0]["id"]]["grades"]
        for v in found[1:]:
            apart = self.answers[v["id"]]["grades"] - base
            wins, losses = int((apart > 0).sum()), int((apart < 0).sum())
            p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
            difference = {key: x for key, x in interval(apart).items() if key != "n"}
            v["against_reference"] = {
                "difference": difference, "wins": wins, "losses": losses, "p": p, "p_holm": min(1.0, p * len(found)),
            }  # fmt: skip
        for v in found:
            v["pareto"] = not any(
                w["score"]["mean"] > v["score"]["mean"] and w["cost"]["orders"] <= v["cost"]["orders"] for w in found
            )
        chosen = [best["id"], found[-1]["id"]]
        fitted = interval(self.answers[best["id"]]["grades"] * 0.98) | {"chosen": chosen}
        self.board["tasks"][task] = {
            "metric": metric, "questions": n, "chance": 0.25 if task == CHOICE else None, "groups": groups,
            "reference": found[0]["id"], "best": best["id"], "cross_fitted": fitted,
        }  # fmt: skip

    def variant(self, name: str, task: str, axes: dict[str, Any], grades: Any, groups: list[str], of: Any) -> Any:
        orders = ORDERS.get(axes.get("orders", ""), 1.0)
        words = " ".join(str(x) for x in axes.values() if x is not None)
        near = {"guarantee": True, "max_disagreement": 0.01, "confidence": 0.95, "expected_disagreement": 0.003,
                "upper_bound": 0.0098, "orders_share_of_full": 0.31, "calibration_questions": 430}  # fmt: skip
        by_group = {g: interval(grades[of == i]) for i, g in enumerate(groups)}
        spread = interval(self.random.random(50) * 0.3) if task == CHOICE else None
        return {
            "id": name, "task": task, "name": words, "axes": axes, "score": interval(grades),
            "groups": {g: s for g, s in by_group.items() if s["n"]},
            "cost": {"orders": orders, "tokens": None if task != CHOICE else 60 + 45.5 * orders},
            "against_reference": None, "pareto": False,
            "consistency": {"rstd": spread, "flip_rate": spread, "circular_accuracy": None, "ece": spread},
            "adaptive": near if axes.get("orders") == "adaptive" else None,
        }  # fmt: skip

    @property
    def pages(self) -> tuple[Any, Any, Any]:
        return self.board, self.questions, self.answers


def choice_axes() -> list[dict[str, Any]]:
    """80 variants that differ in model, orders, vote and shots; all of one temperature."""
    return [
        {"model": model, "template": "letters", "orders": orders, "combine": vote, "shots": shots, "temperature": 1.0}
        | ({"debias": "pride"} if shots == 5 else {})
        for shots in (0, 1, 2, 5, 10)
        for model in ("smollm2", f"mean {HOSTILE}")
        for vote in ("mean_prob", "majority")
        for orders in ORDERS
    ]


@pytest.fixture(scope="module")
def made() -> Made:
    made = Made()
    made.task(CHOICE, "accuracy", choice_axes(), 600, GROUPS, question=HOSTILE)
    made.questions[CHOICE][5]["gold"] = None
    for answers in made.answers.values():
        answers["grades"][5] = np.nan
    made.task(MATH, "numeric_match", [{"model": m, "samples": n} for m in "ab" for n in (1, 8)], 120, [])
    made.task(SUMMARY, "rouge2_char", [{"model": m, "samples": n} for m in "ab" for n in (1, 5)], 70, [])
    return made


@pytest.fixture(scope="module")
def url(made: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("leaderboard") / "leaderboard.html"
    leaderboard.write(path, *made.pages)
    return path.as_uri()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The opened page, which must have said nothing on the console and asked for nothing but itself."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.split("#")[0] != url else None)
    page.goto(url)
    page.wait_for_selector("#p")
    yield page
    title = page.title()
    page.close()
    assert said == []
    assert title == f"spring {HOSTILE}: Quorum leaderboard"


def variants(made: Made, task: str) -> list[Any]:
    return [v for v in made.board["variants"] if v["task"] == task]


def names(page: Any) -> list[str]:
    return page.eval_on_selector_all("#board tbody .name", "all => all.map(e => e.textContent)")


def column(page: Any, title: str) -> list[str]:
    heads = page.locator("#board thead th").all_inner_texts()
    at = next(i for i, head in enumerate(heads) if head.split(" ")[0] == title.split(" ")[0])
    return page.eval_on_selector_all(
        "#board tbody tr", f"rows => rows.map(row => (row.cells[{at}].firstChild?.textContent ?? ''))"
    )


def number(text: str) -> float:
    return float(re.sub(r"[▲▼+ ,]| (better|worse).*", "", text).replace("−", "-"))


def grades(made: Made, a: str, b: str) -> tuple[Any, Any]:
    first, second = made.answers[a]["grades"], made.answers[b]["grades"]
    kept = ~np.isnan(first) & ~np.isnan(second)
    return first[kept], second[kept]


def choose(page: Any, made: Made, task: str, a: str, b: str) -> None:
    ids = [v["id"] for v in variants(made, task)]
    page.select_option("#pair [name=a]", str(ids.index(a)))
    page.select_option("#pair [name=b]", str(ids.index(b)))
    page.wait_for_function(f"location.hash.includes({json.dumps(urlencode({'a': a, 'b': b}))})")


def counts(page: Any) -> dict[str, int]:
    cells = page.eval_on_selector_all(".counts td", "all => all.map(td => [td.id, td.querySelector('data').value])")
    return {key: int(value) for key, value in cells}


# ---- what the page says and how large it is, without a browser ----


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.split("<script")[0]))


def test_the_head_says_by_how_much_choosing_flatters(made: Made):
    board = made.board | {"variants": [dict(v) for v in made.board["variants"]]}
    board["tasks"] = json.loads(json.dumps(board["tasks"]))
    of_task = [v for v in board["variants"] if v["task"] == MATH]
    of_task[3] |= {"name": "the one", "score": {"mean": 0.6149, "ci_low": 0.5, "ci_high": 0.7, "n": 120}}
    fitted = {"mean": 0.5903, "ci_low": 0.49, "ci_high": 0.68, "n": 120, "chosen": [of_task[3]["id"]] * 2}
    board["tasks"][MATH] |= {"best": of_task[3]["id"], "cross_fitted": fitted}
    said = text_of(leaderboard.page(board, made.questions, made.answers))
    assert "has the one , 0.615. That number is flattered by choosing the highest, here by 0.025:" in said
    assert "the best variant reaches 0.590." in said
    fitted["mean"] = 0.62
    said = text_of(leaderboard.page(board, made.questions, made.answers))
    assert "should be flattered by choosing the highest; here that does not show:" in said


def test_the_file_is_the_page_and_holds_no_markup_of_the_data(made: Made, tmp_path: Path):
    leaderboard.write(tmp_path / "x.html", *made.pages)
    html = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert html == leaderboard.page(*made.pages)
    assert HOSTILE not in html
    assert "<img" not in html
    assert html.count("<script") == html.count("</script>") == 2 + 3  # data and code, and a pack per task
    assert "default-src 'none'" in html


def test_500_variants_of_5000_questions_stay_small():
    """Independent random answers deflate worst. Questions are Japanese (3 bytes a character) and all differ."""
    made, random = Made(), np.random.default_rng(1)
    made.task(CHOICE, "accuracy", [{"model": i} for i in range(500)], 5000, [f"group {i}" for i in range(57)])
    kanji = random.integers(0x4E00, 0x9FFF, (5000, 400))
    for row, question in zip(kanji, made.questions[CHOICE], strict=True):
        question["text"] = "".join(map(chr, row))
    for answers in made.answers.values():
        answers["predictions"] = random.integers(0, 4, 5000).astype(np.int16)
    html = leaderboard.page(*made.pages)
    assert len(html.encode()) < 12_000_000
    assert "shortened to about 280 characters" in html


def test_many_long_texts_are_shortened_until_the_page_is_small(monkeypatch: pytest.MonkeyPatch):
    made = Made()
    made.task(SUMMARY, "rouge2_char", [{"model": i} for i in range(30)], 100, [])
    words = np.array([f"w{i}" for i in range(5000)])
    for answers in made.answers.values():
        answers["predictions"] = [" ".join(made.random.choice(words, 60)) for _ in range(100)]
    full = len(leaderboard.page(*made.pages))
    monkeypatch.setattr(leaderboard, "PAGE_BYTES", full * 2 // 3)
    html = leaderboard.page(*made.pages)
    assert len(html) <= full * 2 // 3
    assert "answers to 140" in html or "answers to 70" in html
    monkeypatch.setattr(leaderboard, "PAGE_BYTES", full // 4)
    assert "texts of answers are left out" in leaderboard.page(*made.pages)


# ---- in the browser ----


@browsing
def test_the_highest_score_comes_first_and_columns_without_values_are_hidden(page: Any, made: Made):
    expected = sorted((v["score"]["mean"] for v in variants(made, CHOICE)), reverse=True)
    assert [number(x) for x in column(page, "score")] == [round(x, 3) for x in expected]
    heads = page.locator("#board thead").inner_text()
    assert "RStd" in heads
    assert "CircularEval" not in heads


@browsing
@pytest.mark.parametrize(
    ("title", "of", "first"),
    [
        ("score", lambda v: v["score"]["mean"], "ascending"),  # the page opens with it descending
        ("difference", lambda v: v["against_reference"] and v["against_reference"]["difference"]["mean"], "descending"),
        ("Holm", lambda v: v["against_reference"] and v["against_reference"]["p_holm"], "ascending"),
        ("tokens", lambda v: v["cost"]["tokens"], "ascending"),
        ("ECE", lambda v: v["consistency"]["ece"]["mean"], "ascending"),
    ],
)
def test_a_click_or_enter_on_a_column_sorts_by_it_and_again_turns_it(
    page: Any, made: Made, title: str, of: Any, first: str
):
    head = page.locator("#board thead th", has_text=title).first
    for turn, way in enumerate([first, "ascending" if first == "descending" else "descending"]):
        head.locator("button").click() if turn == 0 else page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == way
        assert page.locator("[aria-sort]").count() == 1
        by_name = {v["name"]: of(v) for v in variants(made, CHOICE)}
        shown = [by_name[name] for name in names(page)]
        shown = [0.0 if x is None and title == "difference" else x for x in shown]
        if None in shown:
            assert shown.index(None) == len(shown) - 1  # the reference has no p
            shown.pop()
        assert shown == sorted(shown, reverse=way == "descending")


@browsing
def test_filters_add_up_and_the_figures_follow(page: Any, made: Made):
    page.select_option("#filter [data-axis=orders]", label="adaptive")
    page.select_option("#filter [data-axis=shots]", label="10")
    expected = {v["name"] for v in variants(made, CHOICE) if v["axes"]["orders"] == "adaptive"}
    expected = {name for name in expected if " 10 " in name}
    assert set(names(page)) == expected
    assert len(expected) == 4
    assert page.locator("#filter output").inner_text() == "4 of 80 variants"
    assert page.locator("#plot circle.dot").count() == 4
    assert page.locator("#heat tbody tr").count() == 4
    page.fill("#filter [name=q]", "MAJORITY smollm2")
    assert names(page) == ["smollm2 letters adaptive majority 10 1.0"]
    page.click("#clear")
    assert len(names(page)) == 80


@browsing
def test_axes_that_vary_are_filters_missing_values_too(page: Any, made: Made):
    axes = page.eval_on_selector_all("[data-axis]", "all => all.map(e => e.dataset.axis)")
    assert axes == ["model", "orders", "combine", "shots", "debias"]  # template and temperature do not vary
    shots = page.locator("[data-axis=shots] option").all_inner_texts()
    assert shots == ["all", "0", "1", "2", "5", "10"]
    page.select_option("[data-axis=debias]", label="none")
    assert len(names(page)) == 64
    page.select_option("[data-axis=debias]", label="all")
    page.select_option("[data-axis=model]", label=f"mean {HOSTILE}")
    assert len(names(page)) == 40


@browsing
def test_significant_differences_and_the_front_are_marked_by_more_than_colour(page: Any, made: Made):
    rows = dict(zip(names(page), page.locator("#board tbody tr").all_inner_texts(), strict=True))
    for v in variants(made, CHOICE):
        found = v["against_reference"]
        sure = found is not None and found["p_holm"] < 0.05
        up = sure and found["difference"]["mean"] > 0
        assert ("▲" in rows[v["name"]], "▼" in rows[v["name"]]) == (up, sure and not up)
        assert ("◆ Pareto" in rows[v["name"]]) == v["pareto"]
    assert sum("▲" in row for row in rows.values()) > 10
    assert sum("▲" not in row for row in rows.values()) > 2


@browsing
@pytest.mark.parametrize(("task", "places"), [(CHOICE, (70, 0)), (CHOICE, (3, 2)), (CHOICE, (5, 5)), (MATH, (3, 0))])
def test_a_comparison_counts_as_numpy_and_tests_as_scipy(page: Any, made: Made, task: str, places: tuple[int, int]):
    a, b = (variants(made, task)[place]["id"] for place in places)
    if task != CHOICE:
        page.locator("#filter label", has_text=task).click()
    choose(page, made, task, a, b)
    ours, theirs = grades(made, a, b)
    expected = {
        "both": int(((ours == 1) & (theirs == 1)).sum()), "only-a": int((ours > theirs).sum()),
        "only-b": int((ours < theirs).sum()), "neither": int(((ours == 0) & (theirs == 0)).sum()),
    }  # fmt: skip
    page.wait_for_function(f"document.querySelector('#only-a data').value === '{expected['only-a']}'")
    assert counts(page) == expected
    apart = expected["only-a"] + expected["only-b"]
    p = stats.binomtest(expected["only-a"], apart).pvalue if apart else 1.0
    assert float(page.get_attribute("#p", "value")) == pytest.approx(p, rel=1e-9)
    assert "not corrected" in page.locator("#verdict").inner_text()


@browsing
def test_the_list_shows_the_questions_that_the_filter_names_50_at_a_time(page: Any, made: Made):
    a, b = (variants(made, CHOICE)[place]["id"] for place in (75, 0))
    choose(page, made, CHOICE, a, b)
    ours, theirs = made.answers[a], made.answers[b]
    better = [f"q{i}" for i in np.flatnonzero(ours["grades"] > theirs["grades"])]
    page.locator("#show label", has_text="only A right").click()
    page.wait_for_function("location.hash.includes('show=a')")
    ids = "all => all.map(e => e.querySelector('strong').textContent)"
    assert len(better) > 100
    assert page.eval_on_selector_all("#list article", ids) == better[:50]
    page.locator(".pages button", has_text="Next").first.click()
    page.wait_for_function(f"document.querySelector('#list strong').textContent === '{better[50]}'")
    assert page.eval_on_selector_all("#list article", ids) == better[50:100]
    first = int(better[50][1:])
    options = page.locator("#list article").first.locator("li")
    gold = made.questions[CHOICE][first]["gold"]
    assert options.nth(gold).inner_text().split() == [
        *made.questions[CHOICE][first]["choices"][gold].split(),
        "gold",
        "A",
    ]
    assert "B" in options.nth(int(theirs["predictions"][first])).inner_text().split()
    page.locator("#show label", has_text="answers differ").click()
    apart = int((ours["predictions"] != theirs["predictions"]).sum())
    page.wait_for_function(f"document.querySelector('.pages').textContent.includes('of {apart}')")


@browsing
def test_texts_are_compared_side_by_side_with_their_grades(page: Any, made: Made):
    page.locator("#filter label", has_text=SUMMARY).click()
    a, b = (variants(made, SUMMARY)[place]["id"] for place in (1, 2))
    choose(page, made, SUMMARY, a, b)
    page.locator("#show label", has_text="all").click()
    page.wait_for_function("location.hash.includes('show=all')")
    ours, theirs = grades(made, a, b)
    expected = {"only-a": int((ours > theirs).sum()), "only-b": int((ours < theirs).sum())}
    assert counts(page) == expected | {"both": int((ours == theirs).sum())}
    article = page.locator("#list article").nth(7)
    assert article.locator(".texts div").all_inner_texts() == [
        f"A\n{made.answers[a]['predictions'][7]}",
        f"B\n{made.answers[b]['predictions'][7]}",
        f"gold\n{made.questions[SUMMARY][7]['gold'][0]}",
    ]
    assert f"A {ours[7]:.2f}" in article.inner_text()
    assert "sign test" in page.locator("#verdict").inner_text()


@browsing
def test_a_click_on_a_variant_compares_it_and_the_address_can_be_shared(page: Any, made: Made, url: str):
    name = names(page)[4]
    page.locator("#board .name").nth(4).click()
    of = {v["id"]: v for v in variants(made, CHOICE)}
    shared = page.url
    kept = next(v["id"] for v in of.values() if v["name"] == name)
    assert f"a={kept}&b={made.board['tasks'][CHOICE]['reference']}" in shared
    page.goto("about:blank")
    page.goto(shared)
    page.wait_for_selector("#p")
    assert name in page.locator("#pair [name=a] option:checked").inner_text()
    page.click("#swap")
    assert name in page.locator("#pair [name=b] option:checked").inner_text()
    page.goto(f"{url}#task={MATH}&a=no-such&b=neither")
    page.wait_for_function("document.querySelector('#filter [name=task]:checked').value === 'math'")


@browsing
def test_the_scatter_marks_its_front_and_a_dot_opens_its_comparison(page: Any, made: Made):
    rows = sorted(variants(made, CHOICE), key=lambda v: (v["cost"]["orders"], -v["score"]["mean"]))
    front: list[Any] = []
    for v in rows:
        if not front or v["score"]["mean"] > front[-1]["score"]["mean"]:
            front.append(v)
    dots = page.locator("#plot .dot.front")
    assert [label.split(": 0.")[0] for label in dots.evaluate_all("all => all.map(e => e.ariaLabel)")] == [
        v["name"] for v in front
    ]
    assert "log scale" in page.locator("#plot").inner_text()  # 1 to 24 orders
    assert {"1", "4", "24"} <= set(page.locator("#plot text").all_text_contents())
    dots.first.focus()
    assert front[0]["name"] in page.locator("#readout").inner_text()
    page.keyboard.press("Enter")
    assert f"a={front[0]['id']}&" in page.url
    page.locator("#plot").scroll_into_view_if_needed()
    dots.last.click()
    assert f"a={front[-1]['id']}&" in page.url
    page.select_option("#unit", "tokens")
    assert "tokens sent" in page.locator("#plot").inner_text()


@browsing
def test_the_heat_map_has_the_first_30_variants_by_group(page: Any, made: Made):
    of = {v["name"]: v for v in variants(made, CHOICE)}
    assert page.locator("#heat tbody tr").count() == 30
    assert page.locator("#heat tbody th").all_inner_texts() == names(page)[:30]
    first = of[names(page)[0]]
    cells = page.locator("#heat tbody tr").first.locator("td").all_inner_texts()
    expected = [first["score"], *(first["groups"][g] for g in GROUPS)]
    assert [float(cell) for cell in cells] == pytest.approx([s["mean"] for s in expected], abs=0.00501)
    page.locator("#filter label", has_text=MATH).click()  # no groups: by task, of those that have such variants
    assert page.locator("#heat thead th").all_inner_texts()[1:] == [MATH, SUMMARY]
    at = page.locator("#heat tbody th").all_inner_texts().index("a 1")
    scores = [next(v for v in variants(made, task) if v["name"] == "a 1")["score"]["mean"] for task in (MATH, SUMMARY)]
    cells = page.locator("#heat tbody tr").nth(at).locator("td").all_inner_texts()
    assert [float(cell) for cell in cells] == pytest.approx(scores, abs=0.00501)


@browsing
@pytest.mark.parametrize("task", [CHOICE, SUMMARY])
def test_a_phone_need_not_scroll_sideways(page: Any, task: str):
    page.set_viewport_size({"width": 375, "height": 700})
    page.locator("#filter label", has_text=task).click()
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    sizes = page.eval_on_selector_all("#plot text", "all => all.map(e => e.getBoundingClientRect().height)")
    assert min(sizes) > 9


@browsing
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("colour", ["score", "difference"])
def test_the_heat_map_can_be_read_in_both_themes(page: Any, scheme: str, colour: str):
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3) of the numbers on every cell; a canvas gives colours as sRGB."""
    page.emulate_media(color_scheme=scheme)
    page.select_option("#colour", colour)
    script = """all => {
      const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const light = colour => {
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        const linear = c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(linear);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      return all.map(td => [light(getComputedStyle(td).color), light(getComputedStyle(td).backgroundColor)]);
    }"""
    pairs = page.eval_on_selector_all("#heat td:not(.few)", script)
    assert len({ground for _, ground in pairs}) > 5
    assert min((max(pair) + 0.05) / (min(pair) + 0.05) for pair in pairs) >= 4.5


@browsing
def test_without_script_the_findings_can_be_read(browser: Any, url: str, made: Made):
    page = browser.new_page(java_script_enabled=False)
    page.goto(url)
    assert page.locator(".tasks section").count() == 3
    assert f"{made.board['tasks'][MATH]['cross_fitted']['mean']:.3f}" in page.locator(".tasks").inner_text()
    assert not page.locator("#filter").is_visible()
    page.close()
