"""The page in a real browser: at two widths, in light and dark, with the keyboard, and with names that mean harm."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from mirrorfs.web import overview
from mirrorfs.web.gate import Gate
from mirrorfs.web.overview import Reading
from tests.web.browser import PROGRAM, Browser, running_browser
from tests.web.served import SHOWN, STATUS, Mirror, serving_page

pytestmark = [
    pytest.mark.trio,
    pytest.mark.skipif(PROGRAM is None, reason="Debian's package chromium has the browser"),
]

_TOKEN = "a-token-of-some-length"
_READY = (
    "document.readyState === 'complete' && document.querySelector('#groups tr') && document.querySelector('.plot text')"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        tempfile.TemporaryDirectory(prefix="mirrorfs-test-", ignore_cleanup_errors=True) as directory,
        running_browser(Path(directory)) as running,
    ):
        yield running


@asynccontextmanager
async def looking(
    browser: Browser, mirror: Mirror, *, width: int = 1280, dark: bool = False, token: str | None = None
) -> AsyncIterator[Callable[[Callable[[], Any]], Awaitable[Any]]]:
    """Have the browser show a page that is served meanwhile; what it is to do runs in a thread."""
    browser.complaints.clear()
    async with serving_page(mirror, Gate(token, is_local=True)) as port:
        show = partial(browser.show, f"http://127.0.0.1:{port}/", width=width, dark=dark, token=token)
        await trio.to_thread.run_sync(show)
        await trio.to_thread.run_sync(browser.wait_for, _READY)
        yield trio.to_thread.run_sync
        # Before the server ends, so that nothing is asked of it after that.
        await trio.to_thread.run_sync(browser.leave)
    assert browser.complaints == [], "the console is to be silent, and the policy of content kept"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
async def test_it_shows_names_as_text_and_fits(browser: Browser, width: int, dark: bool) -> None:
    async with looking(browser, Mirror(), width=width, dark=dark) as run:

        def look() -> None:
            text = browser.text()
            assert text.splitlines().count("Broken") == 1
            for shown in (
                f"why {SHOWN}",
                f"vm/1{SHOWN}",
                f"/srv/{SHOWN}",
                f"approve {SHOWN}",
                "Sick chunks",
                "Quarantine",
            ):
                assert shown in text
            assert "\u202e" not in text
            assert browser.evaluate("document.title") == f"broken – /srv/{SHOWN} – mirrorfs"
            assert browser.evaluate("document.querySelectorAll('main script, main img').length") == 0
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == ("rgb(20, 25, 30)" if dark else "rgb(243, 245, 247)")

        await run(look)


# The ratio of WCAG 2, of each text to the nearest ground that is painted behind it.
_CONTRASTS = """
(() => {
  const channel = (value) => (value /= 255, value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
  const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const color = numbers(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
    const style = getComputedStyle(element), isDrawn = element.namespaceURI.endsWith("svg");
    const [one, other] = [light(numbers(isDrawn ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) found.push([walker.currentNode.textContent, ratio]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("word", ["healthy", "behind", "held", "waiting", "broken"])
async def test_everything_can_be_read(browser: Browser, word: str, dark: bool) -> None:
    mirror = Mirror()
    mirror.reading = Reading({**STATUS, "word": word}, None)
    async with looking(browser, mirror, dark=dark) as run:
        assert await run(partial(browser.evaluate, _CONTRASTS)) == []


async def test_a_group_is_opened_by_keyboard_and_stays_open(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(overview, "_SHARE_OF_ASKING", 1.0)
    mirror = Mirror()
    async with looking(browser, mirror) as run:

        def open_first() -> None:
            browser.evaluate("document.getElementById('filter').focus()")
            browser.press("Tab", 9)
            assert browser.evaluate("document.activeElement.closest('#groups') !== null")
            assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            browser.press("Enter", 13)
            assert "2026-01-01T00:00:00Z" in browser.evaluate("document.querySelector('.inner').innerText")

        await run(open_first)
        new = {"snapshot": "vm/0/2026-02-01T00:00:00Z", "phase": "published", "since": 2.0}
        mirror.reading = Reading({**STATUS, "snapshots": [*STATUS["snapshots"], new], "word": "healthy"}, None)

        def see_the_next_one() -> None:
            browser.wait_for("document.getElementById('word').textContent === 'Healthy'")
            browser.wait_for("document.getElementById('groups').innerText.includes('vm/0')")
            assert browser.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
            assert browser.evaluate("document.querySelectorAll('.inner').length") == 1

        await run(see_the_next_one)


async def test_a_screen_reader_finds_its_way(browser: Browser) -> None:
    async with looking(browser, Mirror()) as run:

        def listen() -> None:
            assert browser.evaluate("document.documentElement.lang") == "en"
            assert browser.accessible_names("main")
            assert browser.accessible_names("banner")
            regions = browser.accessible_names("region")
            assert {"Broken", "Backup groups", "Store", "Drills and scrub", "To be looked at"} <= set(regions)
            assert {"Group", "State", "Snapshots", "Newest"} <= set(browser.accessible_names("columnheader"))
            assert browser.accessible_names("searchbox") == ["Show only groups whose name has"]
            charts = browser.accessible_names("image")
            assert any(name.startswith("Throughput") for name in charts)
            assert any(name.startswith("Backlog") for name in charts)
            assert browser.evaluate("document.querySelector('[role=status]').getAttribute('aria-live')") == "polite"

        await run(listen)


async def test_it_says_when_the_mirror_does_not_answer_and_when_it_does_again(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "_FRESH_SECONDS", 0.0)
    mirror = Mirror()
    async with looking(browser, mirror, token=_TOKEN) as run:
        answered = mirror.reading
        mirror.reading = Reading(None, "the uploader does not run at this moment")
        await run(partial(browser.wait_for, "document.getElementById('notice').textContent.includes('does not run')"))
        mirror.reading = answered
        await run(partial(browser.wait_for, "document.getElementById('notice').hidden"))
