"""The page as a whole: it opens alone, leaves out what is missing, and runs nothing it is given."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import synthetic
from tests.browser.conftest import DESKTOP, PHONE, Made, Watched, write
from tests.browser.driving import hover, overhang, pick, scroll_through, state

if TYPE_CHECKING:
    from playwright.sync_api import Page

SECTIONS = [
    "overview", "curves", "results", "correspondence", "pca", "attention", "cka", "spectrum",
    "neighbours", "pictures", "notes",
]  # fmt: skip
MISSING: dict[str, tuple[str, object]] = {
    "curves": ("curves", []),
    "results": ("results", None),
    "pca": ("pca", []),
    "attention": ("attention", None),
    "cka": ("cka", []),
    "spectrum": ("rank", []),
    "neighbours": ("retrieval", None),
    "pictures": ("pictures", []),
    "notes": ("notes", []),
}
"""Section -> the part of the report without which it is left out, and what missing looks like."""


def sections(page: "Page") -> list[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('section')].map(node => node.id)"
    )
    links = page.evaluate("[...document.querySelectorAll('#nav a')].map(node => node.hash)")
    assert links == [f"#{name}" for name in found]
    return found


def test_it_opens_alone_and_draws_everything(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    assert page.title() == made.report["title"] == page.inner_text("#title")
    assert set(sections(page)) <= set(SECTIONS)
    scroll_through(page)
    assert overhang(page) <= 0
    assert made.path.stat().st_size < 15_000_000


def test_charts_wait_until_they_are_near(sample: Made, open_page: Watched) -> None:
    page = open_page(sample)
    assert sections(page) == SECTIONS
    assert page.locator("#spectrum-chart [data-drawn]").count() == 0
    scroll_through(page)
    assert page.locator(".chart").count() == page.locator(".chart[data-drawn]").count() == 7


def test_print_draws_all_charts(sample: Made, open_page: Watched) -> None:
    page = open_page(sample)
    page.pdf()
    assert page.locator(".chart").count() == page.locator(".chart[data-drawn]").count()


@pytest.mark.parametrize("kind", ["sample", "hostile"])
def test_a_phone_scrolls_in_one_direction(
    sample: Made, kind: str, open_page: Watched, tmp_path: Path
) -> None:
    made = sample if kind == "sample" else write(tmp_path, synthetic.hostile(sample.report))
    page = open_page(made, size=PHONE, touch=True)
    scroll_through(page)
    assert overhang(page) <= 0
    page.check("#explorer-compare")
    assert overhang(page) <= 0
    page.click("#mode-attention")
    assert overhang(page) <= 0


def test_an_untrained_model_is_marked(sample: Made, open_page: Watched) -> None:
    page = open_page(sample)
    marks = [card.locator(".badge").count() for card in page.locator(".card.model").all()]
    assert marks == [0, 0, 1]
    assert page.locator(".card.model .badge").inner_text() == "untrained"


def test_hostile_names_are_text(sample: Made, open_page: Watched, tmp_path: Path) -> None:
    made = write(tmp_path, synthetic.hostile(sample.report))
    page = open_page(made)
    scroll_through(page)
    hover(page, 3)
    assert sections(page) == SECTIONS
    assert page.evaluate("typeof window.pwned") == "undefined"
    assert page.locator("img[onerror], img[src='x'], svg img, main script").count() == 0
    report = made.report
    assert page.inner_text("#title") == page.title() == report["title"]
    names = [one["name"] for one in report["models"]]
    assert page.locator(".card.model .name").all_inner_texts() == names
    assert page.locator("#notes-list li").all_inner_texts() == report["notes"]
    titles = page.locator("#cka-chart .xtitle").all_text_contents()
    assert titles[0].startswith("MAE </script><script>")


def test_a_chart_shows_hostile_names_as_text(
    sample: Made, open_page: Watched, tmp_path: Path
) -> None:
    report = {**sample.report, "models": [dict(one) for one in sample.report["models"]]}
    report["models"][1]["name"] = "<b>%{x}&amp;<img src=x>"
    page = open_page(write(tmp_path, report))
    scroll_through(page)
    chart = page.locator("#curves-charts .chart").nth(1)
    chart.evaluate("node => Plotly.Fx.hover(node, [{curveNumber: 1, pointNumber: 10}])")
    said = chart.locator(".hoverlayer").text_content() or ""
    assert "<b>%{x}&amp;<img src=x>" in said and "step 200" in said


@pytest.mark.parametrize("section", MISSING)
def test_a_missing_part_leaves_its_section_out(
    sample: Made, section: str, open_page: Watched, tmp_path: Path
) -> None:
    part, nothing = MISSING[section]
    page = open_page(write(tmp_path, {**sample.report, part: nothing}))
    assert sections(page) == [name for name in SECTIONS if name != section]


def test_a_bare_report_opens(open_page: Watched, tmp_path: Path) -> None:
    page = open_page(write(tmp_path, synthetic.bare()))
    assert sections(page) == ["overview", "correspondence"]
    assert page.locator("#mode-attention").count() == 0
    hover(page, 0)
    assert state(page)["hit"] == "unknown"
    assert "not known" in page.inner_text("#explorer-words")
    assert "right place" not in page.inner_text("#explorer-key")


@pytest.mark.parametrize("kept", ["matches", "attention", "neither"])
def test_an_explorer_with_parts_missing(
    sample: Made, kept: str, open_page: Watched, tmp_path: Path
) -> None:
    old = sample.report["explorer"]
    new = {name: old[name] if name in ("pairs", kept) else [] for name in old}
    page = open_page(write(tmp_path, {**sample.report, "explorer": new}))
    assert ("correspondence" in sections(page)) == (kept != "neither")
    if kept != "neither":
        hover(page, 4)
        assert state(page)["mode"] == kept and state(page)["region"] == "4"
        assert page.locator("#mode-attention").count() == 0


def test_results_are_sorted_and_the_best_is_marked(sample: Made, open_page: Watched) -> None:
    page = open_page(sample)
    first = "#results-table tbody tr:first-child th"
    heads = page.locator("#results-table thead button")
    heads.nth(1).click()
    assert "EsViT" in page.inner_text(first)
    heads.nth(1).click()
    assert "random" in page.inner_text(first)
    assert page.locator("#results-table th").nth(1).get_attribute("aria-sort") == "ascending"
    heads.nth(3).click()
    heads.nth(3).click()
    last = page.inner_text("#results-table tbody tr:last-child th")
    assert "MAE" in last, "what is missing goes last"
    best = page.locator("#results-table .best").all_inner_texts()
    assert sorted(text.split()[-1] for text in best) == ["61.0", "78.4", "84.1"]
    assert all("★" in text for text in best), "not by weight or colour alone"


def test_neighbours_of_another_class_are_marked(sample: Made, open_page: Watched) -> None:
    page = open_page(sample)
    found = sample.report["retrieval"]
    classes = [picture["class"] for picture in found["pictures"]]
    expected = []
    for q, query in enumerate(found["queries"]):
        for one in found["models"]:
            for index, _ in one["neighbors"][q]:
                known = classes[index] is not None and classes[query] is not None
                same = classes[index] == classes[query]
                expected.append(("yes" if same else "no") if known else "unknown")
    figures = page.locator("#neighbours-list .found figure").all()
    assert [figure.get_attribute("data-same") for figure in figures] == expected
    signs = {"yes": "✓", "no": "✕", "unknown": ""}
    for figure, same in zip(figures, expected, strict=True):
        assert figure.inner_text().startswith(signs[same])


def test_the_pair_of_the_heat_map_can_be_chosen(sample: Made, open_page: Watched) -> None:
    page = open_page(sample)
    scroll_through(page)
    for i, one in enumerate(sample.report["cka"]):
        pick(page, "#cka-pair", str(i))
        drawn = page.evaluate("[...document.querySelector('#cka-chart .chart').data[0].z]")
        assert drawn == one["values"]


def test_the_legend_hides_a_model(sample: Made, open_page: Watched) -> None:
    page = open_page(sample)
    scroll_through(page)
    lines = page.locator("#spectrum-chart .scatterlayer .trace")
    assert lines.count() == 3
    button = page.locator("#spectrum-legend button").nth(2)
    button.click()
    assert lines.count() == 2 and button.get_attribute("aria-pressed") == "false"
    button.click()
    assert lines.count() == 3


def test_charts_follow_the_scheme(sample: Made, open_page: Watched) -> None:
    page = open_page(sample)
    scroll_through(page)
    color = "document.querySelector('#spectrum-chart .chart').layout.font.color"
    light = page.evaluate(color)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => {color} !== '{light}'")


@pytest.mark.skipif(
    "LEANVIT_SCREENSHOTS" not in os.environ, reason="LEANVIT_SCREENSHOTS names no folder"
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_screenshots(
    made: Made,
    request: pytest.FixtureRequest,
    size: tuple[int, int],
    scheme: str,
    open_page: Watched,
) -> None:
    folder = Path(os.environ["LEANVIT_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    page = open_page(made, size=size, scheme=scheme)
    scroll_through(page)
    page.add_style_tag(content="#nav { display: none }")
    name = request.node.callspec.id
    for section in sections(page):
        page.locator(f"#{section}").screenshot(path=folder / f"{name}-{section}.png")
    hover(page, int(state(page)["region"]))
    for box in ("all", "compare"):
        if page.is_visible(f"#explorer-{box}"):
            page.check(f"#explorer-{box}")
            page.locator("#explorer").screenshot(path=folder / f"{name}-explorer-{box}.png")
            page.uncheck(f"#explorer-{box}")
    if page.locator("#mode-attention").count():
        page.click("#mode-attention")
        page.locator("#explorer").screenshot(path=folder / f"{name}-explorer-attention.png")


def test_maps_of_attention_are_shown_where_there_are_any(made: Made, open_page: Watched) -> None:
    page = open_page(made)
    figure = page.locator("#attention-maps")
    assert figure.is_visible() == ("maps" in made.report["attention"])
    if figure.is_visible():
        figure.scroll_into_view_if_needed()
        assert figure.locator("img").evaluate("node => node.decode().then(() => node.naturalWidth)")
