"""The chat page in a real browser: it streams, stops, speaks two languages, fits, and trusts nothing a model says."""
import re
import socket
import threading
import time
from dataclasses import replace

import pytest

pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
from chromium import Chromium, find  # noqa: E402
from stub import Stub  # noqa: E402

from gramme.serve.page import FILE, page  # noqa: E402

browser_needed = pytest.mark.skipif(find() is None, reason="no Chromium is installed; the page was not run")
EVIL = ('Look: <img src=x onerror="window.hacked=1"><script>window.hacked=2</script> and `a < b`.\n\n'
        "```html\n<b onclick=\"x\">bold</b>\n```\n\n**Strong** [link](javascript:window.hacked=3) end")


def test_the_page_is_small_whole_and_locked():
    html = FILE.read_text("utf-8")
    assert FILE.stat().st_size < 60_000
    assert set(re.findall(r"https?://[^'\"\s]+", html)) == {"http://www.w3.org/2000/svg"}, "a namespace, not an address"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\sstyle=|\son\w+=", html)
    policy = page().headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and policy.count("'sha256-") == 2 and "unsafe" not in policy


def test_both_languages_have_every_word():
    languages = re.findall(r"^  (en|fr): \{(.*?)^  \},", FILE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    words = {name: set(re.findall(r"(?:^ +|, )(\w+): [\"\[]", text, re.MULTILINE)) for name, text in languages}
    assert words["en"] == words["fr"] and len(words["en"]) > 40
    used = set(re.findall(r'data-(?:t|label|placeholder)="(\w+)"', FILE.read_text("utf-8")))
    assert used <= words["en"]


class Site:
    """The stub over a real port."""

    def __init__(self):
        self.stub = Stub("{{ tools }} </think>", EVIL)
        self.engine = self.stub.engine
        self.engine.stats = replace(self.engine.stats, pages_used=3, pages_cached=5, pages_total=100, rows=2, running=1)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(self.stub.app, log_config=None, ws="none"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [sock]}, daemon=True)
        self._thread.start()

    def close(self):
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture(scope="module")
def site():
    site = Site()
    yield site
    site.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def at(site, browser):
    """The page, freshly opened; afterwards: it asked nobody else, and broke no rule of its policy."""
    site.engine.text, site.engine.pause_s = EVIL, 0.0
    browser.events.clear()
    browser.open(site.url)
    browser.run("localStorage.clear()")
    browser.open(site.url)
    browser.wait("document.getElementById('state').textContent !== ''")
    yield browser
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked and all(url.startswith((site.url, "data:")) for url in asked)
    bad = [e for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert not [e for e in bad if "status of 4" not in str(e)]


def answered(browser, count=1):
    browser.wait(f"document.querySelectorAll('.answer').length === {count} && !document.querySelector('.live')")
    return browser.run("[...document.querySelectorAll('.answer .text')].at(-1).textContent")


@browser_needed
def test_a_conversation_is_streamed_and_what_the_model_says_is_text(site, at):
    site.engine.pause_s = 0.02
    at.type("Hello <b>you</b>")
    at.enter()
    at.wait("document.querySelector('.live .text')?.textContent.startsWith('Look')")
    text = answered(at)
    assert '<img src=x onerror="window.hacked=1">' in text and "<b onclick" in text
    assert at.run("window.hacked") is None
    assert at.run("document.querySelectorAll('#talk img, #talk script, #talk b, #talk a').length") == 0
    assert at.run("document.querySelector('.answer pre code').textContent") == '<b onclick="x">bold</b>'
    assert at.run("document.querySelector('.answer p code').textContent") == "a < b"
    assert at.run("document.querySelector('.answer strong').textContent") == "Strong"
    assert at.run("document.querySelector('.user').textContent") == "Hello <b>you</b>"
    foot = at.run("document.querySelector('.foot').textContent")
    assert re.search(r"first token [\d.,]+ (ms|s).*[\d.,]+ tokens/s.*\d+ tokens", foot), foot
    at.run("send('and more')")
    answered(at, 2)
    sent = site.stub.templates.given[-1]["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "user"] and sent[1]["content"] == EVIL


@browser_needed
@pytest.mark.parametrize("how", ["button", "Escape"])
def test_an_answer_can_be_stopped(site, at, how):
    site.engine.text, site.engine.pause_s, before = "word " * 400, 0.05, site.engine.left
    at.type("go")
    at.enter()
    at.wait("document.querySelector('.live .text')?.textContent.length > 5")
    at.run("document.getElementById('go').click()") if how == "button" else at.press("Escape", 27)
    assert 5 < len(answered(at)) < 1000
    assert "stopped" in at.run("document.querySelector('.foot').textContent")
    for _ in range(100):
        time.sleep(0.05 * (site.engine.left == before))
    assert site.engine.left == before + 1, "the engine's work goes on"
    assert at.run("document.activeElement.id") == "say"


@browser_needed
def test_the_keyboard_is_enough(site, at):
    at.type("one")
    at.enter(shift=True)
    at.type("two")
    assert at.run("document.getElementById('say').value") == "one\ntwo"
    at.enter()
    answered(at)
    reached = set()
    for _ in range(12):
        at.press("Tab", 9)
        reached.add(at.run("document.activeElement.id || document.activeElement.textContent"))
    assert {"fresh", "theme", "language", "open", "Copy", "Again"} <= reached
    at.run("document.getElementById('open').focus()")
    at.enter()
    assert at.run("document.getElementById('drawer').open")
    at.press("Escape", 27)
    assert not at.run("document.getElementById('drawer').open")


@browser_needed
def test_settings_reach_the_engine_and_outlive_the_page(site, at):
    set_ = "n => v => { const i = document.querySelector(`[name=${n}]`); i.value = v; " \
           "i.dispatchEvent(new Event('input', {bubbles: true})); }"
    for name, value in (("temperature", "0.3"), ("max_tokens", "77"), ("seed", "5"), ("system", "Be brief.")):
        at.run(f"({set_})('{name}')('{value}')")
    at.open(site.url)
    at.run("send('x')")
    answered(at)
    params = site.engine.requests[-1].params
    assert (params.temperature, params.max_tokens, params.seed, params.top_p) == (0.3, 77, 5, 1.0)
    assert site.stub.templates.given[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    at.run("document.getElementById('reset').click()")
    at.open(site.url)
    at.run("send('x')")
    answered(at)
    assert site.engine.requests[-1].params.temperature == 1.0


@browser_needed
def test_reasoning_is_folded_away(site, at):
    site.engine.text = "<think>hm, so</think>Yes."
    at.run("send('x')")
    assert answered(at) == "Yes."
    assert at.run("document.querySelector('details div').textContent") == "hm, so"
    assert not at.run("document.querySelector('details').open")


@browser_needed
def test_a_refusal_is_shown_in_words(site, at):
    at.run("settings.temperature = '9'; send('x')")
    answered(at)
    assert "temperature" in at.run("document.querySelector('[role=alert]:not(.hidden)').textContent")


@browser_needed
def test_french_for_the_french_and_at_the_press_of_a_button(site, tmp_path):
    browser = Chromium(tmp_path, "fr-CA")
    try:
        browser.open(site.url)
        assert browser.run("document.documentElement.lang") == "fr"
        assert browser.run("document.getElementById('say').placeholder") == "Écrivez un message"
        browser.run("document.getElementById('language').click()")
        browser.open(site.url)
        assert browser.run("document.documentElement.lang") == "en"
        assert browser.run("document.getElementById('open').textContent") == "Settings"
    finally:
        browser.close()


@browser_needed
@pytest.mark.parametrize("width", [320, 640, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read(site, at, width, dark):
    at.open(site.url, width=width, height=600, dark=dark)
    site.engine.text = "x" * 300 + "\n```\n" + "y" * 300 + "\n```"
    at.run("send('z'.repeat(300))")
    answered(at)
    assert at.run("document.documentElement.scrollWidth <= innerWidth && document.querySelector('main').scrollWidth"
                  " <= document.querySelector('main').clientWidth")
    assert at.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    for one, other in (("body", "body"), (".foot", "body"), ("#strip", "body"), (".user", ".user"), ("#go", "#go")):
        assert contrast(at, one, other) >= 4.5, (one, other)


def contrast(browser, front, back):
    """The ratio of WCAG 2.1 between a colour and the background behind it."""
    def luminance(rgb):
        parts = [int(x) / 255 for x in re.findall(r"\d+", rgb)[:3]]
        return sum(w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4)
                   for w, p in zip((0.2126, 0.7152, 0.0722), parts))

    style = lambda what, name: browser.run(f"getComputedStyle(document.querySelector('{what}')).{name}")
    low, high = sorted((luminance(style(front, "color")), luminance(style(back, "backgroundColor"))))
    return (high + 0.05) / (low + 0.05)


@browser_needed
def test_the_strip_shows_what_the_engine_does(at):
    at.wait("document.getElementById('pagetext').textContent === '3 used, 5 cached, of 100'")
    shown = at.run("['rows', 'state'].map((id) => document.getElementById(id).textContent)")
    widths = at.run("['used', 'known'].map((id) => document.getElementById(id).style.width)")
    ceiling = at.run("document.getElementById('ceiling').textContent")
    assert re.fullmatch(r"of [\d,.]+ that this machine allows", ceiling)
    assert shown == ["2", "working"] and widths == ["3%", "5%"]
