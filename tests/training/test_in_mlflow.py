"""The page where it is read: in MLflow's own UI, as `nudge ui` opens it."""

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser import Browser, Pixels
from tests.e2e.running import PATIENCE, environment, free_port, wait_until
from tests.training.worlds import best_for, made_up
from training import report
from training.evaluate import evaluate
from training.promotion import judge
from training.registry import Registry
from training.targets import baselines, deployed

WORLD = made_up(n=3_000, seed=51)
PROGRAM = WORLD.dataset.program

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium")]


@contextlib.contextmanager
def ui(home: Path) -> Iterator[str]:
    """Run `nudge ui` in a folder until it answers, and end it with all that it started."""
    port = free_port()
    words = [sys.executable, "-m", "serving.cli", "ui", "--port", str(port)]
    with (home / "ui.log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=home, env=environment(home), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or answers(f"{address}/health"), what="MLflow's UI")
        assert process.poll() is None, (home / "ui.log").read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


def answers(address: str) -> bool:
    """Return whether somebody answers there."""
    try:
        with urllib.request.urlopen(address, timeout=5.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def teal(picture: Pixels) -> int:
    """Return in how many rows of a picture the verdict's colour is found."""
    near = np.abs(picture - np.array([15, 118, 110]) / 255).sum(axis=2) < 0.05
    return int(near.any(axis=1).sum())


def test_the_page_is_legible_in_mlflows_ui(browser: Browser, tmp_path: Path) -> None:
    """Beside MLflow's own columns a frame of about 510 px is left: nothing is cut off, and the verdict is in sight."""
    target = deployed("good", best_for(PROGRAM, {"new": "badge/playful/now"}), PROGRAM, title="The good one")
    evaluation = evaluate(WORLD.dataset, [*baselines(PROGRAM), target])
    verdict = judge(evaluation)
    registry = Registry.open(tmp_path / "mlruns", environment={})
    files = {"report.html": report.html(evaluation, verdict, command="nudge evaluate small")}
    run = registry.log_evaluation(evaluation, verdict, dataset=WORLD.dataset, files=files, params={})
    experiment = registry._client().get_run(run).info.experiment_id
    with ui(tmp_path) as address:
        link = f"{address}/#/experiments/{experiment}/runs/{run}/artifacts/report.html"
        with browser.page(link, width=1280) as shown:
            frame = shown.frame()
            shown.wait("document.querySelector('.verdict') !== null", frame=frame)
            picture = shown.picture()
            assert shown.ask("document.querySelector('iframe').sandbox.value") == "allow-scripts"
            wide = shown.ask("innerWidth", frame=frame)
            assert 400 < wide < 640
            assert shown.ask("document.documentElement.scrollWidth", frame=frame) == wide
            assert report.sentence(evaluation, verdict) in shown.ask(
                "document.querySelector('.verdict').innerText.replace(/\\u2060/g, '')", frame=frame
            )
            sizes = (
                "[...document.querySelectorAll('p,td,span,small')].map(e => parseFloat(getComputedStyle(e).fontSize))"
            )
            assert min(shown.ask(sizes, frame=frame)) >= 12
    assert teal(picture) > 80
