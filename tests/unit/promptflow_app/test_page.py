"""The chat page in a real browser."""

from __future__ import annotations

import shutil

import pytest
from chat_parts import wait_until

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def texts(browser, kind: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", f"#turns .{kind}")]


def ask(browser, question: str) -> None:
    done = len(browser.find_elements("css selector", "#turns .turn[data-done]"))
    browser.find_element("id", "question").send_keys(question + "\n")
    wait_until(
        lambda: len(browser.find_elements("css selector", "#turns .turn[data-done]")) > done, 15, "the answer to end"
    )


def test_page_chats_and_remembers(app, browser):
    """A question typed in is answered, the next one knows of it, a reload keeps both, a new conversation none."""
    browser.get(app.url)
    ask(browser, "first <b>question</b>")
    assert texts(browser, "question") == ["first <b>question</b>"]
    assert texts(browser, "answer") == ["You said: first <b>question</b> (0 before) → été"]
    assert texts(browser, "deployment") == ["v7-3fa9"]
    ask(browser, "second")
    browser.refresh()
    assert texts(browser, "answer")[1] == "You said: second (2 before) → été"
    ask(browser, "third")
    assert "(4 before)" in texts(browser, "answer")[2]
    browser.find_element("id", "new").click()
    ask(browser, "fourth")
    assert texts(browser, "answer") == ["You said: fourth (0 before) → été"]


def test_page_says_what_went_wrong(app, browser):
    """A failure is shown as one sentence for people, and the next question works."""
    browser.get(app.url)
    ask(browser, "status 503")
    error = texts(browser, "error")[0]
    assert error.startswith("The endpoint http") and "failed with status 503" in error
    ask(browser, "break off")
    assert "broke off" in texts(browser, "error")[1]
    ask(browser, "hello")
    assert texts(browser, "answer")[-1].startswith("You said: hello")


def test_page_needs_nothing_from_elsewhere(app, browser):
    """The page loads without errors and without another host."""
    browser.get_log("browser")
    browser.get(app.url)
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert all(name.startswith(app.url) for name in browser.execute_script(script))
