"""The gateway's page, in headless Chromium, as people use it: by keyboard, in the dark, on a narrow screen, with errors."""

from __future__ import annotations

import os
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from jazz_llm.testing import FakeServer, Reply, Request

from .serving import MARKUP, MODELS, NASTY, WORDS, model_server, serving, settings

pytest.importorskip("websockets", reason='websockets is not installed: pip install ".[gateway]"')
pytest.importorskip("playwright.sync_api", reason='playwright is not installed: pip install ".[test]"')

from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HELLO = "".join(WORDS)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox is not for root
        browser = driver.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=not root)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with model_server() as server:
        yield server


@pytest.fixture
def config(server: FakeServer, tmp_path: Path) -> str:
    return settings(tmp_path, server.url)


@pytest.fixture
def gateway(config: str) -> Iterator[str]:
    with serving(port=0, config=config) as url:
        yield url


Opening = Callable[..., Page]


@pytest.fixture
def opening(browser: Browser) -> Iterator[Opening]:
    """Open pages; at the end none may have complained (but of ``expected``), nor asked any other host."""
    complaints: list[str] = []
    foreign: list[str] = []
    allowed: list[str] = []

    with ExitStack() as stack:

        def open_page(url: str, expected: str | None = None, **options: object) -> Page:
            context = browser.new_context(**{"viewport": {"width": 900, "height": 700}, **options})
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(5_000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
            page.on("request", lambda request: foreign.append(request.url) if urlsplit(request.url).netloc != urlsplit(url).netloc else None)
            allowed.extend([expected] if expected else [])
            page.goto(url)
            return page

        yield open_page
    assert [it for it in complaints if not any(re.search(words, it) for words in allowed)] == []
    assert foreign == []


@pytest.fixture
def page(opening: Opening, gateway: str) -> Page:
    page = opening(gateway)
    expect(page.get_by_role("status")).to_have_text("Connected")
    return page


def load(page: Page, name: str = "fake", key: str = "") -> None:
    page.get_by_label("Provider", exact=True).select_option(name)
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Load").click()


def loaded(page: Page) -> Page:
    load(page)
    expect(prompt(page)).to_be_focused()
    return page


def prompt(page: Page) -> Locator:
    return page.get_by_label("Message")


def ask(page: Page, text: str) -> None:
    prompt(page).fill(text)
    prompt(page).press("Enter")


def last(page: Page) -> Locator:
    """Return the article of the last answer."""
    return page.locator("article.assistant").last


def said(page: Page) -> str:
    return last(page).locator(".text").text_content() or ""


def ended(page: Page) -> str:
    """Wait for the end of the answer; return what is written below it."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    return last(page).locator(".facts").text_content() or ""


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.id")


def until(page: Page, condition: str) -> None:
    """Wait for something; Playwright's own wait_for_function is stopped by the page's policy."""
    look = f"({condition} ? resolve() : performance.now() > end ? reject(new Error('never')) : requestAnimationFrame(look))"
    page.evaluate(f"() => new Promise((resolve, reject) => {{ const end = performance.now() + 5000; const look = () => {look}; look(); }})")


def test_a_conversation_by_keyboard_alone(page: Page, server: FakeServer) -> None:
    order = []
    for _ in range(2):
        page.keyboard.press("Tab")
        order.append(focused(page))
    page.keyboard.type("fake")
    for _ in range(2):
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order == ["setup-summary", "provider", "api-key", "load"]
    page.keyboard.press("Enter")
    expect(prompt(page)).to_be_focused()
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line")
    page.keyboard.press("Enter")
    ended(page)
    assert said(page) == HELLO
    page.keyboard.type("second")
    page.keyboard.press("Enter")
    ended(page)
    expect(page.locator("article")).to_have_count(4)
    sent = server.requests[-1].json()
    assert sent["model"] == "small"
    assert [(it["role"], it["content"]) for it in sent["messages"]] == [("user", "first\nline"), ("assistant", HELLO), ("user", "second")]
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "new"
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(0)
    assert focused(page) == "prompt"
    page.keyboard.type("fresh")
    page.keyboard.press("Enter")
    ended(page)
    assert len(server.requests[-1].json()["messages"]) == 1


def test_what_an_answer_took(page: Page) -> None:
    loaded(page)
    ask(page, "hi")
    assert re.fullmatch(r"5 \+ 4 tokens · first token after \d+\.\d\d s · \d+\.\d tokens/s", ended(page))
    ask(page, "cut")
    assert ended(page).startswith("Cut off: the limit of tokens was reached · 5 + 4 tokens")
    ask(page, "empty")
    assert ended(page).startswith("The model gave an empty answer")


@pytest.mark.parametrize("by", ["Escape", "button"])
def test_stop_ends_the_answer_here_and_at_the_model_server(page: Page, server: FakeServer, by: str) -> None:
    loaded(page)
    ask(page, "wait")
    expect(last(page)).to_contain_text("One,")
    expect(last(page)).to_have_attribute("aria-busy", "true")
    expect(last(page)).to_contain_text("first token after")
    expect(page.get_by_role("button", name="Send")).to_be_hidden()
    if by == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert ended(page).startswith("Stopped")
    server.wait_for(lambda it: it.live == 0)
    assert last(page).get_attribute("aria-busy") is None
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(prompt(page)).to_be_focused()
    ask(page, "go on")
    ended(page)
    assert [it["content"] for it in server.requests[-1].json()["messages"]] == ["wait", "One,", "go on"]


def test_nothing_is_sent_where_nothing_should_be(page: Page, server: FakeServer) -> None:
    assert prompt(page).is_disabled()
    assert page.get_by_role("button", name="Send").is_disabled()
    loaded(page)
    count = len(server.requests)
    ask(page, " \n ")
    prompt(page).fill("日本")
    prompt(page).evaluate("it => it.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))")
    expect(page.locator("article")).to_have_count(0)
    ask(page, "wait")
    expect(last(page)).to_contain_text("One,")
    ask(page, "two at once")
    expect(prompt(page)).to_have_value("two at once")
    assert page.locator("#load").is_disabled()
    page.keyboard.press("Escape")
    ended(page)
    assert len(server.requests) == count + 1


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [("fake", "sk-bad", "Incorrect API key"), ("(other endpoint)", "", "Connection refused")],
)
def test_a_provider_that_does_not_load(page: Page, server: FakeServer, name: str, key: str, words: str) -> None:
    page.get_by_label("Provider", exact=True).select_option(name)
    if page.get_by_label("Endpoint").is_visible():
        page.get_by_label("Endpoint").fill("http://127.0.0.1:9/v1")
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    alert = page.locator("#load-error")
    expect(alert).to_contain_text(words, timeout=20_000)
    assert re.fullmatch(r"[A-Z].*\.", alert.text_content() or "", re.DOTALL)
    assert "sk-bad" not in page.content()
    expect(page.get_by_role("button", name="Load")).to_be_enabled()
    expect(page.get_by_role("button", name="Send")).to_be_disabled()


def test_another_endpoint(page: Page, server: FakeServer) -> None:
    page.get_by_label("Provider", exact=True).select_option("(other endpoint)")
    page.get_by_role("button", name="Load").click()
    assert focused(page) == "base-url"  # it is required
    page.get_by_label("Endpoint").fill(f"{server.url}/v1")
    page.get_by_role("button", name="Load").click()
    expect(prompt(page)).to_be_focused()
    assert "authorization" not in server.requests[-1].headers  # no key of the gateway's
    ask(page, "hi")
    ended(page)
    assert said(page) == HELLO
    expect(last(page).get_by_role("heading")).to_have_text(f"{urlsplit(server.url).netloc} · small")


def test_a_real_model(page: Page, tiny_model: str) -> None:
    page.get_by_label("Provider", exact=True).select_option("(other endpoint)")
    page.get_by_label("Endpoint").fill(tiny_model)
    page.get_by_role("button", name="Load").click()
    expect(prompt(page)).to_be_focused()
    ask(page, "Once upon a time")
    expect(last(page).locator(".facts")).to_contain_text("first token after")
    page.keyboard.press("Escape")
    assert re.search(r"\d+ \+ \d+ tokens · first token after", ended(page))
    assert said(page)


def test_an_answer_that_fails_can_be_tried_again(page: Page, server: FakeServer) -> None:
    loaded(page)
    page.get_by_label("Model", exact=True).select_option("Another model…")
    ask(page, "hi")
    assert focused(page) == "model-id"  # it is required
    page.get_by_label("Name of the model").fill("none")
    ask(page, "hi")
    ended(page)
    alert = last(page).get_by_role("alert")
    assert re.fullmatch(r"[A-Z].*does not exist.*\.", alert.text_content() or "", re.DOTALL)
    page.get_by_label("Name of the model").fill("large")
    page.get_by_role("button", name="Try again").click()
    ended(page)
    expect(last(page).locator(".error")).to_have_text("")
    expect(last(page).get_by_role("heading")).to_have_text("fake · large")
    assert said(page) == HELLO
    assert [it["content"] for it in server.requests[-1].json()["messages"]] == ["hi"]
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)


def test_what_failed_is_not_sent_again_and_a_broken_answer_is(page: Page, server: FakeServer) -> None:
    loaded(page)
    page.get_by_label("Model", exact=True).select_option("Another model…")
    page.get_by_label("Name of the model").fill("none")
    ask(page, "same")
    ended(page)
    page.get_by_label("Model", exact=True).select_option("small")
    ask(page, "break")
    ended(page)
    expect(last(page).get_by_role("alert")).to_contain_text("lost in the middle of the answer")
    assert said(page) == "One,"
    ask(page, "same")
    ended(page)
    assert [it["content"] for it in server.requests[-1].json()["messages"]] == ["break", "One,", "same"]


def test_markup_is_shown_as_text(page: Page, server: FakeServer) -> None:
    load(page, NASTY)
    expect(prompt(page)).to_be_focused()
    page.get_by_label("Model", exact=True).select_option(NASTY)
    ask(page, "markup")
    ended(page)
    assert said(page).strip() == MARKUP
    expect(last(page).get_by_role("heading")).to_have_text(f"{NASTY} · {NASTY}")
    ask(page, MARKUP)
    ended(page)
    assert page.locator("article.user .text").last.text_content() == MARKUP
    assert page.locator("img, main script, main b").count() == 0
    assert page.title() == "jazz_llm gateway"


def test_a_key_is_not_carried_to_the_provider_chosen_next(page: Page) -> None:
    page.get_by_label("Provider", exact=True).select_option("groq")
    page.get_by_label("API key").fill("sk-of-groq")
    page.get_by_label("Provider", exact=True).select_option("openai")
    expect(page.get_by_label("API key")).to_have_value("")


def test_who_needs_a_key_is_said(page: Page) -> None:
    provider = page.get_by_label("Provider", exact=True)
    names = provider.locator("option").all_text_contents()
    assert {"groq (key needed)", "openai (key needed)", "fake", "ollama", "local", "azure (endpoint needed)"} <= set(names)
    provider.select_option("groq")
    expect(page.locator("#key-hint")).to_have_text("groq needs a key, and the gateway has none for it. A key is kept in memory only.")
    page.get_by_role("button", name="Load").click()
    assert focused(page) == "api-key"  # it is required
    provider.select_option("fake")
    expect(page.locator("#key-hint")).to_contain_text("Not needed")
    provider.select_option("azure")
    expect(page.get_by_label("Endpoint")).to_be_visible()


def test_the_token_is_asked_for_and_kept_in_memory_only(opening: Opening, config: str) -> None:
    with serving(port=0, token="open-sesame", config=config) as url:
        page = opening(url, expected="WebSocket connection to")
        token = page.get_by_label("Token")
        expect(token).to_be_focused()
        for wrong, words in (("wrong", "did not take this token"), ("ä b", "cannot be sent")):
            token.fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#token-error")).to_contain_text(words)
            expect(token).to_be_focused()
        token.fill("open-sesame")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Connected")
        expect(token).to_be_hidden()
        loaded(page)
        kept = page.evaluate("async () => [localStorage.length, sessionStorage.length, document.cookie, location.href, (await indexedDB.databases()).length, history.state]")
        assert kept == [0, 0, "", url, 0, None]
        page.reload()
        expect(token).to_be_visible()
        expect(token).to_have_value("")


def test_the_gateway_goes_away_and_comes_back(opening: Opening, config: str, server: FakeServer) -> None:
    with serving(port=0, config=config) as url:
        page = opening(url, expected="WebSocket connection to|ERR_CONNECTION_REFUSED")
        loaded(page)
        page.get_by_label("Model", exact=True).select_option("large")
        ask(page, "hi")
        ended(page)
        ask(page, "wait")
        expect(last(page)).to_contain_text("One,")
    ended(page)
    expect(last(page).get_by_role("alert")).not_to_be_empty()
    expect(page.get_by_role("status")).to_have_text("The gateway is not there. This page connects as soon as it is back.")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    expect(page.get_by_role("button", name="Try again")).to_be_disabled()
    prompt(page).fill("after all")  # what is being typed stays
    with serving(port=urlsplit(url).port, config=config):
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        expect(page.get_by_role("status")).to_have_text("Connected")
        prompt(page).press("Enter")
        ended(page)
        sent = server.requests[-1].json()
        assert sent["model"] == "large"
        assert [it["content"] for it in sent["messages"]] == ["hi", HELLO, "wait", "One,", "after all"]


def test_screen_readers_get_whole_sentences_once(page: Page) -> None:
    spoken = page.locator("#spoken")
    assert spoken.get_attribute("aria-live") == "polite"
    loaded(page)
    page.evaluate("""() => {
        window.heard = [];
        new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach((node) => heard.push(node.textContent)))).observe(document.getElementById("spoken"), {childList: true});
    }""")
    ask(page, "long")
    ended(page)
    assert page.evaluate("heard") == [f"Line {i}." for i in range(100)]
    expect(spoken).to_be_empty()
    assert page.locator("#log").get_attribute("aria-live") is None


def test_every_control_has_a_name(page: Page) -> None:
    loaded(page)
    page.locator("#setup-summary").click()
    nameless = page.locator("button, input, select, textarea").evaluate_all(
        "all => all.filter(it => !it.labels?.length && !it.ariaLabel && !it.textContent.trim()).map(it => it.id)"
    )
    assert nameless == []
    assert page.locator("html").get_attribute("lang") == "en"


def test_long_answers_are_followed_until_the_reader_scrolls(page: Page) -> None:
    loaded(page)
    ask(page, "long")
    ended(page)
    until(page, "innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
    ask(page, "wait")
    expect(last(page)).to_contain_text("One,")
    page.mouse.move(300, 300)
    page.mouse.wheel(0, -800)
    until(page, "innerHeight + scrollY < document.documentElement.scrollHeight - 400")
    before = page.evaluate("scrollY")
    page.keyboard.press("Escape")
    ended(page)
    assert abs(page.evaluate("scrollY") - before) < 200


def contrast(page: Page, selector: str) -> float:
    """Return the WCAG contrast of an element's text with what lies behind it."""
    return page.locator(selector).first.evaluate("""node => {
        const light = (colour) => colour.map((it) => it / 255).map((it) => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4)
            .reduce((sum, it, i) => sum + it * [0.2126, 0.7152, 0.0722][i], 0);
        const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
        let behind = node;
        while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
        const [a, b] = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor].map((it) => light(rgb(it).slice(0, 3)));
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }""")


@pytest.mark.parametrize("width", [320, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_the_light_and_in_the_dark(opening: Opening, gateway: str, scheme: str, width: int, tmp_path: Path) -> None:
    page = opening(gateway, color_scheme=scheme, viewport={"width": width, "height": 700})
    load(page, key="sk-bad")
    expect(page.locator("#load-error")).not_to_be_empty()
    load_parts = {part: contrast(page, part) for part in ("#load-error", "#key-hint", "label[for=provider]", "#load")}
    loaded(page)
    ask(page, f"break {'x' * 200}")
    ended(page)
    ask(page, "break")
    ended(page)
    parts = load_parts | {part: contrast(page, part) for part in ("h1", "#status", ".user .text", ".assistant h2", ".assistant .text", ".facts", ".turn .error", "#keys", "#send")}
    assert {part: value for part, value in parts.items() if value < 4.5} == {}
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).every((it) => it < 64)")
    assert dark == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    small = page.locator("button:visible, select:visible, textarea:visible").evaluate_all("all => all.filter((it) => it.getBoundingClientRect().height < 44).map((it) => it.id)")
    assert small == []
    page.screenshot(path=os.environ.get("JAZZ_LLM_SCREENSHOTS", str(tmp_path)) + f"/{scheme}-{width}.png")


def test_nothing_moves_where_people_asked_for_that(opening: Opening, gateway: str) -> None:
    for motion, name in (("reduce", "none"), ("no-preference", "blink")):
        page = loaded(opening(gateway, reduced_motion=motion))
        ask(page, "wait")
        expect(last(page)).to_contain_text("One,")
        assert last(page).locator(".text").evaluate("it => getComputedStyle(it, '::after').animationName") == name
        page.keyboard.press("Escape")
        ended(page)


def test_the_policy_lets_nothing_else_run(page: Page, gateway: str) -> None:
    with urllib.request.urlopen(gateway) as answer:
        policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=|<style|style=|<script(?![^>]*src=)|https?://(?!127)", text)


def test_the_list_of_models_is_the_providers(page: Page) -> None:
    loaded(page)
    assert page.get_by_label("Model", exact=True).locator("option").all_text_contents() == [*MODELS, "Another model…"]
    page.locator("#setup-summary").click()
    load(page, "large-one")
    expect(page.get_by_label("Model", exact=True)).to_have_value("large")  # the file names it


async def blank(request: Request, reply: Reply) -> None:
    await reply.start(200, {"content-type": "text/html"})
    await reply.send(b"<!DOCTYPE html>")
    await reply.end()


def test_a_page_elsewhere_comes_in_only_where_it_may(browser: Browser, config: str) -> None:
    plain = "(url) => new Promise((resolve) => { const socket = new WebSocket(url.replace('http', 'ws')); socket.onopen = () => resolve('in'); socket.onerror = () => resolve('out'); })"
    names = "async (url) => { const { GatewayClient } = await import(`${url}client.js`); return await new GatewayClient().getProviders(); }"
    with ExitStack() as stack:
        elsewhere = stack.enter_context(FakeServer(blank)).url
        page = stack.enter_context(browser.new_context()).new_page()
        page.goto(elsewhere)
        closed = stack.enter_context(serving(port=0, config=config))
        opened = stack.enter_context(serving(port=0, config=config, allow_origins=[elsewhere]))
        assert [page.evaluate(plain, url) for url in (closed, opened)] == ["out", "in"]
        assert "fake" in page.evaluate(names, opened)
        with pytest.raises(Error, match="Failed to fetch dynamically imported module"):
            page.evaluate(names, closed)
