"""What a visitor does on the page, and what the page then says."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from playwright.sync_api import Page

LEFT, RIGHT = "#explorer-left", "#explorer-right"


def state(page: "Page") -> dict[str, str]:
    """Return the explorer's state."""
    found: dict[str, str] = page.evaluate("({...document.getElementById('explorer').dataset})")
    return found


def grid(page: "Page") -> tuple[int, int]:
    h, w = map(int, state(page)["grid"].split("x"))
    return h, w


def middle(page: "Page", region: int, stage: str = LEFT) -> tuple[float, float]:
    """Return the middle of a region of a picture, in pixels of the window."""
    h, w = grid(page)
    script = "node => node.scrollIntoView({block: 'center', behavior: 'instant'})"
    page.locator(f"{stage} img").evaluate(script)
    box = page.locator(f"{stage} img").bounding_box()
    assert box is not None
    y, x = divmod(region, w)
    return (
        box["x"] + (x + 0.5) / w * box["width"],
        box["y"] + (y + 0.5) / h * box["height"],
    )


def hover(page: "Page", region: int) -> None:
    page.mouse.move(*middle(page, region))


def pixels(page: "Page", stage: str = RIGHT) -> NDArray[np.int64]:
    """Return the colours [T, 3] of a map."""
    flat: list[int] = page.locator(f"{stage} canvas").evaluate(
        "node => [...node.getContext('2d').getImageData(0, 0, node.width, node.height).data]"
    )
    return np.array(flat).reshape(-1, 4)[:, :3]


def centre(page: "Page", selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def scroll_through(page: "Page") -> None:
    """Show every section, and wait until its charts are drawn."""
    for section in page.locator("section").all():
        section.evaluate("node => node.scrollIntoView({behavior: 'instant'})")
        for chart in section.locator(".chart").all():
            chart.evaluate("node => node.scrollIntoView({block: 'center', behavior: 'instant'})")
            page.wait_for_function(
                "node => node.dataset.drawn && node.querySelector('.main-svg')",
                arg=chart.element_handle(),
            )


def overhang(page: "Page") -> int:
    """Return by how many pixels the page is wider than the window."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return wide


def choices(report: dict[str, Any]) -> list[tuple[int, int, str]]:
    """Return every (pair, model, layer) that has matches."""
    return [(one["pair"], one["model"], one["layer"]) for one in report["explorer"]["matches"]]


def pick(page: "Page", select: str, value: str) -> None:
    """Choose by value; Playwright's own way would take a label for it too."""
    options = page.locator(f"{select} option").all()
    values = [option.get_attribute("value") for option in options]
    page.select_option(select, index=values.index(value))


def choose(page: "Page", pair: int, model: int, layer: str) -> None:
    pick(page, "#explorer-pair", str(pair))
    pick(page, "#explorer-model", str(model))
    pick(page, "#explorer-layer", layer)
