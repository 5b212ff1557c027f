"""A look at the features: the figures are those of `evaluate`, and the training feels nothing."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import leanvit
from leanvit.analysis.rank import effective_rank
from leanvit.analysis.watch import Watch
from leanvit.config import BackboneConfig, RunConfig, WatchConfig, compose, resolve
from leanvit.data.sources import About, FolderSource, Sample, Source, open_source
from leanvit.run import Run
from leanvit.train.facts import gather_facts
from tests.tiny import (
    FAMILIES,
    SWIN,
    build,
    draw_nothing,
    run_config,
    write_classes,
    write_images,
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    draw_nothing(monkeypatch)


def watch_of(source: Source, **options: object) -> Watch:
    config = WatchConfig(**options)  # type: ignore[arg-type]
    return Watch(build(SWIN), source, config, batch=64, workers=0)


def run_on(folder: Path, out: Path, **options: object) -> RunConfig:
    named = {f"watch.{name}": value for name, value in options.items()}
    config = compose(run_config(), data=str(folder), options={"data.workers": 0, **named})
    leanvit.pretrain(config, out=out, quiet=True)
    return config


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@dataclass
class Counted:
    """A source that counts what is read of it."""

    source: FolderSource
    read: int = 0

    def __post_init__(self) -> None:
        self.classes, self.targets = self.source.classes, self.source.targets

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        self.read += 1
        return self.source[index]

    def name(self, index: int) -> str:
        """Return the image's name."""
        return self.source.name(index)

    def fingerprint(self) -> str:
        """Return the folder's own."""
        return self.source.fingerprint()

    def validation(self) -> Source | None:
        """Return the folder's own."""
        return self.source.validation()

    def about(self) -> About:
        """Return the folder's own."""
        return self.source.about()


# Figures


@pytest.mark.parametrize("where", ["held out", "beside train", "named"])
def test_the_figures_are_those_of_evaluate(where: str, tmp_path: Path) -> None:
    """On the teacher that the run saves, seen through the run's own mean and deviation."""
    data, val = tmp_path / "data", ""
    learn = data / "train" if where == "beside train" else data
    write_classes(learn, cats=9, dogs=11)
    if where != "held out":
        val = str(data / "val" if where == "beside train" else tmp_path / "others")
        for number, name in enumerate(("cats", "dogs")):
            write_images(Path(val) / name, 8, seed=5 + number)
    odd = {"data.mean": (0.1, 0.6, 0.3), "data.std": (0.5, 0.05, 0.9)}
    config = compose(run_config(), data=str(data), options={"data.workers": 0, **odd})
    named = val if where == "named" else ""
    config = replace(config, watch=WatchConfig(k=3, val=named))
    backbone = leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    last = rows(tmp_path / "run")[-1]
    options = {"k": (3,), "baselines": False, "workers": 0, "val": named}
    table = leanvit.evaluate("knn", backbone, data=str(data), options=options, quiet=True)
    assert last["knn"] == table.rows[0]["k=3"]
    if where == "named":  # then all of the folder is learned from, as embed sees it
        out = tmp_path / "features.npz"
        leanvit.embed(backbone, out=out, data=str(data), options={"workers": 0}, quiet=True)
        features = torch.from_numpy(np.load(out)["features"])
        assert last["effective_rank"] == pytest.approx(effective_rank(features), rel=1e-4)


def test_without_classes_there_is_a_rank_alone(tmp_path: Path) -> None:
    found = watch_of(FolderSource(write_images(tmp_path, 8)))()
    assert list(found) == ["effective_rank"]
    assert 1 <= found["effective_rank"] <= 8


@pytest.mark.parametrize("counts", [{"cats": 8}, {"cats": 8, "dogs": 1}], ids=["one", "single"])
def test_classes_that_cannot_be_tested_are_left_out(counts: dict[str, int], tmp_path: Path) -> None:
    source = FolderSource(write_classes(tmp_path, **counts))
    assert list(watch_of(source)()) == ["effective_rank"]


def test_images_to_test_on_need_classes(tmp_path: Path) -> None:
    plain = FolderSource(write_images(tmp_path / "plain", 4))
    named = FolderSource(write_classes(tmp_path / "named", cats=4, dogs=4))
    with pytest.raises(ValueError, match="needs classes"):
        watch_of(plain, val=str(tmp_path / "named"))
    with pytest.raises(ValueError, match="does not exist"):
        watch_of(named, val=str(tmp_path / "none"))
    write_classes(tmp_path / "birds", birds=2)
    with pytest.raises(ValueError, match="birds"):
        watch_of(named, val=str(tmp_path / "birds"))


def test_a_look_sees_at_most_so_many_images(tmp_path: Path) -> None:
    source = FolderSource(write_classes(tmp_path, cats=15, dogs=15))
    watch = watch_of(source, images=5)
    assert watch.test is not None
    assert (len(watch.bank), len(watch.test)) == (5, 5)
    again = watch_of(source, images=5)
    names = [[w.bank.name(i) for i in range(5)] for w in (watch, again)]
    assert names[0] == names[1], "always the same ones, so that looks can be compared"
    assert watch() == watch()


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    folder = write_classes(tmp_path, cats=8, dogs=8)
    for number in (1, 4):
        (folder / "cats" / f"{number:03d}.png").write_bytes(b"broken")
    found = watch_of(FolderSource(folder))()
    assert 0 <= found["knn"] <= 100 and found["effective_rank"] > 1


# What it costs


def test_zero_images_are_never_looked_at(tmp_path: Path) -> None:
    source = Counted(FolderSource(write_classes(tmp_path, cats=4, dogs=4)))
    watch = watch_of(source, images=0)
    assert watch() == {} and source.read == 0
    looking = watch_of(source, images=8)
    assert looking() and source.read > 0


def test_a_run_without_looks_reads_nothing_but_its_batches(tmp_path: Path) -> None:
    source = Counted(FolderSource(write_classes(tmp_path / "images", cats=4, dogs=4)))
    options = {"data.workers": 0, "watch.images": 0, "train.duration": "2st"}
    config = compose(run_config(), data=str(tmp_path / "images"), options=options)
    run = Run(resolve(config, gather_facts(source)), source, tmp_path / "run", quiet=True)
    assert source.read == 0
    assert run.looks.look() == {} and source.read == 0
    (tmp_path / "run").mkdir()
    run.train()
    assert source.read == 2 * 4 + 1, "the last one is for the picture of matches"
    assert not {"knn", "effective_rank", "correct_matches"} & set().union(*rows(tmp_path / "run"))


def test_looking_changes_no_number_of_the_training(tmp_path: Path) -> None:
    images = write_classes(tmp_path / "images", cats=7, dogs=7)
    seldom, often, never = (tmp_path / name for name in ("seldom", "often", "never"))
    run_on(images, often, every="1st")
    run_on(images, seldom, every="5st")
    run_on(images, never, images=0)
    looks = {"knn", "effective_rank", "correct_matches"}
    machine = {"images_per_s", "data_wait"}
    plain = [
        [{k: v for k, v in row.items() if k not in looks | machine} for row in rows(out)]
        for out in (often, seldom, never)
    ]
    assert plain[0] == plain[1] == plain[2]
    assert [sum("knn" in row for row in rows(out)) for out in (often, seldom, never)] == [11, 3, 0]
    for name in ("checkpoints/step-00000010/state.safetensors", "student.safetensors"):
        assert (often / name).read_bytes() == (never / name).read_bytes() != b""


@pytest.mark.parametrize("backbone", FAMILIES.values(), ids=FAMILIES)
def test_looking_leaves_the_network_as_it_was(backbone: BackboneConfig, tmp_path: Path) -> None:
    images = write_classes(tmp_path / "images", cats=4, dogs=4)
    config = compose(run_config(), data=str(images), options={"data.workers": 0})
    config = replace(config, backbone=backbone)
    source = open_source(str(images))
    run = Run(resolve(config, gather_facts(source)), source, tmp_path / "run", quiet=True)
    before = {name: value.clone() for name, value in run.state.tensors().items()}
    state = torch.get_rng_state()
    assert run.looks.look().keys() == {"knn", "effective_rank", "correct_matches"}
    after = run.state.tensors()
    assert all(after[name].equal(value) for name, value in before.items())
    assert all(module.training for module in run.state.method.modules())
    assert not any(p.grad is not None for p in run.state.method.parameters())
    assert state.equal(torch.get_rng_state())
