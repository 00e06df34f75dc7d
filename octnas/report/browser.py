"""The browser that draws figures as PNG files."""

import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str | None:
    """The path of a Chromium or Chrome; None where there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)
