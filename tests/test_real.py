"""The main path with the real model, real vLLM and real Ray on CPU: scores, kill -9, resume, replay, other formats."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ensemble.config import ROOT
from tests.demo import command, decisions_agree, env, lines, solve, stored_rows

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

ENGINE = re.compile(r"ray::EngineActor|VLLM::")
FILES = ("predictions.jsonl", "grades.json", "submission.json", "errors.jsonl")


def test_the_demo_is_answered_graded_and_well_above_chance(undisturbed):
    predictions = lines(undisturbed / "run/predictions.jsonl")
    ids = [row["id"] for row in lines(ROOT / "configs/demo/questions.jsonl")]
    assert [p["id"] for p in predictions] == ids
    assert not any(p["error"] for p in predictions)
    grades = json.loads((undisturbed / "run/grades.json").read_text())
    # 22 four-option questions: chance is 0.25; 0.45 lies two standard errors above it.
    assert grades["multiple_choice/english-4"]["accuracy"]["mean"] > 0.45
    assert grades["generation"]["f1"]["mean"] > 0.3
    assert grades["summarization"]["rouge1"]["mean"] > 0.1
    (long,) = [p for p in predictions if p["group"] == "long"]
    assert long["cut_tokens"] > 1000
    manifest = json.loads((undisturbed / "run/manifest.json").read_text())
    assert manifest["questions"]["computed"] == manifest["questions"]["total"] == 60
    assert list(manifest["models"]) == ["smollm2_gptq"]
    assert manifest["drift"]["repeated"] == 1
    assert set(manifest["usage"]) == {"multiple_choice", "math", "generation", "summarization"}
    for usage in manifest["usage"].values():
        assert usage["seconds"] > 0
        assert all(member["requests"] and member["prompt_tokens"] for member in usage["members"].values())


def test_kill_9_loses_at_most_a_segment_and_decides_the_same(undisturbed, tmp_path):
    run, store = tmp_path / "run", tmp_path / "store"
    often = ["--set", "store.flush_seconds=0.2"]
    killed = subprocess.Popen(
        command(run, store, *often), cwd=ROOT, env=env(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while stored_rows(store) < 15:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    engines = _engines(killed.pid)
    assert len(engines) >= 2
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (run / "predictions.jsonl").exists()
    # They notice it and leave; the next run's engine beside them would starve.
    _, alive = psutil.wait_procs(engines, timeout=60)
    assert not alive
    kept = stored_rows(store)
    assert 15 <= kept < 60

    questions = solve(run, store)["questions"]
    assert (questions["from_store"], questions["computed"]) == (kept, 60 - kept)
    assert stored_rows(store) == 60
    assert decisions_agree(lines(run / "predictions.jsonl"), lines(undisturbed / "run/predictions.jsonl")) > 20

    for folder in (tmp_path, undisturbed):
        before = [(folder / "run" / name).read_bytes() for name in FILES]
        assert solve(folder / "run", folder / "store")["questions"]["computed"] == 0
        assert [(folder / "run" / name).read_bytes() for name in FILES] == before


@pytest.fixture(scope="module")
def ablated(undisturbed, tmp_path_factory) -> Path:
    """The ablation of `make ablate-demo`, its multiple choice, on the store of the demo's run."""
    folder = tmp_path_factory.mktemp("ablated")
    ablate(folder, undisturbed / "store", "configs/ablate_demo.yaml")
    return folder


def ablate(folder: Path, store: Path, config: object, *more: object) -> dict:
    script = [sys.executable, str(ROOT / "pipelines/ablate.py"), "--config", str(config), "--output", str(folder)]
    chosen = ["--task", "multiple_choice", "--set", f"store.path={store}", *map(str, more)]
    done = subprocess.run([*script, *chosen], capture_output=True, text=True, cwd=ROOT, env=env(), timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "leaderboard.json").read_text()) | {"said": done.stderr}


def test_an_ablation_of_the_demo_asks_only_for_what_its_run_did_not(undisturbed, ablated):
    board = json.loads((ablated / "leaderboard.json").read_text())
    assert {v["score"]["n"] for v in board["variants"]} == {34}
    asked = json.loads((ablated / "manifest.json").read_text())["asked"]["prompts"]["multiple_choice"]
    options = [len(row["choices"]) for row in lines(ROOT / "configs/demo/questions.jsonl") if "choices" in row]
    # letters in two blocks of rotations (of two options there is one), and each option without the question for pmi
    assert asked == sum(min(2 * n, math.factorial(n)) + n for n in options)
    same = next(v for v in board["variants"] if v["axes"]["scoring"] == "cloze char")
    grades = json.loads((undisturbed / "run/grades.json").read_text())
    assert same["score"]["mean"] == pytest.approx(grades["multiple_choice"]["accuracy"]["mean"], abs=1e-6)

    more = ablate(ablated / "again", undisturbed / "store", "configs/ablate_demo.yaml", "--set", "budget=0",
                  "--set", "grids.1.temperature=[0.5, 1.0, 2.0]")  # fmt: skip
    assert "starting Ray" not in more["said"]
    assert len(more["variants"]) > len(board["variants"]) + 20


def test_solve_takes_the_routes_of_the_ablation(ablated):
    board = json.loads((ablated / "leaderboard.json").read_text())
    script = [sys.executable, str(ROOT / "pipelines/solve.py"), "--config", str(ablated / "routes.yaml")]
    more = ["--task", "multiple_choice"]
    done = subprocess.run([*script, *more], capture_output=True, text=True, cwd=ROOT, env=env(), timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "starting Ray" not in done.stderr
    best = next(v for v in board["variants"] if v["id"] == board["tasks"]["multiple_choice"]["best"])
    grades = json.loads((ablated / "routes/grades.json").read_text())
    assert grades["multiple_choice"]["accuracy"]["mean"] == pytest.approx(best["score"]["mean"], abs=1e-6)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_leaderboard_sorts_filters_and_compares(ablated):
    from playwright.sync_api import sync_playwright

    board = json.loads((ablated / "leaderboard.json").read_text())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((ablated / "leaderboard.html").as_uri())
        page.wait_for_selector("#p")
        page.locator("#board thead th", has_text="orders per").first.locator("button").click()
        shown = page.eval_on_selector_all("#board tbody .name", "all => all.map(e => e.textContent)")
        cost = {v["name"]: v["cost"]["orders"] for v in board["variants"]}
        assert [cost[name] for name in shown] == sorted(cost.values())
        page.select_option("#filter [data-axis=orders]", label="cyclic")
        shown = page.eval_on_selector_all("#board tbody .name", "all => all.map(e => e.textContent)")
        assert set(shown) == {v["name"] for v in board["variants"] if v["axes"].get("orders") == "cyclic"}
        page.locator("#board .name").first.click()
        cells = page.eval_on_selector_all(".counts td", "all => all.map(td => td.querySelector('data').value)")
        assert sum(map(int, cells)) == 34
        browser.close()
    assert said == []


def _engines(driver: int) -> list[psutil.Process]:
    """Processes of its engines: Ray's actor and those that vLLM starts."""
    family = {process.pid for process in psutil.Process(driver).children(recursive=True)}
    found = [process for process in psutil.process_iter(["cmdline"]) if process.pid in family]
    return [process for process in found if ENGINE.match((process.info["cmdline"] or [""])[0])]
