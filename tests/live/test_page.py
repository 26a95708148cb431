"""The page in Chromium: what a viewer sees and does."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp")
playwright = pytest.importorskip("playwright.sync_api")

from tests.live.conftest import ABOUT, make_result  # noqa: E402
from y7edge.frames import Frame  # noqa: E402
from y7edge.live.feed import IN_FLIGHT  # noqa: E402

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
SCENES = "test://scenes?fps=10"
WAIT = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


class Program:
    """``y7edge live`` in a process."""

    def __init__(self, model: Path, *words: str) -> None:
        command = [sys.executable, "-m", "y7edge", "live", str(model), *words]
        self.process = subprocess.Popen(
            [*command, "--threads", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        ready, _, _ = select.select([self.process.stderr], [], [], WAIT)
        line = self.process.stderr.readline() if ready else ""
        found = re.fullmatch(r"open (http://[^/]+/\S*)\n", line)
        assert found, line + (self.process.stderr.read() if ready else "")
        self.url = found[1]
        self.port = int(re.search(r":(\d+)/", self.url)[1])

    def stop(self, number: int = signal.SIGINT) -> str:
        """End the program; return what it printed on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.communicate(timeout=WAIT)[1]


@pytest.fixture
def start(demo_model) -> Iterator[Callable[..., Program]]:
    programs = []

    def begin(*words: str) -> Program:
        programs.append(Program(demo_model, *words))
        return programs[-1]

    yield begin
    for program in programs:
        program.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield made
        made.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a page; afterwards there must be no error in it."""
    contexts, errors, hosts = [], [], set()

    def go(url: str, expect_errors: bool = False, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        if not expect_errors:
            page.on("console", lambda m: errors.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.set_default_timeout(WAIT * 1000)
        page.goto(url)
        _wait(page, lambda: _width(page) > 0)
        return page

    yield go
    for context in contexts:
        context.close()
    assert errors == []
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", host) for host in hosts), hosts


def _pixels(page: Any) -> np.ndarray:
    """The pixels of the canvas as they are shown, (H, W, 3)."""
    content = page.evaluate("document.querySelector('#image').toDataURL('image/png')")
    return cv2.imdecode(
        np.frombuffer(base64.b64decode(content.split(",")[1]), np.uint8), cv2.IMREAD_COLOR
    )


def _wait(page: Any, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        page.wait_for_timeout(50)


def _width(page: Any) -> int:
    """The width of the canvas. The page forbids the evaluation that wait_for_function uses."""
    return page.evaluate("document.querySelector('#image').width")


def _label(page: Any) -> str:
    return page.get_attribute("#image", "aria-label")


def test_the_image_moves_and_the_slider_changes_the_boxes(start, visit):
    program = start(SCENES, "--web", ":0")
    page, other = visit(program.url), visit(program.url)
    for _ in range(IN_FLIGHT + 2):
        before = _pixels(page)
        assert before.std() > 10
        _wait(page, lambda: np.abs(_pixels(page).astype(int) - before).mean() > 5)  # noqa: B023
    _wait(page, lambda: re.search(r"\d (nut|washer|screw|bracket)", _label(page)))
    assert page.inner_text("#state") == "live"
    assert float(page.inner_text("#rate")) > 0
    assert re.fullmatch(r"\d+ ms", page.inner_text("#age"))
    slider = page.get_by_role("slider", name="Confidence threshold")
    slider.focus()
    page.keyboard.press("End")
    assert page.inner_text("#conf-value") == "1.00"
    _wait(page, lambda: _label(page).endswith("no objects"))
    # The threshold is that of the program: the other viewer sees the same.
    _wait(other, lambda: other.inner_text("#conf-value") == "1.00")
    _wait(other, lambda: _label(other).endswith("no objects"))
    page.keyboard.press("Home")
    _wait(other, lambda: other.inner_text("#conf-value") == "0.05")
    _wait(other, lambda: not _label(other).endswith("no objects"))


def test_classes_pause_and_snapshot(start, visit, tmp_path):
    page = visit(start(SCENES, "--web", ":0").url)
    _wait(page, lambda: not _label(page).endswith("no objects"))
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Resume").get_attribute("aria-pressed") == "true"
    page.wait_for_timeout(500)  # images that were on their way
    label, paused = _label(page), _pixels(page)
    page.wait_for_timeout(1000)
    assert np.array_equal(_pixels(page), paused)
    assert page.inner_text("#state") == "paused"

    def snapshot(name: str) -> np.ndarray:
        with page.expect_download() as download:
            page.get_by_role("button", name="Snapshot").click()
        download.value.save_as(tmp_path / name)
        assert re.fullmatch(r"test-scenes-\d+\.jpg", download.value.suggested_filename)
        return cv2.imread(str(tmp_path / name))

    drawn = snapshot("boxes.jpg")
    page.get_by_label("Boxes").uncheck()
    plain = snapshot("plain.jpg")
    assert drawn.shape == plain.shape == (480, 640, 3)
    differs = np.abs(drawn.astype(int) - plain).max(axis=2) > 60
    assert 0.001 < differs.mean() < 0.3
    without = _pixels(page)
    assert not np.array_equal(without, paused)
    page.get_by_label("Boxes").check()
    assert np.array_equal(_pixels(page), paused)

    kind = re.search(r"\d (\w+)", label)[1]
    page.get_by_role("checkbox", name=re.compile(kind)).uncheck()
    assert kind not in _label(page)
    page.get_by_role("button", name="None").click()
    assert _label(page).endswith("no objects")
    assert np.array_equal(_pixels(page), without)
    page.get_by_role("button", name="All").click()
    assert _label(page) == label
    page.get_by_role("button", name="Resume").click()
    _wait(page, lambda: not np.array_equal(_pixels(page), paused))


def test_a_phone(start, visit):
    program = start(SCENES, "--web", ":0")
    page = visit(
        program.url,
        viewport={"width": 360, "height": 740},
        device_scale_factor=2,
        is_mobile=True,
        has_touch=True,
        color_scheme="dark",
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for control in page.locator("button, input[type=range], label.check, select").all():
        if control.is_visible():
            box = control.bounding_box()
            assert min(box["width"], box["height"]) >= 38, control.inner_text()
    canvas = page.locator("#image")
    assert canvas.bounding_box()["width"] > 300
    assert _width(page) > 600, "not sharp"
    page.get_by_role("button", name="Pause").tap()
    assert page.inner_text("#state") == "paused"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background))) < 40


def test_a_state_that_does_not_change_and_long_names(open_page, visit):
    """The slider has its value from the first message on; nothing is wider than a phone."""
    long = "rtsp://camera.local:8554/" + "a/long/path/" * 20
    page = open_page(sources=(long, "cam"))
    page.rows[0]["problem"] = "no frame for 1.0 s from " + "x" * 300
    page.rows[0]["state"] = "stalled"
    page.offer(5)
    shown = visit(page.server.url, viewport={"width": 360, "height": 740})
    _wait(shown, lambda: shown.inner_text("#conf-value") == "0.25")
    assert shown.inner_text("#celsius") == "52 °C"
    assert shown.evaluate("document.documentElement.scrollWidth") == 360
    assert "x" * 300 in shown.inner_text("#message")
    # Another viewer's change arrives while the slider is moved here.
    slider = shown.get_by_role("slider")
    slider.focus()
    shown.keyboard.press("ArrowRight")
    _wait(shown, lambda: page.threshold.value == 0.26)
    page.threshold.set(0.5)
    _wait(shown, lambda: shown.inner_text("#conf-value") == "0.50")


def test_faults_that_end(open_page, visit):
    """What the page says about a fault goes away with it; hidden tabs get no images."""
    page = open_page()
    page.offer(5)
    shown = visit(page.server.url)
    page.rows[0]["silent"] = 7.0
    page.facts["problems"] = ["/data: the disk is full"]
    _wait(shown, lambda: shown.inner_text("#state") == "no results")
    assert "No result for 7 s" in shown.inner_text("#message")
    assert shown.inner_text("#banner") == "Not saved: /data: the disk is full"
    page.server.offer("cam", Frame(np.zeros((4, 4, 2), np.uint8)), make_result(6)[1])
    _wait(shown, lambda: "cannot be shown" in shown.inner_text("#banner"))
    page.offer(7)
    _wait(shown, lambda: "cannot be shown" not in shown.inner_text("#banner"))
    page.rows[0]["silent"], page.facts["problems"] = None, []
    _wait(shown, lambda: shown.inner_text("#state") == "live")
    _wait(shown, lambda: shown.is_hidden("#banner") and shown.is_hidden("#message"))
    for hidden in (True, False):
        shown.evaluate(
            f"Object.defineProperty(document, 'hidden', {{value: {str(hidden).lower()}, "
            "configurable: true}); document.dispatchEvent(new Event('visibilitychange'))"
        )
        _wait(shown, lambda: page.server.watched == (not hidden))  # noqa: B023


def test_a_restart_with_another_model_and_camera(open_page, visit):
    first = open_page(sources=("cam", "other"))
    first.offer(5)
    shown = visit(first.server.url, expect_errors=True)
    shown.get_by_role("button", name="None").click()
    assert _label(shown).endswith("no objects")
    first.server.__exit__()
    _wait(shown, lambda: "has ended" in shown.inner_text("#message"))
    names = ["cat", "<b>dog</b>"]
    second = open_page(address=f"127.0.0.1:{first.port}", about={**ABOUT, "names": names})
    second.offer(6)
    _wait(shown, lambda: _label(shown) == "Image of cam: 1 cat, 1 <b>dog</b>")
    assert shown.is_hidden("#sources")


def test_everything_has_a_name_and_contrast(start, visit):
    program = start(SCENES, "--web", ":0")
    for scheme in ("light", "dark"):
        page = visit(program.url, color_scheme=scheme)
        for role in ("button", "slider", "checkbox", "combobox"):
            for control in page.get_by_role(role).all():
                assert control.evaluate(
                    "e => (e.labels && e.labels.length) || e.textContent.trim().length > 0"
                )
        assert page.evaluate(_CONTRAST) >= 4.5, scheme


# The lowest contrast of text (WCAG 2.2, relative luminance), of elements with text of their own.
_CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.9) return colour;
    }
    return [255, 255, 255];
  };
  let lowest = 21;
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.disabled) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    lowest = Math.min(lowest, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return lowest;
}"""


def test_it_continues_after_a_restart_of_the_program(start, visit):
    program = start(SCENES, "--web", ":0")
    page = visit(program.url, expect_errors=True)  # Chromium reports refused connections
    page.evaluate("window.mark = 1")
    program.stop()
    _wait(page, lambda: page.inner_text("#state") == "reconnecting")
    assert "has ended" in page.inner_text("#message")
    start(SCENES, "--web", f":{program.port}")
    _wait(page, lambda: page.inner_text("#state") == "live")
    before = _pixels(page)
    _wait(page, lambda: not np.array_equal(_pixels(page), before))
    assert page.is_hidden("#message")
    assert page.evaluate("window.mark") == 1, "the page was loaded again"
    program.stop(signal.SIGKILL)


def test_a_killed_program(start, visit):
    program = start(SCENES, "--web", ":0")
    page = visit(program.url, expect_errors=True)
    program.stop(signal.SIGKILL)
    _wait(page, lambda: "No connection to the robot" in page.inner_text("#message"))
    start(SCENES, "--web", f":{program.port}")
    _wait(page, lambda: page.inner_text("#state") == "live")


def test_a_frozen_program(start, visit):
    """The last image must not be called live, long before the connection is given up."""
    program = start(SCENES, "--web", ":0")
    page = visit(program.url)
    _wait(page, lambda: page.inner_text("#state") == "live")
    program.process.send_signal(signal.SIGSTOP)
    try:
        _wait(page, lambda: page.inner_text("#state") == "no answer")
        assert "No message from the robot for" in page.inner_text("#message")
    finally:
        program.process.send_signal(signal.SIGCONT)
    _wait(page, lambda: page.inner_text("#state") == "live")


def test_a_token(start, visit, browser):
    secret = "0123456789abcdef"
    program = start(SCENES, "--web", ":0", "--token", secret)
    page = visit(program.url)
    assert secret not in page.url
    page.reload()
    _wait(page, lambda: _width(page) > 0)
    assert page.evaluate("document.cookie") == ""  # HttpOnly
    context = browser.new_context()
    try:
        stranger = context.new_page()
        stranger.goto(page.url)
        _wait(stranger, lambda: "A token is needed" in stranger.inner_text("#message"))
        assert _width(stranger) == 0
    finally:
        context.close()


def test_several_cameras_and_a_stalled_one(start, visit):
    stalled = "test://pattern?fps=10&width=320&height=240&fault=stall&after=15"
    page = visit(start(SCENES, stalled, "--web", ":0").url)
    choice = page.get_by_label("Camera")
    assert choice.locator("option").all_inner_texts() == ["test://scenes", "test://pattern"]
    choice.select_option("test://pattern")
    _wait(page, lambda: page.inner_text("#state") in ("stalled", "reconnecting"))
    assert page.is_visible("#message")
    assert _width(page) > 0, "the last image stays"
    choice.select_option("test://scenes")
    _wait(page, lambda: page.inner_text("#state") == "live")


def test_viewers_do_not_slow_the_detector(start):
    """Seven viewers, of which one never draws: the rate stays, and a ninth is told why."""
    program = start("test://pattern?fps=10&width=640&height=480", "--web", ":0")
    with ThreadPoolExecutor(1) as thread:  # Playwright has a loop in this one
        running = thread.submit(asyncio.run, _measure(f"{program.url}stream"))
        alone, watched, images, ninth = running.result(WAIT)
    assert watched > 0.8 * alone > 0
    assert images[0] == IN_FLIGHT, "it has not drawn them"
    assert min(images[1:]) > 20
    assert ninth == 4002


async def _measure(url: str) -> tuple[float, float, list[int], int | None]:
    """Return results per second without and with viewers, their images, and a close code."""
    images = [0] * 7
    async with aiohttp.ClientSession() as session:
        alone = await _rate(session, url, 4)
        tasks = [asyncio.create_task(_view(session, url, images, index)) for index in range(7)]
        await asyncio.sleep(0.5)
        watched = await _rate(session, url, 5)
        async with session.ws_connect(url), session.ws_connect(url) as ninth:
            while not ninth.closed:
                await ninth.receive(WAIT)
            code = ninth.close_code
        for task in tasks:
            task.cancel()
    return alone, watched, images, code


async def _rate(session: Any, url: str, seconds: float) -> float:
    """Return results per second by the status that a viewer gets."""
    counts, end = [], time.monotonic() + seconds
    async with session.ws_connect(url) as ws:
        while time.monotonic() < end:
            message = json.loads((await ws.receive(WAIT)).data)
            if message["type"] == "status":
                counts.append((time.monotonic(), message["sources"][0]["results"]))
    (begin, first), (finish, last) = counts[1], counts[-1]
    return (last - first) / (finish - begin)


async def _view(session: Any, url: str, images: list[int], index: int) -> None:
    async with session.ws_connect(url) as ws:
        await ws.send_json({"type": "watch", "source": 0})
        async for message in ws:
            if message.type is aiohttp.WSMsgType.BINARY:
                images[index] += 1
                if index:
                    await ws.send_json({"type": "drawn"})
