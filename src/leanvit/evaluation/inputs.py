"""From names on a command line to networks, to images, and to the way that one sees the other."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leanvit.backbones.base import Backbone
from leanvit.config.evaluation import ClassesConfig, ImagesConfig, ProbeConfig
from leanvit.core.console import track, warn
from leanvit.data.batch import Unreadable
from leanvit.data.images import load_images, usual_crop
from leanvit.data.sources import (
    SAMPLE,
    Source,
    hold_out,
    open_source,
    open_validation,
    require_classes,
)
from leanvit.evaluation.features import Described, Description, describe_batches, join
from leanvit.evaluation.models import open_networks


@dataclass(frozen=True, slots=True)
class Seen:
    """How images reach the networks, nothing left open."""

    config: ImagesConfig
    device: torch.device
    size: int
    crop: float
    workers: int
    quiet: bool

    def describe(self, source: Source, text: str, ways: Mapping[str, Description]) -> Described:
        """Describe all images of a source. Raises ValueError if too many cannot be read."""
        return join(self.batches(source, text, ways))

    def batches(
        self, source: Source, text: str, ways: Mapping[str, Description]
    ) -> Iterator[Described]:
        """Describe the images of a source batch by batch, in order.

        Raises ValueError, at the end, if too many could not be read.
        """
        batch = self.config.batch
        images = load_images(
            source, size=self.size, crop=self.crop, batch=batch, workers=self.workers
        )
        total = -(-len(source) // batch)
        bad: list[Unreadable] = []
        for part in describe_batches(track(images, text, total, quiet=self.quiet), ways):
            bad += part.unreadable
            yield part
        require_readable(bad, len(source), self.config.max_unreadable)


def require_readable(bad: Sequence[Unreadable], images: int, most: float) -> None:
    """Say that some images could not be read. Raises ValueError above `most` percent."""
    if not bad:
        return
    text = f"{len(bad)} of {images} images cannot be read, such as {bad[0].name!r} ({bad[0].error})"
    if 100 * len(bad) / images > most:
        raise ValueError(f"{text}; at most {most:g} % may be (max_unreadable).")
    warn(f"{text}; left out.")


def open_both(config: ClassesConfig) -> tuple[Source, Source, list[str]]:
    """Return the images to learn from, those to test on, and what a reader should know of it."""
    source = open_source(config.data)
    require_classes(source)
    test = open_validation(config.val, source)
    if test is not None:
        require_classes(test)
        return source, test, []
    learn, test = hold_out(source)
    note = (
        f"No images were set aside to evaluate on (--val), so a fifth of each class was: "
        f"{len(test)} images. If the network was pre-trained on them, it has seen their pixels, "
        f"not their classes."
    )
    return learn, test, [note]


def prepare(
    config: ImagesConfig, model: str | Path, source: Source, quiet: bool
) -> tuple[Seen, Mapping[str, Backbone]]:
    """Return the networks, and how images reach them."""
    networks = open_networks(model, device_of(config), quiet)
    first = next(iter(networks.values()))
    return see(config, first.config.image_size, source, quiet), networks


def device_of(config: ImagesConfig) -> torch.device:
    """Return where the networks run. Raises ValueError for a device that is not there."""
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ValueError("device is cuda, but torch finds no CUDA device here; use cpu.")
    return torch.device("cuda" if cuda and config.device != "cpu" else "cpu")


def see(config: ImagesConfig, nominal: int, source: Source, quiet: bool) -> Seen:
    """Return how images like those of a source reach a network built for `nominal` pixels."""
    device = device_of(config)
    size = nominal if config.image_size == "auto" else config.image_size
    crop = usual_crop(source, size) if config.crop == "auto" else config.crop
    cores = len(os.sched_getaffinity(0))
    workers = min(cores - 1, 16) if config.workers == "auto" else config.workers
    return Seen(config, device, size, crop, workers, quiet)


def protocols_of(config: ProbeConfig) -> tuple[str, ...]:
    """Return the protocols that are asked for."""
    if config.protocol == "auto":
        return ("color", "grey") if config.data == SAMPLE else ("color",)
    return ("color", "grey") if config.protocol == "both" else (config.protocol,)
