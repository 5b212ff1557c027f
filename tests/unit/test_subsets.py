"""Fewer images and long tails: who is kept, and that everybody is told."""

import json
from pathlib import Path

import numpy as np
import pytest

import leanvit
from leanvit.config import DataConfig
from leanvit.data.sources import FolderSource, Source, hold_out
from leanvit.data.subsets import Joined, draw_subset
from tests.tiny import draw_nothing, write_classes, write_images


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    return FolderSource(write_classes(tmp_path_factory.mktemp("c"), a=8, b=16, c=12))


def drawn(source: Source, seed: int = 0, **options: float) -> Source:
    return draw_subset(source, DataConfig(**options), seed)  # type: ignore[arg-type]


def names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def counts(source: Source) -> list[int]:
    return np.bincount(source.targets, minlength=len(source.classes)).tolist()


def test_everything_is_the_source_itself(classes: FolderSource) -> None:
    assert drawn(classes) is classes


@pytest.mark.parametrize(
    ("fraction", "imbalance", "expected"),
    [
        (0.5, 1.0, [4, 8, 6]),
        (0.01, 1.0, [1, 1, 1]),
        (1.0, 4.0, [8, 8, 3]),  # shares 1, 1 / 2, 1 / 4
        (0.5, 4.0, [4, 4, 2]),
        (1.0, 100.0, [8, 2, 1]),
    ],
)
def test_a_share_of_every_class_is_kept(
    fraction: float, imbalance: float, expected: list[int], classes: FolderSource
) -> None:
    found = drawn(classes, fraction=fraction, imbalance=imbalance)
    assert counts(found) == expected and found.classes == classes.classes
    assert len(set(names(found))) == len(found) and set(names(found)) <= set(names(classes))
    assert names(found) == sorted(names(found)), "in the order of the source"
    for index in range(len(found)):
        sample = found[index]
        assert (sample.index, sample.target) == (index, found.targets[index])
        assert found.name(index).startswith("abc"[sample.target])


def test_the_seed_draws_them_once_and_for_all(classes: FolderSource) -> None:
    half, again = drawn(classes, fraction=0.5), drawn(classes, fraction=0.5)
    assert names(half) == names(again) and half.fingerprint() == again.fingerprint()
    other = drawn(classes, 1, fraction=0.5)
    assert names(other) != names(half) and other.fingerprint() != half.fingerprint()
    assert half.fingerprint() != classes.fingerprint()
    assert set(names(drawn(classes, fraction=0.25))) < set(names(half)), "the smaller, the fewer"


def test_images_without_classes_are_one(tmp_path: Path) -> None:
    source = FolderSource(write_images(tmp_path / "flat", 10))
    found = drawn(source, fraction=0.3)
    assert len(found) == 3 and found.targets.tolist() == [-1] * 3
    with pytest.raises(
        ValueError, match=r"data\.imbalance 5 leaves .* these images have no classes"
    ):
        drawn(source, imbalance=5.0)


def test_it_says_what_it_is(classes: FolderSource) -> None:
    said = drawn(classes, 7, fraction=0.5, imbalance=4.0).about()
    assert said.what.startswith("10 of the 36 images of folder ")
    assert said.what.endswith("(data.fraction 0.5, data.imbalance 4, seed 7)")
    assert said.labels == classes.about().labels
    assert drawn(classes, fraction=0.5).about().what.endswith("(data.fraction 0.5, seed 0)")


def test_it_is_a_source_like_any_other(classes: FolderSource) -> None:
    learn, test = hold_out(drawn(classes, fraction=0.5))
    assert len(learn) + len(test) == 18


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"fraction": 1.1}, {"imbalance": 0.5}])
def test_shares_are_shares(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        DataConfig(**options)  # type: ignore[arg-type]


def test_a_run_says_it_aloud_and_resumes_on_the_same_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    data = str(write_classes(tmp_path / "data", a=10, b=10))
    options = {
        **{"backbone.dim": 8, "backbone.depth": 1, "backbone.heads": 2, "method.decoder.dim": 8},
        **{"method.decoder.heads": 2, "train.duration": "2st", "train.batch": 4},
        **{"watch.images": 0, "data.workers": 0, "train.device": "cpu"},
        **{"data.fraction": 0.5, "data.imbalance": 5.0},
    }
    leanvit.pretrain("mae_laptop", data=data, out=tmp_path / "run", options=options)
    said = capsys.readouterr().err
    assert "Trains on 6 of the 20 images of folder" in said
    assert "(data.fraction 0.5, data.imbalance 5, seed 0)." in said
    record = json.loads((tmp_path / "run" / "resolved.json").read_text())
    assert record["images"]["count"] == 6
    leanvit.pretrain(data=data, out=tmp_path / "run", resume=True, quiet=True)
    assert "Trains on" not in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"data\.fraction was 0\.5, now 0\.9"):
        leanvit.pretrain(
            data=data, out=tmp_path / "run", resume=True, options={"data.fraction": 0.9}
        )
    report = leanvit.check("mae_laptop", data=data, out=tmp_path / "check", options=options)
    assert report.images == 6 and "6 of the 20 images" in report.source


# Several sources in one


def test_joined_sources_are_one_after_the_other(tmp_path: Path) -> None:
    first = FolderSource(write_classes(tmp_path / "first", a=2, b=1))
    second = FolderSource(write_classes(tmp_path / "second", b=2), first.classes)
    both = Joined([first, second])
    assert len(both) == 5 and both.targets.tolist() == [0, 0, 1, 1, 1]
    assert both.name(2) == "b/000.png" and both.name(4) == "b/001.png"
    assert [both[i].index for i in (*range(5), -1)] == [0, 1, 2, 3, 4, 4]
    assert [both[i].image for i in range(5)] == [
        *(first[i].image for i in range(3)),
        *(second[i].image for i in range(2)),
    ]
    assert both[3].target == 1
    assert both.fingerprint() != Joined([second, first]).fingerprint()
    assert both.validation() is None
    assert "first" in both.about().what and "second" in both.about().what
    with pytest.raises(IndexError):
        both[5]
    other = FolderSource(tmp_path / "second")
    with pytest.raises(ValueError, match="classes differ"):
        Joined([first, other])
