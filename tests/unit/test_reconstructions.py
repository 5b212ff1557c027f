"""Pictures of what masked methods predict: their columns, their masks, and who draws them."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import leanvit
from leanvit.analysis.reconstructions import GAP, HEADING, HIDDEN, IMAGES, Reconstructions
from leanvit.config import BackboneConfig, MethodConfig, compose, steps
from leanvit.data.images import load_images, middle
from leanvit.data.sources import FolderSource
from leanvit.losses.masked import pixel_targets
from leanvit.methods.base import Method
from leanvit.methods.catalogue import build_method
from leanvit.methods.mae import MAE
from leanvit.methods.simmim import SimMIM
from tests.tiny import (
    SWIN,
    VIT,
    dino,
    draw_nothing,
    mae,
    mocov3,
    noise,
    run_config,
    simmim,
    supervised,
    write_images,
)

MEAN, STD = (0.1, 0.6, 0.3), (0.5, 0.05, 0.9)
SIZE, ZOOM = 32, 3
MASKED: dict[str, tuple[MethodConfig, BackboneConfig]] = {
    "mae": (mae(), VIT),
    "mae of pixels": (mae(normalize=False), SWIN),
    "simmim": (simmim(), SWIN),
    "simmim on a ViT": (simmim(), VIT),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(method: Method, folder: Path, count: int = 3) -> tuple[Tensor, NDArray[np.uint8]]:
    """Return the images [B, 3, S, S] and what is drawn of them [3, B, S, S, 3]."""
    images = write_images(folder / "images", count)
    Reconstructions(method, FolderSource(images), folder / "x.png", MEAN, STD).draw()
    return torch.stack([opened(path) for path in sorted(images.iterdir())]), cells(folder / "x.png")


def opened(path: Path) -> Tensor:
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    return middle(pixels, SIZE, 1.0)


def cells(path: Path) -> NDArray[np.uint8]:
    """Cut a picture into its columns and rows, each reduced to the pixels that it is made of."""
    pixels = np.asarray(Image.open(path))[2 * HEADING :]
    step = SIZE * ZOOM + GAP
    rows, columns = (pixels.shape[0] + GAP) // step, (pixels.shape[1] + GAP) // step
    assert pixels.shape[:2] == (rows * step - GAP, columns * step - GAP)
    found = np.empty((columns, rows, SIZE, SIZE, 3), np.uint8)
    for column, row in product(range(columns), range(rows)):
        cell = pixels[row * step :, column * step :][: SIZE * ZOOM, : SIZE * ZOOM]
        found[column, row] = cell[::ZOOM, ::ZOOM]
    return found


@pytest.mark.parametrize("name", MASKED)
def test_columns_are_original_seen_and_predicted(name: str, tmp_path: Path) -> None:
    method = build_method(*MASKED[name], seed=0)
    images, found = drawn(method, tmp_path)
    original, seen, predicted = found
    exact = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(original, exact), "pixels are those of the image, not normalised"
    hidden = (seen != original).any(-1)
    assert (seen[hidden] == HIDDEN).all()
    assert np.array_equal(predicted[~hidden], original[~hidden])
    assert (predicted[hidden] != original[hidden]).any()
    share = {"mae": 0.75, "mae of pixels": 0.75}.get(name, 10 / 16)
    assert hidden.mean() == pytest.approx(share, abs=0.01)
    side = 8 if "simmim" in name else 4
    blocks = hidden.reshape(3, SIZE // side, side, SIZE // side, side).mean((2, 4))
    assert (np.abs(blocks - 0.5) > 0.4).all(), "whole squares are hidden"


@pytest.mark.parametrize("name", MASKED)
def test_a_network_that_knows_all_predicts_the_image(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says becomes pixels at the right place, in the right unit."""
    method = build_method(*MASKED[name], seed=0)

    def knowing(images: Tensor, *_: object) -> Tensor:
        if isinstance(method, MAE):
            return pixel_targets(images, method.patch, normalize=method.config.normalize)
        return images

    monkeypatch.setattr(method, "predict", knowing)
    _, (original, seen, predicted) = drawn(method, tmp_path)
    assert not np.array_equal(seen, original)
    assert np.abs(predicted.astype(int) - original.astype(int)).max() <= 1


def test_what_is_drawn_is_what_the_loss_compares() -> None:
    method = build_method(simmim(), SWIN, seed=0)
    assert isinstance(method, SimMIM)
    images, numbers = noise(2, 3, SIZE, SIZE), noise(2, 16, seed=1)
    hidden, predicted = method.reconstruct(images, numbers)
    expected = (predicted - images).abs().mean(1)[hidden].mean()
    torch.testing.assert_close(method.learn(images, numbers).total.detach(), expected)


@pytest.mark.parametrize("config", [dino(), mocov3(), supervised()], ids=lambda c: c.kind)
def test_other_methods_draw_nothing(config: MethodConfig, tmp_path: Path) -> None:
    source = FolderSource(write_images(tmp_path / "images", 2))
    path = tmp_path / "x.png"
    Reconstructions(build_method(config, VIT, seed=0), source, path, MEAN, STD).draw()
    assert not path.exists()


def test_without_a_readable_image_nothing_is_drawn(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    for path in images.iterdir():
        path.write_bytes(b"broken")
    method, path = build_method(mae(), VIT, seed=0), tmp_path / "x.png"
    Reconstructions(method, FolderSource(images), path, MEAN, STD).draw()
    assert not path.exists()


def test_a_run_draws_at_every_look_and_reads_its_images_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    images = write_images(tmp_path / "images", IMAGES + 1)
    read: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        read.append(len(arguments[0]))
        return load_images(*arguments, **named)

    monkeypatch.setattr("leanvit.analysis.reconstructions.load_images", counted)
    pictures = []
    draw = Reconstructions.draw

    def noted(self: Reconstructions) -> None:
        draw(self)
        pictures.append(cells(self.path))

    monkeypatch.setattr(Reconstructions, "draw", noted)
    config = replace(run_config(duration=steps(2)), method=simmim())
    options = {"data.workers": 0, "watch.images": 0, "watch.every": "1st"}
    config = compose(config, data=str(images), options=options)
    leanvit.pretrain(config, out=tmp_path / "run", quiet=True)
    assert read == [IMAGES] and len(pictures) == 3
    first, _, last = pictures
    assert np.array_equal(first[:2], last[:2]), "the same images, the same hidden squares"
    assert not np.array_equal(first[2], last[2]), "the network has moved"
