"""The page in a real browser: ghost text appears, Tab takes it, Esc lets it go, and its probabilities are shown."""

import os
import shutil
from collections.abc import Iterator

import pytest
from live import soon
from paced import Paced
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not BROWSER or not DRIVER, reason="chromium and chromedriver are not installed")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--window-size=900,800",
)  # fmt: skip


class Page:
    """The page, opened."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.code = self.find("code")

    def find(self, name: str):
        """The element with this id."""
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        """An element's text, hidden or not."""
        return self.find(name).get_attribute("textContent")

    def value(self) -> str:
        """The code."""
        return self.code.get_attribute("value")

    def type(self, *keys: str) -> None:
        """Press keys."""
        self.code.send_keys(*keys)

    def write(self, text: str) -> None:
        """Set the code, the cursor at its end, as typing would."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(script, self.code, text)

    def complaints(self) -> list[str]:
        """What the browser found fault with."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
        yield driver
        driver.quit()


START = "width = 3\nheight = 4\narea = compute_a"


def test_ghost_text_is_taken_with_tab(browser, ngrams):
    page = Page(browser, ngrams.url)
    page.write(START)
    assert soon(lambda: page.text("ghost") == "rea(width, height):")
    assert page.value() == START
    assert page.text("before") + page.text("ghost") == START + "rea(width, height):"
    shown = page.text("tokens")
    assert shown.startswith("rea ")
    assert shown.count("%") == len(page.find("tokens").find_elements(By.TAG_NAME, "span")) > 3
    assert page.text("status").startswith("confidence 0.")
    assert " ms, " in page.text("status")
    page.type(Keys.TAB)
    assert page.value() == START + "rea(width, height):"
    assert soon(lambda: page.text("ghost") == "" and page.text("status") != "")
    assert page.complaints() == []


def test_escape_lets_it_go_and_typing_goes_on(browser, ngrams):
    page = Page(browser, ngrams.url)
    page.write(START)
    assert soon(lambda: page.text("ghost") != "")
    page.type(Keys.ESCAPE)
    assert (page.text("ghost"), page.text("tokens"), page.value()) == ("", "", START)
    page.type("r")
    assert soon(lambda: page.text("ghost") == "ea(width, height):")
    page.type(Keys.ARROW_LEFT)
    assert soon(lambda: page.text("ghost") == "")
    page.type(Keys.END, Keys.ENTER, "zzz_unheard")
    assert soon(lambda: "nothing is known that could follow" in page.text("status"))
    assert page.complaints() == []


def test_what_is_between_two_texts_is_shown_between_them(browser, ngrams):
    page = Page(browser, ngrams.url)
    page.write("raise NotWr\nlast = 1")
    page.type(Keys.ARROW_UP, Keys.END, " ", Keys.BACKSPACE)
    assert soon(lambda: page.text("ghost") == "itten(Exception):")
    assert (page.text("before"), page.text("after")) == ("raise NotWr", "\nlast = 1\n")
    page.type(Keys.TAB)
    assert page.value() == "raise NotWritten(Exception):\nlast = 1"


def test_whole_blocks(browser, ngrams):
    page = Page(browser, ngrams.url)
    page.find("multiline").click()
    page.write("def compute_a")
    assert soon(lambda: page.text("ghost") == "rea(width, height):\n    return width * height")


def test_a_key_is_asked_for(browser, serving):
    paced = Paced()
    paced.steps.release(1_000_000)
    served = serving(paced, key="secret")
    page = Page(browser, served.url)
    assert not page.find("key").is_displayed()
    page.write("value = 1\nval")
    assert soon(lambda: "API key is needed" in page.text("status"))
    page.find("key").send_keys("secret")
    page.type("u")
    assert soon(lambda: page.text("ghost") == "e = 1")


def test_typing_on_ends_what_was_asked(browser, serving):
    """The older request is aborted: the server's state says that no one waits for it."""
    paced = Paced()
    served = serving(paced)
    page = Page(browser, served.url)
    page.write("value = 1\nval")
    assert soon(lambda: served.state.service.load.working == 1)
    older = served.state.service._running
    page.type("u")
    assert soon(lambda: bool(older.reason))
    paced.steps.release(1_000_000)
    assert soon(lambda: page.text("ghost") == "e = 1")
    assert served.idle()
