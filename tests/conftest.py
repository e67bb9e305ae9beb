"""What tests share: pico models made here, the real command, and a store of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from compressor.core.errors import RecipeError
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose
from tests.harness.command import Command, compressor
from tests.harness.once import run_once
from tests.harness.recipes import RECIPE

CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SHARED = Path(__file__).parent.parent.parent / "shared"


VARIABLES = dict(os.environ)
"""As the session began."""


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Take back variables that libraries set (pipelines do): commands would begin with them."""
    with patch.dict(os.environ, VARIABLES, clear=True):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A run of the pico recipe, made once for all tests, which leave its folder as it is."""
    return run_once(tmp_path_factory, "finished", RECIPE)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write the pico recipe, or another, with replacements (old, new), and give its path."""

    def write(*replacements: tuple[str, str], name: str = "mine.yaml", text: str = RECIPE) -> Path:
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def plan_errors(recipe: Callable[..., Path]) -> Callable[..., str]:
    """Plan a recipe, with replacements, in this process: all that is wrong with it."""

    def write_and_plan(
        *replacements: tuple[str, str], overrides: Sequence[str] = (), text: str = RECIPE
    ) -> str:
        path = recipe(*replacements, text=text)
        with pytest.raises(RecipeError) as caught:
            plan(compose(str(path), overrides), Store(path.parent))
        return str(caught.value)

    return write_and_plan


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Command]:
    """Run a command in a folder of the test's own, where its `outputs/` lands too."""
    return partial(compressor, cwd=tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, driven by Playwright."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: make test-browser installs it")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_file(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page's file; at the end there was no error and no request elsewhere."""
    complaints: list[str] = []
    contexts = []

    def elsewhere(route: Any) -> None:
        complaints.append(f"request: {route.request.url}")
        route.abort()

    def opened(path: Path, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        context.route(lambda url: not url.startswith("file:"), elsewhere)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
