"""A Chromium to open pages in: the system's own, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    f"no browser to open pages in: install chromium (looked for {', '.join(NAMES)}), e.g. apt-get install chromium"
)


def find_browser() -> str:
    """Return the path of a browser. Without one a test is skipped, and fails where CI is set."""
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(MISSING)
    pytest.skip(MISSING)


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A headless browser; without its sandbox for root, whom it would refuse."""
    executable = find_browser()
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()
