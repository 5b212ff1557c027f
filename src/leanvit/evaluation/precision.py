"""COCO's average precision of boxes and masks, by pycocotools.

Letters: n objects of an image, h and w its rows and columns.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from leanvit.core.packages import missing
from leanvit.data.batch import Objects

COLUMNS = ("ap", "ap50", "ap75", "small", "medium", "large")
"""Mean over overlaps of 0.5 to 0.95, at 0.5, at 0.75, and by size: 32^2 and 96^2 pixels divide."""
MOST = 100
"""Objects of an image that count, those with the highest scores."""


def require_pycocotools() -> None:
    """Raise ValueError if pycocotools cannot be used."""
    if why := missing("pycocotools") or missing("pycocotools.cocoeval"):
        raise ValueError(
            f"Average precision needs pycocotools: {why}. pip install 'leanvit[detect]'"
        )


@dataclass(frozen=True, slots=True)
class Told:
    """What is said to be in an image of h rows and w columns."""

    boxes: Tensor
    """[n, 4] left, top, right, bottom in pixels."""
    labels: Tensor
    """[n] class, from 0."""
    scores: Tensor
    """[n]"""
    masks: Tensor | None = None
    """[n, h, w] uint8, 1 where the object is."""


class Precision:
    """Collects what is there and what is told, image after image."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._images: list[dict[str, Any]] = []
        self._there: list[dict[str, Any]] = []
        self._told: list[dict[str, Any]] = []
        self._masks = True

    def add(self, told: Told, there: Objects, height: int, width: int) -> None:
        """Count an image."""
        number = len(self._images) + 1
        self._images.append({"id": number, "height": height, "width": width})
        self._masks &= told.masks is not None and there.masks is not None
        for place in range(len(there.labels)):
            entry = self._entry(number, there, place)
            said = 0.0 if there.areas is None else float(there.areas[place])
            self._there.append(
                {
                    **entry,
                    "iscrowd": int(there.crowd[place]),
                    "area": said or entry["drawn"] or entry["area"],
                }
            )
        best = told.scores.argsort(descending=True, stable=True)[:MOST]
        for place in best.tolist():
            entry = self._entry(number, told, place)
            self._told.append({**entry, "score": float(told.scores[place])})

    def _entry(self, image: int, objects: Told | Objects, place: int) -> dict[str, Any]:
        left, top, right, bottom = objects.boxes[place].tolist()
        entry = {
            "image_id": image,
            "category_id": int(objects.labels[place]) + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "drawn": 0.0,
            "id": len(self._told if isinstance(objects, Told) else self._there) + 1,
        }
        if objects.masks is not None:
            from pycocotools import mask as coco

            drawn = np.asfortranarray(objects.masks[place].numpy().astype(np.uint8))
            entry["segmentation"] = coco.encode(drawn)
            entry["drawn"] = float(drawn.sum())
        return entry

    def scores(self) -> dict[str, float]:
        """Return average precisions in percent, of boxes and, where all have them, of masks.

        A size of which there is no object is left at -1, as COCO does. Raises ValueError if there
        is no object at all.
        """
        found = self._evaluated("bbox")
        scores = {name: _percent(value) for name, value in zip(COLUMNS, found.stats, strict=False)}
        if self._masks:
            masks = self._evaluated("segm")
            scores |= {
                f"mask {name}": _percent(value)
                for name, value in zip(COLUMNS[:3], masks.stats, strict=False)
            }
        return scores

    def of_classes(self) -> dict[str, float]:
        """Return the average precision of the boxes of each class, in percent."""
        precision = self._evaluated("bbox").eval["precision"][..., 0, -1]  # [overlap, recall, C]
        return {
            name: _percent(values[values > -1].mean() if (values > -1).any() else -1)
            for name, values in zip(self.classes, precision.transpose(2, 0, 1), strict=True)
        }

    def _evaluated(self, kind: str) -> Any:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if not self._there:
            raise ValueError("There is no object in the images to test on.")
        categories = [{"id": n + 1, "name": name} for n, name in enumerate(self.classes)]
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its steps
            truth = COCO()
            truth.dataset = {
                "images": self._images,
                "annotations": [dict(one) for one in self._there],
                "categories": categories,
            }
            truth.createIndex()
            told = COCO()
            told.dataset = {
                "images": self._images,
                "annotations": [
                    {**one, "iscrowd": 0, "area": one["area" if kind == "bbox" else "drawn"]}
                    for one in self._told
                ],
                "categories": categories,
            }
            told.createIndex()
            found = COCOeval(truth, told, kind)
            found.evaluate()
            found.accumulate()
            found.summarize()
        return found


def _percent(value: float) -> float:
    return 100 * float(value) if value >= 0 else -1.0
