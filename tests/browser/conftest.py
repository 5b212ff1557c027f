"""A browser, and the reports that it opens.

A report is a file and what was written into it. Whoever can make another one adds it to `SOURCES`:
the checks of the explorer then run on it too.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from plotly.offline import get_plotlyjs

import leanvit
from leanvit.analysis.report.build import assemble
from tests.browser import synthetic
from tests.tiny import write_classes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1280, 900), (390, 844)


@dataclass(frozen=True)
class Made:
    """A report on disk."""

    path: Path
    report: dict[str, Any]


def write(folder: Path, report: dict[str, Any]) -> Made:
    path = folder / "report.html"
    path.write_text(assemble(report, get_plotlyjs()), "utf-8")
    return Made(path, report)


def _synthetic(folder: Path) -> Made:
    return write(folder, synthetic.make())


def _trained(folder: Path) -> Made:
    """Report on a tiny run, beside the untrained network."""
    data = write_classes(folder / "images", cats=6, dogs=6)
    options = {
        **{"backbone.image_size": 32, "backbone.patch": 2, "backbone.dim": 8},
        **{"backbone.depths": (1, 1), "backbone.heads": (1, 2), "backbone.window": 4},
        **{"method.views.global_size": 32, "method.views.local_sizes": (16,)},
        **{"method.views.local_counts": (2,), "method.head.prototypes": 16},
        **{"method.head.hidden": 16, "method.head.bottleneck": 8, "train.batch": 4},
        **{"train.duration": "4st", "data.workers": 0, "watch.images": 8, "watch.k": 3},
    }
    run = folder / "run"
    leanvit.pretrain("esvit", data=str(data), out=run, options=options, quiet=True)
    few = {"workers": 0, "gallery": 3, "pairs": 2, "batch": 6}
    leanvit.analyze("report", run, data=str(data), out=folder, options=few, quiet=True)
    page = folder / "report.html"
    (text,) = re.findall(r'id="report-data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    return Made(page, json.loads(text))


SOURCES: dict[str, Callable[[Path], Made]] = {"synthetic": _synthetic, "trained": _trained}
"""Name -> what writes a report into an empty folder."""


@pytest.fixture(scope="session", params=list(SOURCES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return SOURCES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The synthetic report, for what asks for its very figures."""
    return _synthetic(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(
            "The tests of the report page need playwright: pip install 'leanvit[browser]', or "
            "`make test-browser`. `pytest --ignore=tests/browser` leaves them out."
        )
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.fail(
            f"The tests of the report page need a browser ({', '.join(CHROMIUM)}) on PATH: "
            "`make test-browser` gets one. `pytest --ignore=tests/browser` leaves them out."
        )
    # as root, as in containers, Chromium has no sandbox
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=args)
        yield opened
        opened.close()


@dataclass
class Watched:
    """Opens pages; what goes wrong in any of them is kept."""

    browser: "Browser"
    wrong: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)

    def __call__(
        self,
        made: Made,
        *,
        size: tuple[int, int] = DESKTOP,
        scheme: str = "light",
        touch: bool = False,
    ) -> "Page":
        options: dict[str, Any] = {
            "viewport": {"width": size[0], "height": size[1]},
            "color_scheme": scheme,
            "has_touch": touch,
            "reduced_motion": "reduce",
        }
        context = self.browser.new_context(**options)
        self.contexts.append(context)
        page = context.new_page()
        address = made.path.as_uri()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self._request(request.url, address))
        page.goto(address)
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        return page

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console: {message.text}")

    def _request(self, url: str, address: str) -> None:
        if url.split("#")[0] != address and not url.startswith(("data:", "blob:")):
            self.wrong.append(f"request: {url}")


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Watched]:
    """Open reports; nothing may go wrong in a page, and nothing may be asked of a network."""
    watched = Watched(browser)
    yield watched
    for context in watched.contexts:
        context.close()
    assert watched.wrong == []
