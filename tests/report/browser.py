"""An installed Chromium, driven by Playwright, for tests that use a page as people do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octnas.report.png import find_browser


@contextmanager
def launched() -> Iterator[Any]:
    """A browser; skips the test where Playwright or a browser is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if (path := find_browser()) is None:
        pytest.skip("no Chromium or Chrome is installed")
    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, width: int, scheme: str = "light") -> Iterator[Any]:
    """The page in a window of a width; it must log no message and request nothing."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500
    )
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_load_state()
    # Plotly draws once more when it knows the size of its labels.
    page.wait_for_timeout(500)
    yield page
    page.wait_for_timeout(200)
    context.close()
    assert said == []
    # Plotly makes images from its own data.
    outside = [url for url in asked[1:] if not url.startswith(("data:", "blob:"))]
    assert outside == []
