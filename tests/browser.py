"""A headless Chromium for the tests, whose requests may only go to this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

# Set where browser tests must run, as in continuous integration: without a browser they fail there.
REQUIRED = os.environ.get("GEMMASCOPE_BROWSER") == "required"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# anywidget rejects a promise of its own two seconds after a model was made whose output was drawn anew before its module had
# loaded, as on a busy machine. Nobody waits for that model; a lab that is not drawn fails the test that looks at it.
_OF_DISCARDED_MODELS = "[anywidget] Failed to initialize model."
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def executable() -> str:
    """The path of a Chromium. Without one the test is skipped, or fails where browser tests are required."""
    program = next((path for path in map(shutil.which, _NAMES) if path), None)
    if program is None:
        why = f"there is no browser: none of {', '.join(_NAMES)} is on the path (apt-get install chromium)"
        if REQUIRED:
            pytest.fail(why)
        pytest.skip(why)
    return program


@contextmanager
def browser() -> Iterator[Any]:
    """A running Chromium."""
    from playwright.sync_api import sync_playwright

    path = executable()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def page_of(chromium: Any, *, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """A page that blocks requests to other machines and lists them in page.beyond; its errors are in page.errors."""
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.beyond, page.errors = [], []

    def gate(route: Any) -> None:
        url = route.request.url
        if url.startswith(("file:", "data:", "blob:", "http://127.0.0.1", "http://localhost", "ws://127.0.0.1")):
            route.continue_()
        else:
            page.beyond.append(url)
            route.abort()

    context.route("**/*", gate)
    page.on("pageerror", lambda error: str(error) == _OF_DISCARDED_MODELS or page.errors.append(str(error)))
    page.on("dialog", lambda dialog: (page.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        yield page
    finally:
        context.close()


@contextmanager
def pages_of(chromium: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens pages as page_of does. In the end none may have had an error or asked another machine."""
    opened: list[Any] = []
    with ExitStack() as stack:

        def open_one(**options: Any) -> Any:
            opened.append(stack.enter_context(page_of(chromium, **options)))
            return opened[-1]

        yield open_one
        for page in opened:
            assert page.errors == []
            assert page.beyond == []
