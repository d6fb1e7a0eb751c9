"""The report in a browser: headless Chromium opens a page of 10,000 rows from disk."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from ensemble import report
from tests.predicted import choice, failed, mixed, text_row
from tests.test_report import write

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

CUT = 4001  # row_index of rows that the tests look for
TIE = 4002
FAILED = 4003
HOSTILE = 4004


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = list(mixed(10_000))
    text = "kept at first " + "unseen " * 100 + "kept at last"
    rows[CUT] = text_row(CUT, "summarization", 0.0, text=text, cut_tokens=100, cut_characters=[14, 714])
    rows[TIE] = choice(TIE, 0.26, near_tie=True, text="a question about glaciers")
    rows[FAILED] = failed(FAILED, "OddError", task="generation")
    rows[HOSTILE] = text_row(HOSTILE, "generation", 0.0, text="<script>document.title = 'taken'</script>")
    path = tmp_path_factory.mktemp("report") / "report.html"
    html = write(path, rows, slowest=[{"row_index": TIE, "seconds": 9.0}])
    assert len(html.encode()) < report.PAGE_BYTES / 2
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
    yield page
    page.close()
    assert said == []


def shown(page: Any) -> list[str]:
    return page.eval_on_selector_all(".example:not([hidden])", "rows => rows.map(row => row.id)")


def test_all_examples_are_there_and_the_title_is_the_runs(page: Any):
    assert page.title() == "mine: Quorum report"
    assert len(shown(page)) > 80
    assert page.locator("#filter output").inner_text() == f"{len(shown(page))} of {len(shown(page))} examples"


@pytest.mark.parametrize(("flag", "row"), [("failed", FAILED), ("cut", CUT), ("near_tie", None), ("wrong", None)])
def test_a_flag_leaves_only_its_rows(page: Any, flag: str, row: int | None):
    page.select_option("#filter [name=flag]", flag)
    rows = shown(page)
    assert 0 < len(rows) < 80
    flags = page.eval_on_selector_all(".example:not([hidden])", "rows => rows.map(row => row.dataset.flags.split(' '))")
    assert all(flag in of_row for of_row in flags)
    assert row is None or f"row-{row}" in rows
    assert page.evaluate("location.hash") == f"#flag={flag}"


def test_filters_add_up_and_the_address_keeps_them(page: Any, url: str):
    page.select_option("#filter [name=task]", "multiple_choice")
    page.fill("#filter [name=q]", "GLACIERS question")
    assert shown(page) == [f"row-{TIE}"]
    page.goto("about:blank")
    page.goto(f"{url}#task=multiple_choice&q=GLACIERS+question")
    assert shown(page) == [f"row-{TIE}"]
    assert page.input_value("#filter [name=task]") == "multiple_choice"
    page.fill("#filter [name=q]", "no such words")
    assert shown(page) == []


def test_an_example_opens_and_shows_its_text_and_what_was_cut(page: Any):
    row = page.locator(f"#row-{CUT}")
    assert not row.locator(".text").first.is_visible()
    row.locator("summary").first.click()
    assert row.locator(".text").first.is_visible()
    assert row.get_by_text("kept at last").is_visible()
    assert not row.locator("del").is_visible()
    row.get_by_text("700 characters were cut").click()
    assert row.locator("del").is_visible()
    assert row.locator("del").evaluate("e => getComputedStyle(e).textDecorationLine") == "line-through"


def test_a_slow_row_is_one_click_away(page: Any):
    page.select_option("#filter [name=flag]", "failed")
    page.locator("#slowest ~ .scroll a").first.click()
    page.wait_for_function(f"document.querySelector('#row-{TIE}').open")
    assert page.get_by_text("a question about glaciers").last.is_visible()


def test_a_number_of_failed_rows_leads_to_them(page: Any):
    page.locator("a[href='#task=generation&flag=failed']").click()
    page.wait_for_function("document.querySelector('#filter [name=flag]').value === 'failed'")
    assert shown(page) == [f"row-{FAILED}"]


def test_the_worst_task_comes_first_and_says_so(page: Any):
    rows = page.locator("#scores ~ .figures").first.locator("tbody tr.whole")
    means = [float(mean) for mean in rows.locator("td:nth-child(2)").all_inner_texts()]
    assert means == sorted(means)
    assert "lowest task" in rows.first.inner_text()


def test_script_in_a_question_is_text(page: Any):
    page.locator(f"#row-{HOSTILE} summary").first.click()
    assert page.locator(f"#row-{HOSTILE} .text").first.inner_text() == "<script>document.title = 'taken'</script>"
    assert page.title() == "mine: Quorum report"


def test_a_phone_need_not_scroll_sideways(page: Any):
    page.set_viewport_size({"width": 375, "height": 700})
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    sizes = page.eval_on_selector_all("figure svg text", "all => all.map(e => e.getBoundingClientRect().height)")
    assert min(sizes) > 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page(page: Any, scheme: str):
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3) for all colours of text, figures included."""
    page.emulate_media(color_scheme=scheme)
    script = "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue(name).trim())"
    names = ["--paper", "--soft", "--ink", "--muted", "--accent", "--warm"]
    paper, soft, *inks = map(luminance, page.evaluate(script, names))
    assert (paper < 0.05) == (scheme == "dark")
    for ground in (paper, soft):
        for ink in inks:
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5
    page_colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance(page_colour) == pytest.approx(paper)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of #rgb, #rrggbb or rgb(r, g, b)."""
    if colour.startswith("#"):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
    else:
        parts = [int(n) for n in re.findall(r"\d+", colour)[:3]]
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_printed_it_is_black_on_white_with_the_numbers_open(page: Any):
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 1
    assert not page.locator("#filter").is_visible()
    assert page.locator(".numbers table").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_without_script_everything_can_be_read(browser: Any, url: str):
    page = browser.new_page(java_script_enabled=False)
    page.goto(url)
    assert not page.locator("#filter").is_visible()
    page.locator(f"#row-{TIE} summary").first.click()
    assert page.get_by_text("a question about glaciers").last.is_visible()
    page.close()
