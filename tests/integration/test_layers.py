"""A probe of every block: each row is what that block alone would get."""

import gc
import weakref
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import leanvit
from leanvit.backbones.base import Ask, Backbone
from leanvit.config import BackboneConfig
from leanvit.config.evaluation import LayersConfig
from leanvit.core.files import save_tensors
from leanvit.data.sources import FolderSource, Source
from leanvit.evaluation.features import Described, Description
from leanvit.evaluation.grid import block_dims
from leanvit.evaluation.inputs import Seen
from leanvit.evaluation.knn import knn_accuracy
from leanvit.evaluation.result import Result
from leanvit.weights.file import header
from leanvit.weights.loading import load_backbone
from tests.tables import LINEAR, linear, seen_by, write_run
from tests.tiny import FAMILIES, VIT, build, noise

pytestmark = pytest.mark.usefixtures("one_thread")


def layers(model: str | Path, data: Path, **options: Any) -> Result:
    options = {**LINEAR, **options}
    return leanvit.evaluate("layers", model, data=str(data), options=options, quiet=True)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_blocks_have_the_channels_of_their_stage(config: BackboneConfig) -> None:
    backbone = build(config)
    asked = Ask(hidden=tuple(range(backbone.depth)))
    (found,) = backbone([noise(1, 3, 32, 32)], asked)
    assert block_dims(backbone) == [tokens.grid.shape[-1] for tokens in found.hidden]


def test_every_block_has_a_row(data: Path, tmp_path: Path) -> None:
    result = layers(write_run(tmp_path / "run"), data)
    assert [(row["features"], row["block"]) for row in result.rows] == [
        (name, block) for name in ("trained (teacher)", "trained (student)") for block in range(4)
    ]
    heads = ["protocol", "features", "block", "top1", "top5", "rate", "held-out top1"]
    assert all(list(row) == heads for row in result.rows)
    assert result.facts["probe"] == "linear" and result.facts["image_size"] == 32


def test_the_network_as_it_began_stands_beside(model: Path, data: Path) -> None:
    rows = layers(model, data, baselines=True).rows
    assert [row["features"] for row in rows] == ["untrained"] * 4 + ["trained"] * 4
    (fresh,) = [
        row
        for row in linear(model, data, blocks=(1,), baselines=True).rows
        if row["features"] == "untrained"
    ]
    assert rows[3]["top1"] == fresh["top1"]
    assert list(rows[4:]) == list(layers(model, data).rows)


def test_the_last_block_is_the_probe_of_one_block(model: Path, data: Path) -> None:
    """And not that of another."""
    (last,) = linear(model, data, blocks=(1,)).rows
    rows = [dict(row) for row in layers(model, data).rows]
    assert {**rows[-1], "blocks": 1, "pooling": "view"} == {**last, "block": 3}
    assert any(row["held-out top1"] != last["held-out top1"] for row in rows[:-1])


def test_one_network_is_held_at_a_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of all images are much to hold: 0.46 GB of a ViT-Ti and 50,000 images."""
    held: list[weakref.ref[torch.Tensor]] = []
    describe = Seen.describe

    def noted(self: Seen, source: Source, text: str, ways: Mapping[str, Description]) -> Described:
        if text == "images to learn from":
            gc.collect()
            assert not [rows for rows in held if rows() is not None], "of the network before"
        found = describe(self, source, text, ways)
        held.extend(weakref.ref(rows) for rows in found.rows.values())
        return found

    monkeypatch.setattr(Seen, "describe", noted)
    layers(write_run(tmp_path / "run"), data, probe="knn", protocol="both")
    assert len(held) == 2 * 2 * 2, "protocols, networks, images to learn from and to test on"


@torch.no_grad()
def pooled(backbone: Backbone, images: torch.Tensor, block: int) -> torch.Tensor:
    (found,) = backbone([images], Ask(hidden=(block,)))
    tokens = found.hidden[0]
    assert tokens.prefix is not None
    return backbone.norm(tokens.prefix)[:, 0]


def test_neighbours_are_those_of_the_block(data: Path, tmp_path: Path) -> None:
    """Of a plain ViT, whose blocks all pass through the final norm."""
    network = build(replace(VIT, depth=2))
    path = tmp_path / "vit.safetensors"
    save_tensors(network.state_dict(), path, header(network, {}))
    result = layers(path, data, probe="knn", k=3)
    backbone, learn = load_backbone(path), FolderSource(data)
    test = learn.validation()
    assert test is not None
    for row in result.rows:
        rows = [pooled(backbone, seen_by(backbone, part), row["block"]) for part in (learn, test)]
        targets = [torch.from_numpy(part.targets) for part in (learn, test)]
        found = knn_accuracy(rows[0], targets[0], rows[1], targets[1], ks=(3,))
        assert (row["top1"], row["top5"]) == found[3]
    assert len(result.rows) == 2 and "rate" not in result.rows[0]


BASE: Mapping[str, Any] = {"rates": (0.3, 3.0)}
NEAR: Mapping[str, Any] = {"probe": "knn"}
CHANGES: Mapping[str, tuple[object, Mapping[str, Any]]] = {
    "image_size": (24, NEAR),
    "crop": (0.5, NEAR),
    "val": ("train", NEAR),
    "protocol": ("grey", NEAR),
    "rates": ((0.01,), {}),
    "epochs": (2, {}),
    "probe_batch": (3, {}),
    "held_out": (0.5, {}),
    "baselines": (True, {}),
    "seed": (1, {}),
    "probe": ("knn", {}),
    "k": (2, NEAR),
}
"""Option -> (another value, what else must be set for it to matter)."""
ELSEWHERE = {
    *("data", "batch", "workers", "device", "max_unreadable"),
    *("results", "keep_features"),
}
"""Options that change no figure; `knn` and `linear` test them."""


def test_the_table_names_every_option() -> None:
    assert set(CHANGES) == {field.name for field in fields(LayersConfig)} - ELSEWHERE


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_found(name: str, model: Path, data: Path) -> None:
    value, base = CHANGES[name]
    value = str(data / "train") if name == "val" else value
    base = {**BASE, **base}
    assert layers(model, data, **{**base, name: value}).rows != layers(model, data, **base).rows


def test_what_cannot_be_done_is_refused(model: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        layers(model, data, k=0)
    with pytest.raises(ValueError, match="Unknown option 'blocks'"):
        layers(model, data, blocks=2)
