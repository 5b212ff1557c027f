"""From names on a command line to networks, to images, and to the way that one sees the other."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.config.dense import DenseConfig
from leanvit.config.evaluation import (
    ClassesConfig,
    CompareConfig,
    EvaluationConfig,
    ImagesConfig,
    KnnConfig,
    LowshotConfig,
    ProbeConfig,
)
from leanvit.core.console import say, track, warn
from leanvit.core.distributed import all_lists, rank, world_size
from leanvit.core.kept import prune
from leanvit.core.workers import SHARED, with_room
from leanvit.data.batch import Unreadable
from leanvit.data.images import Change, ImageBatch, in_batches, load_images, usual_crop
from leanvit.data.sources import (
    SAMPLE,
    Source,
    hold_out,
    open_source,
    open_validation,
    require_classes,
)
from leanvit.evaluation.features import (
    Described,
    Description,
    describe_baselines,
    describe_batch,
    describe_network,
    join,
    shared,
)
from leanvit.evaluation.kept import KIND, MOST, Kept, Stored
from leanvit.evaluation.models import open_networks, with_untrained

SHOWN = 5
"""Classes without images that are named."""
LARGE = 16
"""Batches of a part of the images whose features are kept together, and found again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How images reach the networks, nothing left open."""

    config: ImagesConfig
    device: torch.device
    size: int
    crop: float
    workers: int
    keeps: bool
    quiet: bool
    change: Change | None = None
    """What is made of each image before it is described."""
    notes: list[str] = field(default_factory=list)
    """Sentences that a reader of the result should know."""

    def changing(self, change: Change) -> "Seen":
        """Return the same way of seeing what a change makes of the images."""
        return replace(self, change=change)

    def describe(self, source: Source, text: str, ways: Mapping[str, Description]) -> Described:
        """Describe all images of a source; every process has the rows of all of them.

        Raises ValueError if too many cannot be read, or if a row is not finite.
        """
        return shared(self.describe_share(source, text, ways), ways)

    def describe_share(
        self, source: Source, text: str, ways: Mapping[str, Description]
    ) -> Described:
        """Describe this process's share of the images of a source; each image is in one share.

        Raises ValueError, in every process, if too many of all cannot be read, or if a row is not
        finite. What is known from before is not computed again.
        """
        kept = Kept(source, self._reading(), ways) if self.keeps else None
        found = join(self.batches(source, text, ways, kept))
        if kept is not None:
            prune(KIND, MOST)
        for name, rows in found.rows.items():
            if len(rows) > 1 and (rows == rows[0]).all():
                self.notes.append(f"{name}: the features of all {text} are the same.")
        return found

    def batches(
        self,
        source: Source,
        text: str,
        ways: Mapping[str, Description],
        kept: Kept | None = None,
    ) -> Iterator[Described]:
        """Describe this process's share of the images of a source part by part, in order."""
        batch = self.config.batch
        parts = self._share(len(source), LARGE if kept else 1)
        known = {part: kept.find(part) if kept else {} for part in parts}
        ready = {part for part in parts if kept and self._is_known(kept, part, known[part], ways)}
        todo = [one for part in parts if part not in ready for one in in_batches(part, batch)]
        images = load_images(
            source,
            size=self.size,
            crop=self.crop,
            workers=self.workers,
            batch=todo,
            change=self.change,
        )
        bad: list[Unreadable] = []
        with closing(track(images, text, len(todo), quiet=self.quiet or not todo)) as coming:
            for part in parts:
                stored = known.pop(part)
                if part in ready:
                    yield _as_known(source, part, stored)
                    continue
                found = join(
                    describe_batch(one, ways, _still_known(one, place, stored))
                    for place in in_batches(range(len(part)), batch)
                    for one in [next(coming)]
                )
                require_finite(found, source)
                if kept is not None:
                    kept.keep(part, found, stored)
                bad += found.unreadable
                yield found
        left_out = require_readable(all_lists(bad), len(source), self.config.max_unreadable)
        self.notes.extend(f"{text[0].upper()}{text[1:]}: {note}" for note in left_out)

    def _is_known(
        self, kept: Kept, part: range, stored: Mapping[str, Stored], ways: Mapping[str, Description]
    ) -> bool:
        """Return whether all that is asked of a part is known, and true of its images."""
        return stored.keys() == ways.keys() and kept.unchanged(part, stored)

    def _share(self, images: int, most: int) -> list[range]:
        """Return this process's part of so many images, cut into parts of whole batches.

        most: batches of a part, where there are enough for all processes.
        """
        batch = self.config.batch
        batches = min(most, max(images // (batch * world_size()), 1))
        parts = in_batches(range(images), batch * batches)
        first, last = (len(parts) * place // world_size() for place in (rank(), rank() + 1))
        return parts[first:last]

    def _reading(self) -> str:
        """Return how images are read and where they are described, in words."""
        change = self.change.key if self.change else ""
        return f"{self.size} {self.crop} {self.config.batch} {self.device.type} {change}"


def _as_known(source: Source, part: range, stored: Mapping[str, Stored]) -> Described:
    """Return what is known of a part."""
    index = torch.arange(part.start, part.stop)
    target = torch.from_numpy(source.targets[part.start : part.stop])
    return Described({name: each.rows for name, each in stored.items()}, index, target, ())


def _still_known(
    images: ImageBatch, place: range, stored: Mapping[str, Stored]
) -> dict[str, Tensor]:
    """Return the rows that are known of a batch. place: where it is in its part."""
    where = slice(place.start, place.stop)
    found = {name: each.of(where, images.marks) for name, each in stored.items()}
    return {name: rows for name, rows in found.items() if rows is not None}


def require_finite(found: Described, source: Source) -> None:
    """Raise ValueError for features that hold a number that is none."""
    for name, rows in found.rows.items():
        bad = (~rows.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(bad):
            first = source.name(int(found.index[bad[0]]))
            raise ValueError(
                f"{name}: the features of {len(bad)} of {len(rows)} images hold numbers that are "
                f"not finite, such as those of {first!r}: the weights are damaged, or the training "
                f"diverged."
            )


def require_readable(
    bad: Sequence[Unreadable], images: int, most: float, said: Sequence[str] = ()
) -> list[str]:
    """Say that some images could not be read, and return it; nothing if it was `said` before.

    Raises ValueError above `most` %.
    """
    if not bad:
        return []
    if len(bad) == images:
        raise ValueError(f"None of the {images} images could be read.")
    text = f"{len(bad)} of {images} images cannot be read, such as {bad[0].name!r} ({bad[0].error})"
    if 100 * len(bad) / images > most:
        raise ValueError(f"{text}; at most {most:g} % may be (max_unreadable).")
    note = f"{text}; left out."
    if note in said:
        return []
    if rank() == 0:
        warn(note)
    return [note]


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


def open_alone(config: ClassesConfig) -> tuple[Source, Source, list[str]]:
    """Return images that are tested on each other, twice, and what a reader should know of it."""
    source = open_source(config.data)
    require_classes(source)
    return source, source, ["Every image was tested on all the others (leave-one-out)."]


def empty_classes(learn: Source, test: Source) -> list[str]:
    """Return which classes have no image to learn from, or none to test on, in words."""
    notes = []
    learned, tested = (
        np.bincount(source.targets, minlength=len(learn.classes)) for source in (learn, test)
    )
    for name, here, there in zip(learn.classes, learned.tolist(), tested.tolist(), strict=True):
        if not here:
            wrong = f"; its {there} images to test on count as wrong" if there else ""
            notes.append(f"Class {name!r} has no image to learn from{wrong}.")
        elif not there:
            notes.append(f"Class {name!r} has no image to test on.")
    if len(notes) > SHOWN:
        notes[SHOWN:] = [f"So it is with {len(notes) - SHOWN} more classes."]
    return notes


def prepare(
    config: ImagesConfig, model: str | Path, source: Source, quiet: bool
) -> tuple[Seen, Mapping[str, Backbone]]:
    """Return the networks, and how images reach them."""
    networks = open_networks(model, device_of(config), quiet)
    first = next(iter(networks.values()))
    return see(config, first.config.image_size, source, quiet), networks


def device_of(config: ImagesConfig | CompareConfig | DenseConfig) -> torch.device:
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
    keeps = isinstance(config, EvaluationConfig) and config.keep_features
    workers = wanted = workers_of(config)
    if config.workers == "auto":
        workers = with_room(wanted, config.batch * 3 * size * size * torch.float32.itemsize)
    if workers < wanted and not quiet:
        say(
            f"Note: {workers} instead of {wanted} processes read images: {SHARED} has no more room."
        )
    return Seen(config, device, size, crop, workers, keeps, quiet)


def workers_of(config: ImagesConfig | DenseConfig) -> int:
    """Return how many processes read images."""
    if config.workers != "auto":
        return config.workers
    return min(len(os.sched_getaffinity(0)) - 1, 16)


def protocols_of(config: ProbeConfig) -> tuple[str, ...]:
    """Return the protocols that are asked for."""
    if config.protocol == "auto":
        return ("color", "grey") if config.data == SAMPLE else ("color",)
    return ("color", "grey") if config.protocol == "both" else (config.protocol,)


def ways_of(
    config: KnnConfig | LowshotConfig,
    model: str | Path,
    networks: Mapping[str, Backbone],
    blocks: int = 0,
) -> dict[str, Description]:
    """Return what is compared, by protocol and name: baselines if asked for, then networks.

    blocks: how many of the last ones speak; 0 for the view features.
    """
    shown = with_untrained(networks, model) if config.baselines else networks
    ways: dict[str, Description] = {}
    for protocol in protocols_of(config):
        if config.baselines:
            ways |= describe_baselines(protocol)
        for name, network in shown.items():
            ways[f"{protocol}/{name}"] = describe_network(network, protocol, blocks)
    return ways
