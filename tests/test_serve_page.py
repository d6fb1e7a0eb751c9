"""The endpoint's page in a browser: headless Chromium asks a small server that answers with canned results."""

import itertools
import json
import math
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.test_report_page import luminance

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

PAGE = Path(__file__).parents[1] / "serve" / "page.html"
CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
PREFIX = "/models/ask/"  # the page may be mounted anywhere
HOSTILE = "<img src=x onerror=\"document.title = 'taken'\"><script>document.title = 'taken'</script>"
LONG = "an-option-without-a-single-space-" * 6
WIDTHS = (1280, 360)


class Reply(NamedTuple):
    """What the server says to a request. wait: seconds until then, cut short when the test ends."""

    body: Any
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    wait: float = 0.0


class Server(ThreadingHTTPServer):
    """Serves the page under PREFIX and answers v1/solve with `replies`, the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.asked: list[tuple[Any, str | None]] = []  # (body, Authorization)
        self.over = threading.Event()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        found = self.path == PREFIX
        self.answer(200 if found else 404, PAGE.read_bytes() if found else b"", "text/html; charset=utf-8")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != PREFIX + "v1/solve":
            return self.answer(404, b"{}", "application/json")
        self.server.asked.append((json.loads(body), self.headers["Authorization"]))
        reply = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
        self.server.over.wait(reply.wait)
        said = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.answer(reply.status, said, "application/json", reply.headers)

    def answer(self, status: int, body: bytes, kind: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        try:
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Security-Policy", CSP), *headers):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the page cancelled
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


def solved(**more: Any) -> dict[str, Any]:
    """A result as of a question that nobody could vote on; `more` is what differs."""
    return {
        "id": 0, "task": "multiple_choice", "group": None, "prediction": None, "answer_text": None, "confidence": None,
        "scores": None, "votes": None, "orders_used": 1, "members": ["small/letters"], "grade": None, "error": None,
        "near_tie": False, "partial": False, "doubt": None, "letter_mass": None, "flip_rate": None, "circular": None,
        "samples": None, "prompt_tokens": 84, "shots_dropped": 0, "cut_tokens": 0, "cut_characters": None,
        "seconds": 0.4213, "detail": [],
    } | more  # fmt: skip


def member(name: str, mean: list[float], orders: int) -> dict[str, Any]:
    """A member whose probabilities swing around `mean` from order to order, by as much up as down."""
    shown = list(itertools.islice(itertools.permutations(range(len(mean))), orders))
    swing = [0.04 * (-1) ** i if i < len(shown) // 2 * 2 else 0.0 for i in range(len(shown))]
    rows = [[mean[0] + s, mean[1] - s, *mean[2:]] for s in swing]
    return {"member": name, "model": name.split("/")[0], "orders": shown, "probabilities": rows, "samples": []}


def chosen(means: list[list[float]], orders: int = 8, **more: Any) -> dict[str, Any]:
    """A result of multiple choice whose members have these mean probabilities."""
    total = [sum(column) / len(means) for column in zip(*means, strict=True)]
    best = max(range(len(total)), key=total.__getitem__)
    members = [member(f"model-{i}/letters", mean, orders) for i, mean in enumerate(means)]
    votes = [orders * len(means) if i == best else 0 for i in range(len(total))]
    return solved(
        prediction=best, confidence=total[best], scores=[math.log(p) for p in total], votes=votes,
        orders_used=orders * len(means), members=[m["member"] for m in members], flip_rate=0.0, detail=members,
    ) | more  # fmt: skip


TWO = [[0.1, 0.6, 0.2, 0.1], [0.2, 0.5, 0.1, 0.2]]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The opened page, which must have said nothing on the console and asked no other host.

    The browser itself notes that an answer has an error's status: that is no fault of the page.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(10_000)
    said: list[str] = []
    page.on("console", lambda m: None if m.text.startswith("Failed to load resource") else said.append(m.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((server.origin, "data:")) else said.append(r.url))
    page.goto(server.origin + PREFIX)
    yield page
    title = page.title()
    page.close()
    assert said == []
    assert title == "Quorum"


def write(
    page: Any, text: str = "What melts first?", choices: tuple[str, ...] = ("ice", "iron", "lead", "tin")
) -> None:
    page.fill("#text", text)
    while page.locator("#options input").count() < len(choices):
        page.click("#add")
    for i, choice in enumerate(choices):
        page.locator("#options input").nth(i).fill(choice)


def ask(page: Any, server: Server, body: Any, **kwargs: Any) -> Any:
    """Presses Answer and waits for what `body` makes the page say."""
    server.replies = [body if isinstance(body, Reply) else Reply(body, **kwargs)]
    page.click("#answer")
    page.wait_for_selector("#wait", state="hidden")
    return page.locator("#result")


def paste(page: Any, text: str) -> None:
    """Through the clipboard, as a person does: cut from another field."""
    page.locator("#more > summary").click()
    page.fill("#context", text)
    page.press("#context", "Control+a")
    page.press("#context", "Control+x")
    page.focus("#text")
    page.keyboard.press("Control+v")


def options(page: Any) -> list[str]:
    return list(page.eval_on_selector_all("#options input", "all => all.map(input => input.value)"))


def unclipped(page: Any, width: int) -> None:
    """Nothing makes the page wider than the window, and no button or number is cut off by it."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.eval_on_selector_all(
        "button, input, .n, .lead, .key, dd, summary",
        "all => all.filter(e => e.checkVisibility() && !e.closest('.scroll')).map(e => e.getBoundingClientRect())"
        ".map(box => [box.left, box.right])",
    )
    assert len(boxes) > 10
    assert all(left >= 0 and right <= width for left, right in boxes)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("means", "choices"),
    [
        (TWO, ("ice", "iron", "lead", "tin")),
        ([[0.25, 0.5, 0.25]], ("ice", LONG, HOSTILE)),
        ([[1 / 26] * 25 + [1 / 26]] * 5, tuple(f"option number {i}" for i in range(26))),
    ],
)
def test_bars_are_as_long_as_the_probabilities(
    page: Any, server: Server, width: int, means: list[list[float]], choices: tuple[str, ...]
):
    page.set_viewport_size({"width": width, "height": 800})
    write(page, choices=choices)
    result = ask(page, server, chosen(means))
    page.eval_on_selector_all("#result details", "all => all.forEach(details => details.open = true)")
    total = [sum(column) / len(means) for column in zip(*means, strict=True)]
    best = max(range(len(total)), key=total.__getitem__)
    assert result.locator("#lead").inner_text().split(maxsplit=1) == ["ABCDEFGHIJKLMNOPQRSTUVWXYZ"[best], choices[best]]
    assert result.locator("#confidence").inner_text() == percent(total[best])
    bars = result.locator(".bars:not(.small) li")
    script = "all => all.map(e => e.querySelector('i').offsetWidth / e.querySelector('.track').offsetWidth)"
    assert bars.evaluate_all(script) == pytest.approx(total, abs=0.015)
    assert bars.locator(".n").all_inner_texts() == [percent(p) for p in total]
    assert [text.split("\n")[1] for text in bars.all_inner_texts()] == list(choices)
    assert result.locator(".bars:not(.small) .chosen .key").inner_text() == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[best]
    unclipped(page, width)


def percent(p: float) -> str:
    return f"{p:.1%}" if p < 0.1 else f"{p:.0%}"


def test_what_is_sent_is_a_question_of_the_projects_format(page: Any, server: Server):
    write(page)
    page.click("#add")  # a blank option is left out, and the right answer's index counts what is sent
    page.locator("#options input").nth(0).fill("")
    page.locator("#options input").nth(4).fill("glass")
    page.click("#more > summary")
    page.select_option("#gold", label="C")
    page.fill("#context", "All are heated together.")
    ask(page, server, chosen(TWO))
    sent = {"task": "multiple_choice", "text": "What melts first?", "context": "All are heated together."}
    assert server.asked == [(sent | {"choices": ["iron", "lead", "tin", "glass"], "answer": 1}, None)]


def test_each_member_has_its_vote_and_a_dot_per_order_and_option(page: Any, server: Server):
    write(page)
    result = ask(page, server, chosen(TWO, orders=6))
    votes = result.locator(".member > summary").all_inner_texts()
    assert [" ".join(vote.split()) for vote in votes] == [
        "model-0/letters prefers B iron 60%", "model-1/letters prefers B iron 50%",
    ]  # fmt: skip
    figure = result.locator("figure").first
    titles = figure.locator("rect title").all_text_contents()
    assert titles[3].split("\n") == ["order 4: A C D B", "A 6.0%, B 64%, C 20%, D 10%"]
    drawn = figure.locator("> svg .dots").evaluate_all("all => all.map(e => e.getAttribute('d').match(/M/g).length)")
    assert sorted(drawn) == [6, 6, 6, 6]
    shapes = figure.locator(".legend .dots").evaluate_all("all => all.map(e => e.getAttribute('d'))")
    assert len(set(shapes)) == 4
    assert [name.strip() for name in figure.locator(".legend").inner_text().split("\n")] == [
        "A ice", "B iron", "C lead", "D tin",
    ]  # fmt: skip
    assert sorted(figure.locator("svg .name").all_text_contents()) == ["A", "B", "C", "D"]


def test_many_members_are_folded(page: Any, server: Server):
    write(page)
    result = ask(page, server, chosen(TWO * 3))
    assert result.locator(".member").count() == 6
    assert result.locator("figure:visible").count() == 0
    result.locator(".member > summary").nth(4).click()
    assert result.locator("figure:visible").count() == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"near_tie": True}, "A toss-up"),
        ({"shots_dropped": 2}, "2 worked examples left out"),
        ({"grade": {"accuracy": 1.0}}, "✓ right"),
        ({"grade": {"accuracy": 0.0}}, "✗ wrong; right is C lead"),
        ({"prediction": 0}, "The highest bar is not the answer"),
        ({"prediction": None, "answer_text": "I cannot say."}, "I cannot say."),
        ({"seconds": 75.2}, "1 min 15 s"),
        ({"detail": []}, "Combined probability of each option."),
        ({"detail": [], "scores": None}, "Share of 16 votes."),
    ],
)
def test_what_is_special_is_said_and_only_then(page: Any, server: Server, more: dict[str, Any], said: str):
    write(page)
    page.click("#more > summary")
    page.select_option("#gold", label="C")
    assert said not in ask(page, server, chosen(TWO)).inner_text()
    assert said in ask(page, server, chosen(TWO, **more)).inner_text()


def test_markup_in_an_answer_is_text(page: Any, server: Server):
    choices = (HOSTILE, "<b>bold</b>", "c")
    write(page, HOSTILE, choices)
    body = chosen([[0.5, 0.3, 0.2]])
    body["detail"][0] |= {"member": HOSTILE, "samples": [{"text": HOSTILE}]}
    result = ask(page, server, body)
    page.eval_on_selector_all("#result details", "all => all.forEach(details => details.open = true)")
    page.wait_for_timeout(100)  # an image's error would come by now
    assert result.locator("#lead b").inner_text() == HOSTILE
    assert result.locator(".asked").inner_text() == HOSTILE
    assert result.locator(".member > summary > span").first.inner_text() == HOSTILE
    assert result.locator(".texts .text").inner_text() == HOSTILE
    assert page.locator("#result :is(img, script)").count() == 0
    failed = Reply({"error": {"message": HOSTILE, "type": "x", "code": 400}}, 400)
    ask(page, server, failed)
    assert page.locator("#trouble [role=alert]").inner_text() == HOSTILE
    assert page.locator("#trouble :is(img, script)").count() == 0


TEXTS = {
    "summarization": ("Summarise", {"rouge2": 0.25}, "rouge2 0.25"),
    "generation": ("Free answer", {"exact_match": 0.0}, "exact_match 0.00"),
    "math": ("Math", {"numeric_match": 0.0}, "✗ wrong; right is 41"),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("task", TEXTS)
def test_a_text_keeps_its_lines_and_wraps(page: Any, server: Server, width: int, task: str):
    name, grade, verdict = TEXTS[task]
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_label(name, exact=True).check()
    assert not page.locator("#choices").is_visible()
    page.fill("#text", "A very long text. " * 50)
    page.click("#more > summary")
    page.fill("#reference", "41")
    said = "first line\n  second line " + "word " * 60 + LONG + "\nso it is 42"
    prediction = "42" if task == "math" else said
    samples = [{"text": said}, {"text": HOSTILE}]
    detail = [{"member": "small/chat", "model": "small", "orders": [], "probabilities": [], "samples": samples}]
    result = ask(page, server, solved(task=task, prediction=prediction, answer_text=said, grade=grade, detail=detail))
    assert server.asked[0][0] == {"task": task, "text": "A very long text. " * 50, "answer": "41"}
    assert result.locator(".text").first.inner_text() == said
    assert verdict in result.inner_text()
    assert result.locator("#lead").all_inner_texts() == (["42"] if task == "math" else [])
    assert result.locator(".member .text").all_text_contents() == [said, HOSTILE]
    page.eval_on_selector_all("#result details", "all => all.forEach(details => details.open = true)")
    unclipped(page, width)


@pytest.mark.parametrize(("context", "named"), [("", "text"), ("😀" * 500 + "b" * 500, "passage")])
def test_what_was_cut_is_shown_where_it_was(page: Any, server: Server, context: str, named: str):
    text = "😀" * 500 + "b" * 500  # characters are counted as Python counts them
    write(page, text)
    page.click("#more > summary")
    page.fill("#context", context)
    result = ask(page, server, chosen(TWO, cut_tokens=1204, cut_characters=[400, 700]))
    assert f"1,204 tokens of the {named} were left out" in result.locator("#cut").inner_text()
    place = "e => [e.offsetLeft / e.parentNode.clientWidth, e.offsetWidth / e.parentNode.clientWidth]"
    assert result.locator(".cut i").evaluate(place) == pytest.approx([0.4, 0.3], abs=0.01)
    result.get_by_text("What was left out").click()
    assert result.locator("#cut del").inner_text() == "😀" * 100 + "b" * 200


PASTED = {
    "letters": ("What melts first?\nA. ice\nB. iron", "What melts first?", ["ice", "iron"], ""),
    "numbers": ("Why?\n\n1) one\n2) two\n3) three\n", "Why?", ["one", "two", "three"], ""),
    "small letters": ("Why?\n(a) one\n(b) two", "Why?", ["one", "two"], ""),
    "Japanese": ("高い山は。\n１．富士山\n２．高尾山\n３．筑波山", "高い山は。", ["富士山", "高尾山", "筑波山"], ""),
    "kana": ("どれか。\nア　富士山\nイ　高尾山".replace("　", "．"), "どれか。", ["富士山", "高尾山"], ""),
    "circles": ("どれか。\n①富士山\n② 高尾山\n正解：②", "どれか。", ["富士山", "高尾山"], "1"),
    "answer": ("Why?\nA: one\nB: two\n\nAnswer: (b)", "Why?", ["one", "two"], "1"),
    "one line": ("Which is wet? (A) rain (B) sand (C) dust", "Which is wet?", ["rain", "sand", "dust"], ""),
    "wrapped": ("Why?\nA. one and\n   a half\n\nB. two\n\nThink.", "Why?\n\nThink.", ["one and a half", "two"], ""),
    "own list": ("1. Ice.\n2. Iron.\nWhich?\nA. only 1\nB. both", "1. Ice.\n2. Iron.\nWhich?", ["only 1", "both"], ""),
    "labels alone": ("Why?\nA.\none\nB.\ntwo", "Why?", ["one", "two"], ""),
}  # fmt: skip


@pytest.mark.parametrize("name", PASTED)
def test_a_pasted_block_is_split_and_can_be_put_back(page: Any, name: str):
    block, text, found, right = PASTED[name]
    paste(page, block)
    assert page.input_value("#text") == text
    assert options(page) == found
    assert page.input_value("#gold") == right
    assert f"{len(found)} options were taken out" in page.locator("#taken").inner_text()
    page.click("#back")
    assert page.input_value("#text") == block
    assert options(page) == [""] * 4


@pytest.mark.parametrize(
    "text",
    [
        "A. Lincoln was tall.\nWas he?",
        "It takes\n1.5 litres\n2.5 metres",
        "1. One\n3. Three",
        "A.\nB.",
        "\n".join(f"{i + 1}. option" for i in range(27)),
    ],
)
def test_a_text_without_options_stays_whole(page: Any, text: str):
    paste(page, text)
    assert page.input_value("#text") == text
    assert options(page) == [""] * 4


def test_a_pasted_list_stays_in_a_text_to_summarise(page: Any):
    page.get_by_label("Summarise", exact=True).check()
    paste(page, "Plan\n1. dig\n2. sow")
    assert page.input_value("#text") == "Plan\n1. dig\n2. sow"


def test_there_are_2_to_26_options_and_the_right_one_moves_with_them(page: Any):
    write(page, choices=tuple(f"option {i}" for i in range(26)))
    assert page.locator("#add").is_disabled()
    page.click("#more > summary")
    page.select_option("#gold", label="C")
    page.get_by_label("remove option A").click()
    assert page.locator("#gold option:checked").inner_text() == "B"
    page.get_by_label("remove option B").click()
    assert page.locator("#gold option:checked").inner_text() == "not given"
    while page.get_by_label("remove option A").is_enabled():
        page.get_by_label("remove option A").click()
    assert options(page) == ["option 24", "option 25"]


@pytest.mark.parametrize("task", ["Multiple choice", *(name for name, _, _ in TEXTS.values())])
def test_the_example_can_be_asked_by_keyboard(page: Any, server: Server, task: str):
    server.replies = [Reply({"error": {"message": "enough", "type": "x", "code": 400}}, 400)]
    page.get_by_label(task, exact=True).check()
    page.click("#example")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    page.get_by_text("enough", exact=True).wait_for()
    assert len(server.asked) == 1
    assert set(server.asked[0][0]) >= {"task", "text"}


@pytest.mark.parametrize(
    ("text", "choices", "said", "focused"),
    [
        (" ", ("a", "b"), "Write the question", "text"),
        ("Why?", ("a", " "), "at least two options", "option B"),
    ],
)
def test_what_is_missing_is_said_before_the_server_is_asked(
    page: Any, server: Server, text: str, choices: tuple[str, ...], said: str, focused: str
):
    write(page, text, choices)
    page.click("#answer")
    assert said in page.locator("#trouble [role=alert]").inner_text()
    assert page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.id") == focused
    assert server.asked == []


def test_a_key_is_asked_for_sent_as_bearer_and_kept_in_the_tab(page: Any, server: Server):
    refused = Reply({"error": {"message": "A key is needed.", "type": "authentication_error", "code": 401}}, 401)
    server.replies = [refused, Reply(chosen(TWO))]
    assert not page.locator("#key").is_visible()
    write(page)
    page.click("#answer")
    page.get_by_text("A key is needed.").wait_for()
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("secret-1")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#lead")
    assert [key for _, key in server.asked] == [None, "Bearer secret-1"]
    assert page.locator("#trouble").inner_text() == ""
    page.reload()
    assert page.input_value("#key") == "secret-1"
    assert page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]") == [
        ["secret-1"], [], "",
    ]  # fmt: skip


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_its_time(page: Any, server: Server, status: int):
    busy = {"error": {"message": "Too many questions at once.", "type": "rate_limit", "code": status}}
    write(page)
    server.replies = [Reply(busy, status, (("Retry-After", "2"),)), Reply(chosen(TWO))]
    page.click("#answer")
    retry = page.locator("#retry")
    retry.wait_for()
    assert page.locator("#trouble [role=alert]").inner_text() == "Too many questions at once."
    assert page.locator("#trouble [role=timer]").inner_text() in ("in 2 s", "in 1 s")
    assert retry.is_disabled()
    retry.click()  # waits until it can be clicked
    page.wait_for_selector("#lead")
    assert page.locator("#trouble").inner_text() == ""
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"error": {"message": "choices[1] is blank", "type": "x", "code": 400}}, 400), "choices[1] is blank"),
        (Reply(b"<h1>bad gateway</h1>", 502), "The server answered 502 Bad Gateway."),
        (Reply(b"no JSON"), "The server answered 200 OK."),
        (Reply(solved(error={"type": "EngineError", "message": "the engine died"})), "the engine died"),
    ],
)
@pytest.mark.parametrize("width", WIDTHS)
def test_an_error_says_what_the_server_says(page: Any, server: Server, reply: Reply, said: str, width: int):
    page.set_viewport_size({"width": width, "height": 800})
    write(page)
    ask(page, server, chosen(TWO))
    ask(page, server, reply)
    assert page.locator("#trouble [role=alert]").inner_text() == said
    assert page.locator("#result").inner_text() == ""  # no answer to another question stands there
    unclipped(page, width)


def test_waiting_is_told_and_can_be_cancelled(page: Any, server: Server):
    write(page)
    server.replies = [Reply(chosen(TWO), wait=20)]
    page.click("#answer")
    page.get_by_text(re.compile("asked: 1 s")).wait_for()
    page.keyboard.press("Control+Enter")  # one question at a time
    page.click("#cancel")
    page.wait_for_selector("#wait", state="hidden")
    assert page.locator("#said").inner_text() == "Cancelled."
    assert page.locator("#lead").count() == 0
    assert len(server.asked) == 1
    server.over.set()
    ask(page, server, chosen(TWO))
    assert page.locator("#said").inner_text() == "Answer: B, iron, confidence 55%."


def test_links_and_labels(page: Any, server: Server):
    hrefs = page.eval_on_selector_all("footer a", "all => all.map(a => a.href)")
    assert hrefs == [f"{server.origin}{PREFIX}docs", f"{server.origin}{PREFIX}v1/models"]
    unnamed = "all => all.filter(e => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).length"
    assert page.eval_on_selector_all("input, select, textarea, button", unnamed) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(page: Any, scheme: str):
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3) for all colours of text, those of the options among them."""
    page.emulate_media(color_scheme=scheme)
    script = "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue(name).trim())"
    names = ["--paper", "--soft", "--ink", "--muted", "--accent", "--warm", *(f"--s{i}" for i in range(8))]
    paper, soft, *inks = map(luminance, page.evaluate(script, names))
    assert (paper < 0.05) == (scheme == "dark")
    for ground in (paper, soft):
        for ink in inks:
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5
