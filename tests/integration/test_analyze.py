"""`leanvit analyze`: from names to figures, pictures and a table."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import leanvit
from leanvit.analysis.analyze import RUNNERS
from leanvit.analysis.pairs import Pair, matching, pairs_of
from leanvit.cli import main
from leanvit.config.analysis import ANALYSIS_CONFIGS
from leanvit.config.resume import read_past
from leanvit.core.errors import RunError
from leanvit.data.decode import to_pixels
from leanvit.data.images import middle
from leanvit.data.sources import open_source
from leanvit.evaluation.result import Result
from leanvit.methods.catalogue import build_method
from leanvit.methods.dino import DINO
from leanvit.train.checkpoint import CHECKPOINTS, newest_checkpoint
from leanvit.weights.loading import load_backbone
from leanvit.weights.whole import strip
from tests.integration.command import Finished
from tests.tables import write_network, write_run
from tests.tiny import CVT, SWIN, TIMM_CONVOLUTIONS, VIT, build, write_backbone

pytestmark = pytest.mark.usefixtures("one_thread")

FEW: Mapping[str, Any] = {"workers": 0, "images": 10, "batch": 5}
SMALL: dict[str, Mapping[str, Any]] = {
    "attention": {**FEW, "maps": 2},
    "cka": FEW,
    "layers": {"workers": 0, "duration": "1ep"},
    "rank": FEW,
    "pca": {**FEW, "images": 4},
    "correspondence": {**FEW, "images": 2},
    "retrieval": {**FEW, "queries": 2, "neighbors": 2},
    "report": {**FEW, "gallery": 3, "pairs": 2},
}
"""Options that make each analysis short."""


def found(name: str, models: Any, data: Path, out: Path, **options: Any) -> Result:
    options = {**SMALL[name], **options}
    return leanvit.analyze(name, models, data=str(data), out=out, options=options, quiet=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("other") / "other.safetensors", config=VIT)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("name", [*RUNNERS, "layers"])
def test_files_and_table_say_the_same_twice(
    name: str, model: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    result = found(name, [model, other], data, tmp_path / "one")
    written = json.loads((tmp_path / "one" / f"{name}.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert {*result.facts["files"]} == {path.name for path in (tmp_path / "one").iterdir()}
    for file in result.facts["files"]:
        if file.endswith(".png"):
            with Image.open(tmp_path / "one" / file) as picture:
                assert min(picture.size) > 100
        elif file.endswith(".svg"):
            assert "<svg" in (tmp_path / "one" / file).read_text()
    again = found(name, [model, other], data, tmp_path / "two")
    assert again.rows == result.rows
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert {k: v for k, v in one.items() if not k.endswith("json")} == {
        k: v for k, v in two.items() if not k.endswith("json")
    }
    assert {"some.safetensors", "other.safetensors"} == {
        row.get("network", row.get("other")) for row in result.rows
    } | {row.get("other", "other.safetensors") for row in result.rows}


CHANGES: Mapping[tuple[str, str], Any] = {
    ("attention", "images"): 5,
    ("attention", "untrained"): True,
    ("attention", "distance"): "paper",
    ("attention", "maps"): 1,
    ("attention", "block"): 0,
    ("attention", "query"): (0.1, 0.9),
    ("attention", "image_size"): 48,
    ("attention", "crop"): 0.5,
    ("cka", "images"): 5,
    ("cka", "batch"): 10,
    ("cka", "untrained"): True,
    ("layers", "study"): "reinit",
    ("layers", "probe"): "linear",
    ("layers", "untrained"): True,
    ("rank", "seed"): 1,
    ("rank", "images"): 7,
    ("pca", "foreground"): False,
    ("pca", "images"): 3,
    ("correspondence", "images"): 1,
    ("correspondence", "pairs"): 3,
    ("correspondence", "between"): "images",
    ("retrieval", "queries"): 1,
    ("retrieval", "names"): ("ants/003.png",),
    ("retrieval", "neighbors"): 3,
    ("retrieval", "images"): 45,
    ("report", "images"): 8,
    ("report", "untrained"): False,
    ("report", "gallery"): 2,
    ("report", "pairs"): 1,
    ("report", "megabytes"): 0.1,
}
"""An option of an analysis -> another value, which another file or table comes of."""


@pytest.mark.parametrize(("name", "option"), CHANGES)
def test_every_option_matters(
    name: str, option: str, model: Path, data: Path, tmp_path: Path
) -> None:
    needed = {"images": 45} if option == "names" else {}
    first = found(name, model, data, tmp_path / "one", **needed)
    changed = {**needed, option: CHANGES[name, option]}
    second = found(name, model, data, tmp_path / "two", **changed)
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    pictures = [file for file in one.keys() & two.keys() if not file.endswith("json")]
    assert first.rows != second.rows or any(one[file] != two[file] for file in pictures)


@pytest.mark.parametrize("option", ["recipe", "duration", "seeds", "keep", "val"])
def test_options_of_the_study_reach_its_trainings(
    option: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def train(_: str, model: Any, *, data: str, options: dict[str, Any], quiet: bool) -> Result:
        asked.append(options)
        rows = [{"network": "trained", "seed": seed, "top1": 50.0} for seed in options["seeds"]]
        return Result("finetune", {}, rows)

    monkeypatch.setattr("leanvit.analysis.depth.evaluate", train)
    value: Any = {
        "recipe": "deit",
        "duration": "2ep",
        "seeds": (1, 2),
        "keep": (1,),
        "val": str(data / "val"),
    }[option]
    result = found("layers", model, data, tmp_path, study="reinit", **{option: value})
    if option == "keep":
        assert [options["keep_blocks"] for options in asked] == [1]
    else:
        assert [options["keep_blocks"] for options in asked] == [0, 1, 2, 3, 4]
        assert {str(options[option]) for options in asked} == {str(value)}
    assert {row["seed"] for row in result.rows} == ({1, 2} if option == "seeds" else {0})
    asked.clear()
    again = found("layers", model, data, tmp_path, study="reinit", **{option: value})
    assert not asked and again.rows == result.rows, "what was trained is not trained again"


def test_a_study_trains_for_real(model: Path, data: Path, tmp_path: Path) -> None:
    result = found("layers", model, data, tmp_path, study="both", keep=(0, 4))
    assert {(row["study"], row["block"]) for row in result.rows} == {
        *(("probe", block) for block in range(4)),
        ("reinit", 0),
        ("reinit", 4),
    }
    assert all(0 <= row["top1"] <= 100 for row in result.rows)


@pytest.mark.parametrize("name", RUNNERS)
def test_untrained_networks_come_first(name: str, model: Path, data: Path, tmp_path: Path) -> None:
    result = found(name, model, data, tmp_path, untrained=True)
    assert result.facts["models"] == ["untrained", "some.safetensors"]
    assert result.rows[0]["network"] == "untrained"


def test_names_tell_networks_apart(data: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_network(tmp_path / folder / "x.safetensors", norm=2.0 if folder == "b" else 1.0)
    write_run(tmp_path / "run")
    paths = [tmp_path / "a" / "x.safetensors", tmp_path / "b" / "x.safetensors", tmp_path / "run"]
    result = found("rank", paths, data, tmp_path / "out")
    assert result.facts["models"] == ["a/x.safetensors", "b/x.safetensors", "run"]


def test_prototypes_are_those_of_the_teacher(run: Finished, tmp_path: Path) -> None:
    result = found("rank", run.out, Path(run.data), tmp_path / "out", untrained=True, images=12)
    assert result.rows[0]["prototypes"] is None, "before training there are none to speak of"
    checkpoint = newest_checkpoint(run.out / CHECKPOINTS)
    assert checkpoint is not None
    method = build_method(*configs_of(run.out), 0)
    method.load_state_dict(strip(checkpoint.tensors(), "method."))
    assert isinstance(method, DINO)
    source = open_source(run.data)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (method.encoder().mean, method.encoder().std)
    )
    pixels = torch.stack(
        [middle(to_pixels(source[i].image), 32, result.facts["crop"]) for i in range(12)]
    )
    with torch.no_grad():
        rows = method.teacher.head(method.eval().encoder().features((pixels - mean) / std).pooled)
    chosen = (rows.rows @ rows.prototypes.T - method.center.value).argmax(1)
    share = chosen.bincount().double()
    share = share[share > 0] / 12
    row = result.rows[1]
    assert (row["prototypes"], row["taken"]) == (16, len(share))
    assert row["perplexity"] == pytest.approx(float(torch.exp(-(share * share.log()).sum())))


def configs_of(folder: Path) -> tuple[Any, Any]:
    config = read_past(folder).resolved.config
    return config.method, config.backbone


@pytest.mark.parametrize("name", [name for name in RUNNERS if name != "attention"])
def test_networks_without_attention_take_part(name: str, data: Path, tmp_path: Path) -> None:
    model = write_backbone(tmp_path, build(TIMM_CONVOLUTIONS))
    assert found(name, [model], data, tmp_path / "out").rows


def test_each_network_sees_its_own_size(data: Path, tmp_path: Path) -> None:
    paths = []
    for size in (32, 48):
        config = type(VIT)(image_size=size, patch=4, dim=16, depth=3, heads=2, drop_path=0.0)
        (tmp_path / str(size)).mkdir()
        paths.append(write_backbone(tmp_path / str(size), build(config)))
    for name in RUNNERS:
        result = found(name, paths, data, tmp_path / name)
        assert result.facts["sizes"] == [32, 48]


MISTAKES: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "no images for CKA": ("cka", {"images": 3}, "3 images are too few for CKA"),
    "a batch too small for CKA": ("cka", {"batch": 3}, "batch is 3; the unbiased estimator"),
    "no block": ("attention", {"block": 4}, "has 4 blocks, from 0; there is no block 4"),
    "no place": ("attention", {"query": (0.5, 1.5)}, "expected two shares from 0 to 1"),
    "no such image": ("retrieval", {"names": ("zebra.png",)}, "0 of the 10 images"),
    "one image for spectra": ("rank", {"images": 1}, "A single image has no spectrum"),
    "one image for neighbours": ("retrieval", {"images": 1}, "1 images have no neighbours"),
    "a model without training": ("layers", {"study": "reinit", "duration": "0ep"}, "duration"),
    "unknown option": ("pca", {"colour": 1}, "colour"),
    "no pictures at all": ("correspondence", {"images": 0}, "images is 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_sentences(mistake: str, model: Path, data: Path, tmp_path: Path) -> None:
    name, options, said = MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(said)):
        found(name, model, data, tmp_path, **options)


def test_mistakes_of_names(model: Path, data: Path, tmp_path: Path) -> None:
    for name, models, said in (
        ("spectrum", model, "Unknown analysis 'spectrum'"),
        ("rank", [], "Name a model or more"),
        ("layers", [], "Name a model or more"),
        ("rank", [model, model], "is named twice"),
        ("rank", tmp_path / "nothing", "nothing"),
    ):
        with pytest.raises(ValueError, match=said):
            leanvit.analyze(name, models, data=str(data), out=tmp_path, quiet=True)
    convolutions = write_backbone(tmp_path, build(TIMM_CONVOLUTIONS))
    with pytest.raises(ValueError, match="has no attention that can be looked at"):
        found("attention", convolutions, data, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises((ValueError, RunError), match="file"):
        found("rank", model, data, tmp_path / "file")


def test_too_many_unreadable_images_stop(model: Path, broken: Path, tmp_path: Path) -> None:
    options = {"images": 63, "max_unreadable": 0.0}
    with pytest.raises(ValueError, match="at most 0 % may be"):
        found("rank", model, broken, tmp_path, **options)
    result = found("rank", model, broken, tmp_path, images=63, max_unreadable=10.0)
    assert any("cannot be read" in note for note in result.notes)


# The command


def test_the_command_prints_a_table_and_what_it_wrote(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["analyze", "rank", str(model), "--data", str(data), "--workers", "0"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    out, error = capsys.readouterr()
    assert "effective rank" in out and f"Written: {tmp_path / 'out' / 'rank.png'}" in out
    assert error == ""
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "rank"


def test_the_command_names_analyses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in ANALYSIS_CONFIGS)
    assert main(["analyze"]) == 2
    assert "Name an analysis: attention" in capsys.readouterr().err
    assert main(["analyze", "pca", "--data", "sample"]) == 2
    assert "Name a model or more first" in capsys.readouterr().err


# The report


def page_data(page: Path) -> dict[str, Any]:
    (text,) = re.findall(
        r'<script type="application/json" id="report-data">(.*?)</script>', page.read_text(), re.S
    )
    return json.loads(text)


def test_the_report_holds_everything_that_was_found(
    data: Path, other: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run")
    leanvit.evaluate("knn", run, data=str(data), options={"k": (1,), "workers": 0}, quiet=True)
    result = found("report", [run, other], data, tmp_path / "out")
    page = tmp_path / "out" / "report.html"
    assert result.facts["page"] == str(page) and page.stat().st_size < 15e6
    assert {*result.facts["files"]} == {path.name for path in page.parent.iterdir()}
    shown = page_data(page)
    names = [model["name"] for model in shown["models"]]
    assert names == ["run, untrained", "other.safetensors, untrained", "run", "other.safetensors"]
    assert [model["trained"] for model in shown["models"]] == [False, False, True, True]
    assert shown["results"]["rows"][0][0] == "run" and shown["images"] == 10
    assert len(shown["gallery"]) == 3 and len(shown["explorer"]["pairs"]) == 2
    assert len(shown["cka"]) == 6 and len(shown["rank"]) == len(shown["pca"]) == 4
    layers = {entry["layer"] for entry in shown["explorer"]["matches"] if entry["model"] == 3}
    assert layers == {"final", "block 0", "block 1"}
    for entry in shown["explorer"]["matches"]:
        h, w = entry["grid"]
        assert max(h, w) <= 16 and len(entry["match"]) == h * w
    for file in ("attention", "cka", "rank", "pca", "correspondence", "retrieval"):
        assert json.loads((page.parent / f"{file}.json").read_text())["name"] == file


def test_matches_of_the_page_are_those_of_the_network(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Pair] = []

    def note(*words: Any) -> list[Pair]:
        held.extend(pairs_of(*words))
        return held

    monkeypatch.setattr("leanvit.analysis.report.build.pairs_of", note)
    found("report", model, data, tmp_path, untrained=False)
    shown = page_data(tmp_path / "report.html")["explorer"]["matches"]
    backbone = load_backbone(model)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    for number, pair in enumerate(held):
        views = torch.stack([pair.left, pair.right])
        with torch.no_grad():
            left, right = backbone.eval().features((views - mean) / std).grid
        expected = matching(left, right, pair.truth(*left.shape[:2]))
        (entry,) = (e for e in shown if e["pair"] == number and e["layer"] == "final")
        assert entry["match"] == expected.match.tolist()
        assert entry["truth"] == expected.truth.tolist() and expected.known.any()


def test_names_cannot_leave_their_place(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>&amp;"
    folder = tmp_path / "data" / "</scr<script>alert(2)"
    folder.mkdir(parents=True)
    for number in range(6):
        picture = Image.new("RGB", (32, 32), (40 * number, 90, 120))
        picture.putpixel((number, 3), (255, 0, 0))
        picture.save(folder / f"{hostile}{number}.png")
    (tmp_path / hostile).mkdir()
    run = write_run(tmp_path / hostile / "a<b>")
    found("report", run, tmp_path / "data", tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "onerror=alert" in json.dumps(page_data(tmp_path / "out" / "report.html"))
    assert "<img src=x" not in text and "a<b>" not in text


def test_a_report_says_what_it_leaves_out(data: Path, tmp_path: Path) -> None:
    model = write_backbone(tmp_path, build(TIMM_CONVOLUTIONS))
    result = found("report", model, data, tmp_path / "out", images=3, untrained=False)
    assert any("its attention cannot be looked at" in note for note in result.notes)
    assert any(note.startswith("CKA is left out") for note in result.notes)
    shown = page_data(tmp_path / "out" / "report.html")
    assert shown["attention"] is None and shown["cka"] == [] and shown["notes"]
    assert shown["curves"] == [] and shown["results"] is None and shown["pictures"] == []


def test_the_report_needs_plotly(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanvit.analysis.report.build.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'leanvit\[report\]'"):
        found("report", model, data, tmp_path)


def test_attention_goes_before_the_page_grows_too_large(data: Path, tmp_path: Path) -> None:
    model = write_backbone(tmp_path, build(SWIN))
    large = found("report", model, data, tmp_path / "large")
    small = found("report", model, data, tmp_path / "small", megabytes=0.1)
    held = [page_data(Path(r.facts["page"]))["explorer"]["attention"] for r in (large, small)]
    assert held[0] and not held[1]
    blocks = [entry["block"] for entry in held[0]]
    assert blocks[0] == 3, "the last block comes first"


def test_cvt_is_reported_too(data: Path, tmp_path: Path) -> None:
    model = write_backbone(tmp_path, build(CVT))
    assert found("report", model, data, tmp_path / "out").rows


def test_broken_images_are_told_of(
    model: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"images": 63, "max_unreadable": 10.0, "gallery": 63}
    result = found("report", model, broken, tmp_path, **options)
    assert sum("cannot be read" in note for note in result.notes) == 1
    assert capsys.readouterr().err.count("cannot be read") == 1, "once is enough"


@pytest.mark.parametrize("name", ["pca", "correspondence", "attention", "report"])
def test_one_broken_image_among_few_costs_nothing(
    name: str, model: Path, broken: Path, tmp_path: Path
) -> None:
    """Three of 45 cannot be read; in their place stand others, whichever are drawn."""
    few = {"pca": {"images": 40}, "correspondence": {"images": 40}, "attention": {"maps": 8}}
    options: dict[str, Any] = {"max_unreadable": 0.0, "images": 20, **few.get(name, {})}
    result = found(name, model, broken, tmp_path, **options)
    if name == "correspondence":
        assert len({row["left"] for row in result.rows}) == 40
    assert result.rows and not any("cannot be read" in note for note in result.notes)


def test_pairs_of_images_are_as_many_as_asked_for(model: Path, data: Path, tmp_path: Path) -> None:
    result = found("correspondence", model, data, tmp_path, images=3, between="images")
    assert len({name for row in result.rows for name in (row["left"], row["right"])}) == 6
