"""Images, a network and evaluations that tests of evaluations share."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import leanvit
from leanvit.backbones.base import Backbone
from leanvit.config import BackboneConfig
from leanvit.core.files import save_tensors
from leanvit.data.decode import to_pixels
from leanvit.data.images import PAPER_CROP, middle
from leanvit.data.sources import Source
from leanvit.evaluation.features import standardize
from leanvit.evaluation.result import Result
from leanvit.weights.file import FILE, STUDENT, header
from tests.tiny import SWIN, build

SEED = 5
CLASSES = ("ants", "bees", "crows")
PLAIN: Mapping[str, Any] = {"workers": 0, "device": "cpu", "keep_features": False}
KNN: Mapping[str, Any] = {**PLAIN, "k": (1, 3)}
LINEAR: Mapping[str, Any] = {
    **PLAIN,
    "epochs": 5,
    "probe_batch": 8,
    "held_out": 0.25,
}


def write_split(folder: Path) -> Path:
    """Write three classes that are hard to tell apart, split in 45 and 18 images."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 15), ("val", 6)):
        for channel, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                coarse = draw.integers(0, 200, (5, 5, 3), dtype=np.uint8)
                coarse[..., channel] += 25
                image = Image.fromarray(coarse).resize((40 + number, 40), Image.Resampling.BICUBIC)
                image.save(folder / split / name / f"{number:03}.png")
    return folder


def write_colored(folder: Path) -> Path:
    """Write three classes of 12 images that differ in color and in nothing else."""
    draw = np.random.default_rng(0)
    for channel, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number in range(12):
            pixels = draw.integers(0, 100, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


def write_network(path: Path, *, norm: float = 1.0, config: BackboneConfig = SWIN) -> Path:
    """Write a backbone of four blocks, whose input has 32 pixels, to a file.

    norm: factor of the final norm's scale, which makes it another network.
    """
    backbone = build(config)
    assert isinstance(backbone.norm, nn.LayerNorm)
    backbone.norm.weight.data.mul_(torch.linspace(1, norm, len(backbone.norm.weight)))
    facts = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "seed": SEED}
    save_tensors(backbone.state_dict(), path, header(backbone, facts))
    return path


def write_run(folder: Path) -> Path:
    """Write the networks that the folder of a run holds, a teacher and a student."""
    folder.mkdir()
    write_network(folder / FILE)
    write_network(folder / STUDENT, norm=5.0)
    return folder


def break_images(folder: Path) -> Path:
    """Make 3 of the 45 images to learn from unreadable, and 1 of the 18 to test on."""
    for name in ("train/ants/003.png", "train/ants/004.png", "train/crows/000.png"):
        (folder / name).write_bytes(b"no photograph")
    (folder / "val" / "bees" / "001.png").write_bytes(b"")
    return folder


def knn(model: str | Path, data: Path, **options: Any) -> Result:
    """Evaluate with k = 1 and 3."""
    return leanvit.evaluate("knn", model, data=str(data), options={**KNN, **options}, quiet=True)


def linear(model: str | Path, data: Path, **options: Any) -> Result:
    """Evaluate with a short probe."""
    options = {**LINEAR, **options}
    return leanvit.evaluate("linear", model, data=str(data), options=options, quiet=True)


def seen_by(
    backbone: Backbone, source: Source, protocol: str = "color", crop: float = PAPER_CROP
) -> Tensor:
    """Return a network's input, one image after the other."""
    inputs = []
    for index in range(len(source)):
        image = middle(to_pixels(source[index].image), 32, crop)[None]
        if protocol == "grey":
            inputs.append(standardize(image))
        else:
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (backbone.mean, backbone.std))
            inputs.append((image - mean) / std)
    return torch.cat(inputs)


def write_maps(root: Path, *, test: bool = True) -> Path:
    """Write images of discs before a sky with a left edge, of two sizes; a row is unlabelled."""
    for split, count in (("train", 9), ("val", 4), ("test", 3))[: 3 if test else 2]:
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            height, width = (40, 48) if number % 2 else (36, 30)
            drawn = np.random.default_rng((number, len(split)))
            y, x = np.mgrid[:height, :width]
            middle = drawn.integers(10, 26, 2)
            disc = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < 81
            mapped = np.where(disc, 1, 0).astype(np.uint8)
            mapped[:, :3], mapped[0] = 3, 2
            pixels = drawn.integers(0, 60, (height, width, 3)).astype(np.uint8)
            pixels[disc] += np.array([150, 90, 0], dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{number}.png")
            Image.fromarray(mapped).save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("sky\ndisc\nunlabelled\nedge\n")
    return root


def write_discs(root: Path, *, outlines: bool = True) -> Path:
    """Write images of a disc and a square each, in COCO's layout, and one without any."""
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", 9), ("val", 4), ("test", 3)):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            drawn = np.random.default_rng((number, len(split)))
            pixels = drawn.integers(0, 60, (48, 64, 3)).astype(np.uint8)
            y, x = np.mgrid[:48, :64]
            for label, left in ((1, 0), (2, 32)) if number < count - 1 else ():
                row, column = drawn.integers(12, 36), left + drawn.integers(12, 20)
                if label == 1:
                    inside = (y - row) ** 2 + (x - column) ** 2 < 100
                else:
                    inside = (abs(y - row) < 10) & (abs(x - column) < 10)
                pixels[inside] += np.array([150, 90, 0], dtype=np.uint8)
                lines, columns = np.nonzero(inside)
                box = [int(v) for v in (columns.min(), lines.min(), np.ptp(columns) + 1)]
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [*box, int(np.ptp(lines)) + 1],
                }
                if outlines:
                    flat = inside.T.ravel().astype(int)
                    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [flat[-1]]])))
                    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
                    entry["segmentation"] = {"size": [48, 64], "counts": counts}
                annotations.append(entry)
            images.append({"id": number, "file_name": f"{number}.png"})
            Image.fromarray(pixels).save(root / split / f"{number}.png")
        categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
        found = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(found))
    return root
