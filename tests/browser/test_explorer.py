"""The explorer shows what the report says: of any report, whoever made it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.browser import reference
from tests.browser.conftest import PHONE, Made, Watched
from tests.browser.driving import (
    LEFT,
    RIGHT,
    centre,
    choices,
    choose,
    grid,
    hover,
    middle,
    pick,
    pixels,
    state,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page


def shown(page: "Page", report: dict[str, Any]) -> reference.Record:
    """Return the record of the report that the page shows."""
    now = state(page)
    return reference.matches(report, int(now["model"]), now["layer"], int(now["pair"]))


def agrees(page: "Page", report: dict[str, Any], region: int) -> None:
    record = shown(page, report)
    expected = reference.said(record, region)
    now = state(page)
    assert {name: now.get(name) for name in expected} == expected
    assert ("truth" in now) == ("truth" in expected)


def some(page: "Page") -> list[int]:
    """Return the corners and a few regions between."""
    h, w = grid(page)
    return sorted({0, w - 1, (h - 1) * w, h * w - 1, h * w // 3, h * w // 2})


def test_pointing_shows_the_match(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    assert state(page)["mode"] == "matches"
    for region in some(page):
        hover(page, region)
        agrees(page, made.report, region)
        match = shown(page, made.report)["match"][region]
        assert centre(page, f"{RIGHT} rect.match.over") == pytest.approx(
            middle(page, match, RIGHT), abs=1.5
        )


def test_the_map_has_the_colours_of_the_cosines(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    seen = []
    for region in some(page)[:3]:
        hover(page, region)
        record = shown(page, made.report)
        row = reference.cosines(record)[region]
        seen.append(pixels(page))
        assert np.abs(seen[-1] - reference.colors(row, *record["range"])).max() <= 4
    assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()
    page.check("#explorer-stretch")
    assert np.abs(pixels(page) - reference.colors(row, row.min(), row.max())).max() <= 4


def test_every_choice_shows_its_own_record(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    for pair, model, layer in choices(made.report):
        choose(page, pair, model, layer)
        now = state(page)
        assert (now["pair"], now["model"], now["layer"]) == (str(pair), str(model), layer)
        hover(page, 1)
        agrees(page, made.report, 1)
        record = shown(page, made.report)
        right, known = reference.counts(record)
        assert state(page).get("accuracy") == (f"{right / known:.4f}" if known else None)
        words = page.inner_text("#explorer-accuracy")
        assert (f"{right} of the {known} regions" if known else "not known") in words


def test_a_change_of_grid_keeps_the_place(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    hover(page, grid(page)[1] - 1)
    for pair, model, layer in choices(made.report):
        before, region = grid(page), int(state(page)["region"])
        choose(page, pair, model, layer)
        if state(page)["grid"] == "x".join(map(str, before)):
            assert int(state(page)["region"]) == region
    y, x = divmod(int(state(page)["region"]), grid(page)[1])
    assert y <= grid(page)[0] // 3 and x >= grid(page)[1] * 2 // 3


def test_arrow_keys_move_the_region(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    h, w = grid(page)
    page.locator(LEFT).focus()
    region = int(state(page)["region"])
    steps = {"ArrowRight": 1, "ArrowDown": w, "ArrowLeft": -1, "ArrowUp": -w}
    for key, step in steps.items():
        page.keyboard.press(key)
        region += step
        agrees(page, made.report, region)
    for _ in range(w + 1):
        page.keyboard.press("ArrowLeft")
    for _ in range(h + 1):
        page.keyboard.press("ArrowUp")
    agrees(page, made.report, 0)
    assert "row 1, column 1" in page.inner_text("#explorer-words")


def test_a_click_holds_the_region(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    page.mouse.click(*middle(page, 2))
    hover(page, 0)
    assert state(page)["held"] == "true"
    agrees(page, made.report, 2)
    page.mouse.click(*middle(page, 0))
    hover(page, 1)
    assert state(page)["held"] == "false"
    agrees(page, made.report, 1)


def test_a_tap_chooses_on_a_phone(made: Made, open_page: Watched) -> None:
    page = open_page(made, size=PHONE, touch=True)
    for region in (0, grid(page)[1] + 1):
        page.touchscreen.tap(*middle(page, region))
        agrees(page, made.report, region)
        assert state(page)["held"] == "false"


def test_words_say_what_happened(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    texts = {"yes": "right", "no": "wrong", "unknown": "not known"}
    for region in some(page):
        hover(page, region)
        record = shown(page, made.report)
        words = page.inner_text("#explorer-words")
        y, x = divmod(record["match"][region], record["grid"][1])
        assert f"the best match is row {y + 1}, column {x + 1}, cosine " in words
        assert texts[reference.hit(record, region)] in words
        assert ("not matched back" in words) == (not record["cycle"][region])


def test_all_matches(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    for pair, model, layer in choices(made.report)[:6]:
        choose(page, pair, model, layer)
        page.check("#explorer-all")
        record = shown(page, made.report)
        right, known = reference.counts(record)
        assert page.locator(f"{LEFT} .yes").count() == right
        assert page.locator(f"{LEFT} .no").count() == known - right
        assert page.locator("#explorer-lines line").count() == sum(record["cycle"])
    page.uncheck("#explorer-all")
    assert page.locator("#explorer-lines line").count() == 0


def test_all_models_at_once(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    models = sorted({one["model"] for one in made.report["explorer"]["matches"]})
    if len(models) < 2:
        pytest.skip("a report of one model has nothing to compare")
    page.check("#explorer-compare")
    hover(page, 1)
    minis = page.locator(".mini").all()
    assert page.is_hidden(RIGHT) and len(minis) == len(models)
    for mini in minis:
        said = mini.evaluate("node => ({...node.dataset})")
        pair = int(state(page)["pair"])
        record = reference.matches(made.report, int(said["model"]), said["layer"], pair)
        h, w = record["grid"]
        region = reference.moved(1, grid(page), (h, w))
        expected = reference.said(record, region)
        assert {name: said[name] for name in ("region", "match", "hit")} == {
            name: expected[name] for name in ("region", "match", "hit")
        }
    page.uncheck("#explorer-compare")
    assert page.is_visible(RIGHT) and not page.locator(".mini").count()


def test_attention(made: Made, open_page: Watched) -> None:
    if not made.report["explorer"]["attention"]:
        pytest.skip("a report of backbones without global attention shows none")
    page = open_page(made)
    page.click("#mode-attention")
    for record in made.report["explorer"]["attention"][:6]:
        pick(page, "#explorer-pair", str(record["pair"]))
        pick(page, "#explorer-model", str(record["model"]))
        pick(page, "#explorer-block", str(record["block"]))
        for head in (None, *range(record["heads"])):
            pick(page, "#explorer-head", "mean" if head is None else str(head))
            hover(page, 2)
            row = reference.attention(record, head)[2]
            now = state(page)
            assert now["mode"] == "attention" and now["block"] == str(record["block"])
            assert now["head"] == ("mean" if head is None else str(head))
            assert row[int(now["peak"])] == pytest.approx(1)
            assert np.abs(pixels(page) - reference.colors(row, 0, 1)).max() <= 4
    page.locator("#explorer-heads button").nth(1).click()
    assert state(page)["head"] == "0"
    page.click("#mode-matches")
    agrees(page, made.report, int(state(page)["region"]))


def test_opacity(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    page.locator("#explorer-opacity").fill("0")
    map_of = page.locator(f"{RIGHT} canvas")
    assert map_of.evaluate("node => getComputedStyle(node).opacity") == "0"
