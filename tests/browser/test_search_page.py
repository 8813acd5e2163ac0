"""The search page in a real browser, as a person uses it: by mouse and by keyboard, on a phone, in the dark, and with
files that mean harm. Run by `make test-browser`, which brings Chromium; without a browser these tests fail.
"""

import os
import re
from pathlib import Path

import pytest
from serving import HOSTILE_TITLE

pytestmark = pytest.mark.browser

BROWSER = os.environ.get("COLLAP_BROWSER", "/usr/bin/chromium")
QUERY = "a slow song with piano. then a choir sings"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
OPTIONS += ["--autoplay-policy=no-user-gesture-required", "--mute-audio"]
PHONE = {"width": 360, "height": 740}
CLOCK = re.compile(r"(\d+):(\d\d) . (\d+):(\d\d)")


@pytest.fixture(scope="module")
def chromium():
    """The browser, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, server):
    """Open the page in a new profile, by what it asks for; no script may fail, and nothing may be asked elsewhere."""
    contexts, failed = [], []

    def open_page(path: str = "/", **settings):
        contexts.append(chromium.new_context(base_url=str(server.base_url), **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("console", lambda line: failed.append(line.text) if "Content Security" in line.text else None)
        page.on("request", lambda asked: failed.append(asked.url) if not asked.url.startswith(base) else None)
        page.goto(path)
        return page

    base = str(server.base_url)
    yield open_page
    for context in contexts:
        context.close()
    assert not failed


def until(page, expression: str) -> None:
    """Wait until an expression is true; wait_for_function would have to be allowed by the page's policy."""
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def search(page, text: str = QUERY) -> list[str]:
    """Ask for a description; the titles that are found."""
    page.fill("#q", text)
    with page.expect_response(lambda response: "/api/search" in response.url):
        page.keyboard.press("Enter")
    until(page, "document.querySelector('#status').textContent.includes(' ms')")
    return titles(page)


def titles(page) -> list[str]:
    return page.locator("#results h2").all_text_contents()


def second(page) -> float:
    """Where the player is, once it plays."""
    until(page, "!document.querySelector('#audio').paused && document.querySelector('#audio').currentTime > 0")
    return page.evaluate("document.querySelector('#audio').currentTime")


def test_a_search_shows_songs_with_what_is_known_of_them(opened, server):
    page = opened()
    assert search(page) == [hit["title"] for hit in server.get("/api/search", params={"q": QUERY}).json()["hits"]]
    assert "10 songs in" in page.text_content("#status")
    assert "13 songs" in page.text_content("#library")
    first = page.locator("#results > li").first
    assert "Künstler" in first.text_content() or "script" in first.text_content()
    until(page, "document.querySelectorAll('#results img').length > 0")
    until(page, "document.querySelectorAll('#results .picture svg').length > 0")  # those without a cover
    first.locator("summary").click()
    assert first.locator(".sentences li").count() == 2
    assert "then a choir sings" in first.locator(".sentences").text_content()
    page.click("#statistics summary")
    assert "collap-gpt2" in page.text_content("#statistics-list")
    page.reload()  # the address holds the search
    page.wait_for_selector("#results > li")
    assert page.input_value("#q") == QUERY


def test_a_span_is_played_from_its_start_with_the_curve_of_its_song(opened):
    page = opened()
    search(page)
    for span in page.locator("#results .spans button").all()[:2]:
        minutes, seconds, *_ = map(int, CLOCK.search(span.text_content()).groups())
        span.click()
        until(page, f"document.querySelector('#audio').currentTime >= {60 * minutes + seconds}")
        assert second(page) < 60 * minutes + seconds + 3
    page.wait_for_selector("#curve .line", state="attached")
    assert page.locator("#curve .span").count() == page.locator("#results > li").first.locator(".spans li").count()
    box = page.locator("#curve").bounding_box()
    page.evaluate("document.querySelector('#audio').pause()")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    until(page, "!document.querySelector('#audio').seeking")
    place, length = page.evaluate(
        "[document.querySelector('#audio').currentTime, document.querySelector('#audio').duration]"
    )
    assert abs(place / length - 0.5) < 0.03
    page.click("#more")
    until(page, "document.querySelector('#like-what').textContent.startsWith('Like ')")
    until(page, "document.querySelector('#status').textContent.includes(' ms')")
    assert len(titles(page)) == 10 and "like=" in page.url and page.input_value("#q") == ""


def test_a_filter_narrows_and_a_wrong_one_says_what_is_wrong(opened, server):
    page = opened()
    search(page)
    page.click("#filters summary")
    page.fill("#filter", "genre=jazz")
    page.fill("#k", "3")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#results > li').length === 3")
    assert all("Jazz" in text for text in page.locator("#results > li").all_text_contents())
    page.fill("#filter", "year >=? 3")
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:not([hidden])")
    wrong = server.get("/api/search", params={"q": QUERY, "filter": "year >=? 3", "k": 3}).json()["error"]
    assert page.text_content("#error") == wrong and not titles(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(opened, scheme):
    page = opened(viewport=PHONE, color_scheme=scheme, has_touch=True)
    search(page)
    page.locator("#results .spans button").first.tap()
    second(page)
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    small = """[...document.querySelectorAll('button, input, textarea, audio')].filter((one) => {
        const { left, right, width } = one.getBoundingClientRect();
        return width && (left < 0 || right > innerWidth);
    }).length"""
    assert page.evaluate(small) == 0
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_keyboard_alone_is_enough(opened):
    page = opened()
    focused = "document.activeElement.{}"
    assert page.evaluate(focused.format("id")) == "q"  # at once
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#results > li")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("!!document.activeElement.closest('#results')"):
            break
    seen = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert page.evaluate(focused.format("className")) == "picture" and seen == "solid"
    page.keyboard.press("ArrowDown")
    row = "[...document.querySelectorAll('#results > li')].indexOf(document.activeElement.closest('li'))"
    assert page.evaluate(row) == 1
    page.keyboard.press("ArrowUp")
    assert page.evaluate(row) == 0
    page.keyboard.press("ArrowRight")
    assert CLOCK.search(page.evaluate(focused.format("textContent")))
    page.keyboard.press("Enter")
    second(page)
    page.focus("#curve")
    page.keyboard.press("Home")
    until(page, "document.querySelector('#curve').ariaValueNow === '0'")
    page.keyboard.press("ArrowRight")
    until(page, "Number(document.querySelector('#curve').ariaValueNow) >= 5")
    assert re.fullmatch(r"0:\d\d of 0:\d\d", page.get_attribute("#curve", "aria-valuetext"))
    page.keyboard.press("Space")
    until(page, "document.querySelector('#audio').paused")
    unnamed = """[...document.querySelectorAll('button, input, textarea, audio, svg[role]')].filter((one) =>
        !one.textContent.trim() && !one.ariaLabel && !(one.labels && one.labels.length) && one.id !== 'audio').length"""
    assert page.evaluate(unnamed) == 0


def test_tags_that_are_html_are_text(opened):
    page = opened()
    page.click("#filters summary")
    page.fill("#k", "100")
    assert HOSTILE_TITLE in search(page)
    item = page.locator("#results > li", has_text="onerror")
    item.locator(".picture").click()
    second(page)
    assert HOSTILE_TITLE in page.text_content("#playing")
    page.click("#more")
    until(page, "document.querySelector('#like-what').textContent.includes('onerror')")
    assert page.title() == "Search music"
    assert page.locator("#results img[src='x'], #playing img, #like img").count() == 0


def test_a_clip_finds_songs(opened, dressed, tmp_path):
    page = opened()
    clip = next(Path(dressed[0]).rglob("*.flac"))
    page.set_input_files("#clip", clip)
    page.wait_for_selector("#results > li")
    assert len(titles(page)) == 10
    page.locator("#results .spans button").first.click()
    second(page)
    page.wait_for_selector("#curve .wave", state="attached")
    text = tmp_path / "notes.txt"
    text.write_text("no audio")
    page.set_input_files("#clip", text)
    page.wait_for_selector("#error:not([hidden])")
    assert "not an audio file" in page.text_content("#error")


def test_a_clip_that_is_dropped_finds_songs(opened, dressed):
    page = opened()
    clip = next(Path(dressed[0]).rglob("*.ogg"))
    dropped = page.evaluate_handle(
        """(bytes) => { const dropped = new DataTransfer();
            dropped.items.add(new File([Uint8Array.from(bytes)], 'clip.ogg')); return dropped; }""",
        list(clip.read_bytes()),
    )
    page.dispatch_event("#results", "dragover", {"dataTransfer": dropped})
    assert page.evaluate("document.body.classList.contains('dropping')")
    page.dispatch_event("#results", "drop", {"dataTransfer": dropped})
    page.wait_for_selector("#results > li")
    assert len(titles(page)) == 10 and not page.evaluate("document.body.classList.contains('dropping')")


def test_a_server_that_is_gone_is_said(opened):
    page = opened()
    page.route("**/api/search**", lambda route: route.abort())
    page.fill("#q", QUERY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:not([hidden])")
    assert "the server does not answer" in page.text_content("#error")


def test_what_cannot_be_played_is_said(opened):
    page = opened()
    page.route("**/audio", lambda route: route.fulfill(status=404, json={"error": "the file is not where it was"}))
    search(page)
    page.locator("#results .spans button").first.click()
    page.wait_for_selector("#player-error:not([hidden])")
    assert page.text_content("#player-error") == "the file is not where it was"
