"""People's page in a real browser: whole studies rated in Korean, in Arabic, on a phone, by keyboard alone."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from browsing import MISSING
from onggi.phrases import Phrases
from onggi.rate import links, serve
from onggi.rate.store import Event, Store
from onggi.rate.study import Study
from onggi.stages import ReportConfig, report
from onggi.stages.rate_people import CloseConfig, close
from onggi.stages.rate_results import ResultsConfig, results
from rate_examples import MODELS, answers, invited, study

TAGS = ("ko", "ar", "th", "km", "ja")
Open = Callable[..., Any]


@contextlib.contextmanager
def served(found: Study) -> Iterator[str]:
    """The study's page on a free port; its address."""
    store = Store(found.ratings, found.id)
    made = store.fact("secret")
    store.close()
    assert made
    service = serve.Service(found, links.signer(found.id, made))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(serve.application(service), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        service.close()
        listening.close()


@pytest.fixture
def small(tmp_path: Path) -> Study:
    """Three prompts of five languages, two models, one list a language."""
    line = answers(tmp_path, TAGS, 3, MODELS[:2])
    return study(tmp_path, line, raters=1, overlap=1)


class Visit:
    """A page of a browser, and what happened in it that should not."""

    def __init__(self, browser: Any, address: str, path: str, **options: Any):
        self.wrong: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on(
            "request", lambda request: self.wrong.append(request.url) if self._is_far(request.url) else None
        )
        self.address = address
        self.page.goto(address + path)

    def _is_far(self, url: str) -> bool:
        return not url.startswith((self.address, "data:,"))

    def number(self) -> str:
        """Which pair is shown; nothing at the end."""
        found = self.page.locator('input[name="pair"]')
        return str(found.first.get_attribute("value")) if self.page.locator("#rate").count() else ""

    def moves_on(self, before: str) -> None:
        self.page.wait_for_function(
            "before => (document.querySelector('#rate input[name=pair]')?.value ?? '') !== before", arg=before
        )


@pytest.fixture
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where screenshots go: pytest --basetemp DIR keeps them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def events(found: Study) -> list[Event]:
    return list(Store(found.ratings, found.id).events())


CONTRAST = """() => {
  const channel = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.textContent.trim() || !e.checkVisibility() || e.closest("script, option")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    seen++;
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push([node.textContent.trim().slice(0, 30), (a + 0.05) / (b + 0.05)]);
  }
  return {low, seen};
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input:not([type=hidden]), select, a, progress, section, [role=group]")]
  .filter((e) => e.checkVisibility())
  .filter((e) => !(e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent.trim()
    || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent))
  .map((e) => e.outerHTML)"""


def sound(visit: Visit) -> None:
    """What every page has: letters for all that it says, contrast, names, no width too narrow, nothing foreign."""
    page = visit.page
    assert visit.wrong == []
    assert page.evaluate(MISSING)["missing"] == []
    contrast = page.evaluate(CONTRAST)
    assert contrast["low"] == [] and contrast["seen"] > 3
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.locator("h1").count() == 1 and page.locator("main").count() == 1


def test_a_whole_study_in_korean_to_the_report(
    browser: Any, small: Study, pictures: Path, tmp_path: Path
) -> None:
    path = invited(small, "ko", test=True)[0]
    with served(small) as address:
        visit = Visit(browser, address, path)
        page = visit.page
        sound(visit)
        page.screenshot(path=pictures / "ko-welcome.png", full_page=True)
        assert page.url == address + "/"  # the invitation is gone from the address
        page.click("button.main")
        visit.moves_on("")
        sound(visit)
        assert page.url == address + "/pair" and page.title().startswith("5쌍 중 1번째")
        # Marks of what is wrong, taken back with the choice, and there again.
        page.get_by_label("부자연스러움").first.check(force=True)
        page.get_by_label("사실과 다름").last.check(force=True)
        page.screenshot(path=pictures / "ko-pair.png", full_page=True)
        first = visit.number()
        page.get_by_role("button", name="오른쪽이 낫다").click()
        visit.moves_on(first)
        assert page.evaluate("document.activeElement.tagName") == "H1"
        second = visit.number()
        page.get_by_role("button", name="되돌리기").click()
        visit.moves_on(second)
        assert visit.number() == first and page.locator("fieldset input:checked").count() == 2
        assert page.locator("button.chosen").get_attribute("value") == "right"
        page.screenshot(path=pictures / "ko-undone.png", full_page=True)
        while now := visit.number():
            page.get_by_role("button", name="왼쪽이 낫다").click()
            visit.moves_on(now)
        sound(visit)
        assert "감사합니다" in page.inner_text("h1")
        page.screenshot(path=pictures / "ko-end.png", full_page=True)
    kept = [event for event in events(small) if event.choice]
    assert [event.choice for event in kept] == ["right", *["left"] * 5]
    assert (kept[0].left, kept[0].right) == (("unnatural",), ("fact",)) == (kept[1].left, kept[1].right)

    close(CloseConfig(str(small.path)))
    counted = results(ResultsConfig(str(small.path)), tmp_path / "people")
    made = report(ReportConfig([str(counted.path)], "ko"), tmp_path / "report")
    whole = (made.path / "report.html").read_text(encoding="utf-8")
    assert Phrases("ko")("people.test") in whole and "선호율" in whole
    assert MODELS[1] in whole
    again = Visit(browser, "", (made.path / "report.html").as_uri())
    again.page.screenshot(path=pictures / "report.png", full_page=True)


def test_arabic_by_keyboard_alone(browser: Any, small: Study, pictures: Path) -> None:
    path = invited(small, "ar")[0]
    with served(small) as address:
        visit = Visit(browser, address, path, locale="ko-KR")
        page, keys = visit.page, visit.page.keyboard
        for _ in range(12):  # to the button that begins
            if page.evaluate("document.activeElement?.matches('button.main')"):
                break
            keys.press("Tab")
        keys.press("Enter")
        visit.moves_on("")
        sound(visit)
        said = page.eval_on_selector_all(
            ".said", "all => all.map(e => [e.lang, getComputedStyle(e).direction])"
        )
        assert said == [["ar", "rtl"]] * 3
        boxes = [page.locator(".answer").nth(i).bounding_box() for i in (0, 1)]
        assert boxes[0]["x"] < boxes[1]["x"]  # left is left, whichever way its letters run
        page.screenshot(path=pictures / "ar-pair.png", full_page=True)
        # A mark by Tab and Space, and what has the focus can be seen.
        for _ in range(30):
            if page.evaluate("document.activeElement?.matches('.answer:first-child input[value=register]')"):
                break
            keys.press("Tab")
        ring = page.evaluate("getComputedStyle(document.activeElement.nextElementSibling).outlineStyle")
        assert ring == "solid"
        keys.press("Space")
        page.wait_for_timeout(450)
        for number, code in enumerate(("2", "1", "3", "4", "1")):
            now = visit.number()
            keys.press(code)
            visit.moves_on(now)
            if number == 1:
                page.wait_for_timeout(450)
                now = visit.number()
                keys.press("u")
                visit.moves_on(now)
                page.wait_for_timeout(450)
                now = visit.number()
                keys.press("Digit1")
                visit.moves_on(now)
            # A key that is held down, or meant for the pair before, rates nothing.
            keys.press("1")
            page.wait_for_timeout(450)
        assert not visit.number()
        sound(visit)
    kept = events(small)
    assert [event.choice for event in kept] == ["right", "left", None, "left", "good", "bad", "left"]
    assert kept[0].left == ("register",) and kept[0].right == ()


def test_on_a_phone(browser: Any, small: Study, pictures: Path) -> None:
    path = invited(small, "ko")[0]
    phone = {
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 2,
    }
    with served(small) as address:
        visit = Visit(browser, address, path, **phone)
        page = visit.page
        sound(visit)
        page.screenshot(path=pictures / "phone-welcome.png")
        page.tap("button.main")
        visit.moves_on("")
        sound(visit)
        page.screenshot(path=pictures / "phone-pair.png")
        page.screenshot(path=pictures / "phone-whole.png", full_page=True)
        upper, lower = (page.locator(".answer").nth(i).bounding_box() for i in (0, 1))
        assert lower["y"] > upper["y"] + upper["height"] - 1 and upper["width"] > 340
        for button in page.locator("#choices button").all():
            box = button.bounding_box()
            assert box["height"] >= 44 and box["y"] + box["height"] <= 844  # in reach without scrolling
        assert page.locator("#choices").inner_text().split("\n") == [
            "위쪽이 낫다",
            "아래쪽이 낫다",
            "둘 다 좋다",
            "둘 다 나쁘다",
        ]
        while now := visit.number():
            page.get_by_role("button", name="아래쪽이 낫다").tap()
            visit.moves_on(now)
        page.screenshot(path=pictures / "phone-end.png")
    assert {event.choice for event in events(small)} == {"right"} and len(events(small)) == 5


@pytest.mark.parametrize("tag", ["th", "km", "ja"])
@pytest.mark.parametrize("width", [320, 1000])
def test_scripts_without_spaces(browser: Any, small: Study, pictures: Path, tag: str, width: int) -> None:
    path = invited(small, tag)[0]
    with served(small) as address:
        visit = Visit(browser, address, path, viewport={"width": width, "height": 900})
        visit.page.click("button.main")
        visit.moves_on("")
        sound(visit)
        visit.page.screenshot(path=pictures / f"{tag}-{width}.png", full_page=True)


def test_the_servers_absence_loses_no_choice(browser: Any, small: Study, pictures: Path) -> None:
    path = invited(small, "ja")[0]
    with served(small) as address:
        visit = Visit(browser, address, path)
        page = visit.page
        page.click("button.main")
        visit.moves_on("")
        lost = []

        def away(route: Any) -> None:
            """First the request is lost, then its answer, then the server is not well."""
            lost.append(route.request.post_data)
            if len(lost) == 1:
                route.abort()
            elif len(lost) == 2:
                route.fetch()
                route.abort()
            elif len(lost) == 3:
                route.fulfill(status=503, body="x")
            else:
                route.continue_()

        page.route("**/rate", away)
        now = visit.number()
        page.keyboard.press("4") if page.wait_for_timeout(450) is None else None
        page.get_by_text("サーバーが応答しません").wait_for()
        page.screenshot(path=pictures / "away.png")
        visit.moves_on(now)
        assert len(lost) == 4 and len(set(lost)) == 1
        assert [event.choice for event in events(small)] == ["bad"]


def test_without_scripts(browser: Any, small: Study) -> None:
    path = invited(small, "ko")[0]
    with served(small) as address:
        visit = Visit(browser, address, path, java_script_enabled=False)
        page = visit.page
        page.click("button.main")
        for choice in ("left", "good"):
            page.click(f"#choices button[value={choice}]")
        page.click(".undo button")
        page.select_option("#page", "en")
        page.click("header .page button")
        while page.locator("#rate").count():
            page.click("#choices button[value=bad]")
        assert page.inner_text("h1") == "Thank you"
    assert [event.choice for event in events(small)] == ["left", "good", None, *["bad"] * 4]


def test_hostile_answers_in_a_browser(browser: Any, tmp_path: Path, pictures: Path) -> None:
    texts = [
        "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>",
        "\u202eمرحبا بالعالم \u2067\u2067\u2067 <b>굵게</b> \x00\x1b[31m",
        "가" * 100_000,
        "javascript:alert(4)\n\n\n```\n<style>*{display:none}</style>",
        "ก" * 5000 + " W" * 3000,
        "\ud800\udfff\uffff " + "e\u0301" * 3000,
    ]
    said = {f"ko-{i // 2} {MODELS[i % 2]}": text for i, text in enumerate(texts)}
    found = study(tmp_path, answers(tmp_path, ("ko",), 3, MODELS[:2], said), raters=1, overlap=1, attention=0)
    path = invited(found, "ko")[0]
    with served(found) as address:
        visit = Visit(browser, address, path, viewport={"width": 700, "height": 900})
        page = visit.page
        page.click("button.main")
        visit.moves_on("")
        for number in range(3):
            assert page.evaluate("document.documentElement.scrollWidth") <= 700
            assert page.locator("main script, main img, main svg, main style").count() == 0
            assert page.locator("#choices button").count() == 4
            for summary in page.locator("summary").all():
                summary.click()
            page.screenshot(path=pictures / f"hostile-{number}.png")
            now = visit.number()
            started = time.monotonic()
            page.get_by_role("button", name="둘 다 나쁘다").click()
            visit.moves_on(now)
            assert time.monotonic() - started < 5
        assert visit.wrong == [] and len(events(found)) == 3
