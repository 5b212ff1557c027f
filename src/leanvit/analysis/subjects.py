"""Which networks are analysed, and how the same images reach each of them.

Letters: B images, S side in pixels.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from leanvit.backbones.base import PLAIN, Ask, Backbone, Features, evaluating
from leanvit.config.analysis import AnalysisConfig
from leanvit.core import random
from leanvit.core.console import track
from leanvit.data.batch import Unreadable
from leanvit.data.decode import read_image
from leanvit.data.images import Change, ImageBatch, load_images
from leanvit.data.sources import Source, Subset, at_most, open_source
from leanvit.evaluation.inputs import Seen, device_of, require_readable, see
from leanvit.evaluation.models import before_training, open_networks
from leanvit.weights.card import last_part

FEW = 100
"""Images of which one that cannot be read is more than the usual share that may be missing."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A network that is looked into."""

    name: str
    """What it is called in tables and pictures; no two have the same."""
    model: str
    """What was named on the command line."""
    backbone: Backbone
    size: int
    """S that it sees."""
    trained: bool

    @torch.no_grad()
    def says(self, pixels: Tensor, ask: Ask = PLAIN) -> Features:
        """Return what it says of images [B, 3, S', S'] in [0, 1], brought to its size."""
        with evaluating(self.backbone):
            (features,) = self.backbone([self.input(pixels)], ask)
        return features

    @torch.no_grad()
    def embeds(self, pixels: Tensor) -> Tensor | None:
        """Return the regions [B, h, w, D] that enter the first block; None if they are unknown."""
        if type(self.backbone).embed is Backbone.embed:
            return None
        with evaluating(self.backbone):
            return self.backbone.embed([self.input(pixels)], PLAIN).tokens()[0].grid

    def input(self, pixels: Tensor) -> Tensor:
        """Return images [B, 3, S', S'] in [0, 1] as it takes them: [B, 3, S, S], normalised."""
        device = next(self.backbone.parameters()).device
        images = pixels.to(device)
        if images.shape[-1] != self.size:
            size = [self.size, self.size]
            images = tv.resize(images, size, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        mean, std = (
            torch.tensor(values, device=device).view(-1, 1, 1)
            for values in (self.backbone.mean, self.backbone.std)
        )
        return (images - mean) / std


@dataclass(frozen=True, slots=True)
class Scene:
    """What an analysis looks at: networks and images."""

    subjects: Sequence[Subject]
    source: Source
    """The images, no more than were asked for."""
    whole: int
    """How many there are in all."""
    seen: Seen

    def batches(self, text: str, change: Change | None = None) -> Iterator[ImageBatch]:
        """Yield the images that can be read, in order, under a progress bar.

        change: what is made of each. Raises ValueError at the end if too many could not be read.
        """
        seen, bad = self.seen, list[Unreadable]()
        count = -(-len(self.source) // seen.config.batch)
        images = load_images(
            self.source,
            size=seen.size,
            crop=seen.crop,
            batch=seen.config.batch,
            workers=seen.workers,
            change=change,
        )
        with closing(track(images, text, count, quiet=seen.quiet)) as coming:
            for found in coming:
                bad += found.unreadable
                if len(found.index):
                    yield found
        most = seen.config.max_unreadable
        seen.notes.extend(require_readable(bad, len(self.source), most, seen.notes))

    def few(self, count: int) -> "Scene":
        """Return the same networks and a few of the images, drawn once and for all.

        In the place of one that cannot be read stands the next one drawn: of a few, one would be
        more than the share that may be missing. Raises ValueError if none can be read.
        """
        chosen: list[int] = []
        for index in random.permutation(0, "few", count=len(self.source)).tolist():
            if len(chosen) < count and not isinstance(read_image(self.source, index), Unreadable):
                chosen.append(index)
            if len(chosen) == count:
                break
        if not chosen:
            raise ValueError(f"None of the {len(self.source)} images could be read.")
        return replace(self, source=Subset(self.source, sorted(chosen)))

    def pixels(self) -> Tensor:
        """Return all images that can be read [B, 3, S, S] in [0, 1]; for a few of them."""
        return torch.cat([batch.pixels for batch in self.batches("images")])

    def facts(self) -> dict[str, object]:
        """Return what was looked at, for the result."""
        return {
            "models": [subject.name for subject in self.subjects],
            "images": len(self.source),
            "of": self.whole,
            "sizes": [subject.size for subject in self.subjects],
            "crop": self.seen.crop,
        }


def open_scene(config: AnalysisConfig, models: Sequence[str | Path], quiet: bool) -> Scene:
    """Return networks and images. Raises ValueError if there is no model, or one twice."""
    subjects = open_subjects(config, models, quiet)
    whole = open_source(config.data)
    seen = see(config, max(subject.size for subject in subjects), whole, quiet)
    scene = Scene(subjects, whole, len(whole), seen)
    if config.drawn < len(whole) and config.drawn <= FEW:
        return scene.few(config.drawn)
    return replace(scene, source=at_most(whole, config.drawn))


def open_subjects(
    config: AnalysisConfig, models: Sequence[str | Path], quiet: bool
) -> list[Subject]:
    """Return the networks that models stand for; of a run with two, its teacher.

    Those before training come first. Raises ValueError if there is no model, or one twice.
    """
    if not models:
        raise ValueError("Name a model or more: folders of runs, files of weights, or names.")
    twice = [str(model) for model in models if list(models).count(model) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is named twice.")
    names = names_of(models)
    found: list[Subject] = []
    fresh_ones: list[Subject] = []
    for model, name in zip(models, names, strict=True):
        row, backbone = next(iter(open_networks(model, device_of(config), quiet).items()))
        nominal = backbone.config.image_size
        size = nominal if config.image_size == "auto" else config.image_size
        trained = row != "untrained"
        found.append(Subject(name, str(model), backbone, size, trained))
        if trained and config.untrained:
            fresh = Subject(
                f"{name}, untrained", str(model), before_training(model, backbone), size, False
            )
            if not any(alike(fresh.backbone, other.backbone) for other in fresh_ones):
                fresh_ones.append(fresh)
    if len(fresh_ones) == 1:
        fresh_ones = [replace(fresh_ones[0], name="untrained")]
    return [*fresh_ones, *found]


def alike(left: Backbone, right: Backbone) -> bool:
    """Return whether two networks are one and the same, weights and all."""
    mine, other = left.state_dict(), right.state_dict()
    return mine.keys() == other.keys() and all(
        mine[name].shape == other[name].shape and torch.equal(mine[name], other[name])
        for name in mine
    )


def names_of(models: Sequence[str | Path]) -> list[str]:
    """Return the end of each name, of as few parts as tell it from the others."""
    found = [last_part(str(model)) or str(model) for model in models]
    for parts in range(2, max(len(Path(model).parts) for model in models) + 1):
        many = Counter(found)
        found = [
            name if many[name] == 1 else "/".join(Path(model).parts[-parts:])
            for name, model in zip(found, models, strict=True)
        ]
    return found
