"""What images are described by: networks, and what needs none.

A description turns images [B, 3, S, S] in [0, 1] into rows [B, D]. It sees them under a protocol:
`color`, as they are, or `grey`, where each image becomes grey, mean 0 and deviation 1, so that
neither color nor brightness gives its class away.

Letters: B images, S side in pixels, D columns of a description.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from leanvit.backbones.base import Ask, Backbone, Features, Tokens
from leanvit.data.batch import Unreadable
from leanvit.data.images import ImageBatch

Description = Callable[[Tensor], Tensor]
"""Images [B, 3, S, S] in [0, 1] -> rows [B, D]."""

PIXELS = 32
"""Side that images are reduced to before their pixels are compared."""
COLOR_BINS = 8
"""Bins a channel of the color histogram."""
GREY_BINS, GREY_RANGE = 64, 3.0
"""Bins of the grey histogram, and how many deviations it reaches each way."""


def standardize(images: Tensor) -> Tensor:
    """Return grey images [B, 3, S, S], each with mean 0 and standard deviation 1.

    An image of one color becomes 0: a deviation below half of an 8-bit step is rounding.
    """
    grey = tv.rgb_to_grayscale(images)
    centered = grey - grey.mean((1, 2, 3), keepdim=True)
    deviation = centered.square().mean((1, 2, 3), keepdim=True).sqrt()
    return (centered / deviation.clamp_min(0.5 / 255)).expand_as(images)


def describe_pixels(protocol: str) -> Description:
    """Return the pixels of an image, reduced to 32 a side, as a row."""

    def rows(images: Tensor) -> Tensor:
        small = images
        if images.shape[-1] > PIXELS:
            small = functional.interpolate(
                images, (PIXELS, PIXELS), mode="bilinear", antialias=True, align_corners=False
            )
        if protocol == "grey":
            return standardize(small)[:, 0].flatten(1)
        return (small - small.mean((1, 2, 3), keepdim=True)).flatten(1)

    return rows


def describe_histogram(protocol: str) -> Description:
    """Return the share of pixels in 8 x 8 x 8 colors, or in 64 shades of the standardised grey."""

    def rows(images: Tensor) -> Tensor:
        if protocol == "grey":
            grey = standardize(images)[:, 0]
            shade = (grey / GREY_RANGE + 1) / 2 * GREY_BINS
            return _shares(shade.long().clamp(0, GREY_BINS - 1).flatten(1), GREY_BINS)
        red, green, blue = (images * COLOR_BINS).long().clamp(0, COLOR_BINS - 1).unbind(1)
        color = (red * COLOR_BINS + green) * COLOR_BINS + blue
        return _shares(color.flatten(1), COLOR_BINS**3)

    return rows


def _shares(bins: Tensor, count: int) -> Tensor:
    """Return how often each of `count` bins occurs in each row of bin numbers [B, N]."""
    shares = torch.zeros(len(bins), count, device=bins.device)
    ones = torch.ones((), device=bins.device).expand_as(bins)
    return shares.scatter_add_(1, bins, ones) / bins.shape[1]


def describe_network(backbone: Backbone, protocol: str = "color", blocks: int = 0) -> Description:
    """Return the view features of a network, or those of its last `blocks` side by side.

    Raises ValueError if the network has fewer blocks.
    """
    if blocks > backbone.depth:
        raise ValueError(f"The network has {backbone.depth} blocks, fewer than the last {blocks}.")
    see = _eye(backbone, protocol)

    @torch.no_grad()
    def rows(images: Tensor) -> Tensor:
        if blocks:
            return last_block_features(backbone, see(images), blocks)
        return backbone.features(see(images)).pooled

    return rows


def describe_grid(backbone: Backbone, protocol: str = "color") -> Description:
    """Return the region features [B, h, w, D] of a network."""
    see = _eye(backbone, protocol)

    @torch.no_grad()
    def rows(images: Tensor) -> Tensor:
        return backbone.features(see(images)).grid

    return rows


def describe_classes(backbone: Backbone, scores: Callable[[Features], Tensor]) -> Description:
    """Return the scores [B, C] that a head gives what a network says of images."""
    see = _eye(backbone, "color")

    @torch.no_grad()
    def rows(images: Tensor) -> Tensor:
        return scores(backbone.features(see(images)))

    return rows


def _eye(backbone: Backbone, protocol: str) -> Description:
    """Return what turns images in [0, 1] into the network's input."""
    if protocol not in ("color", "grey"):
        raise ValueError(f"protocol is {protocol!r}; expected color or grey.")
    device = next(backbone.parameters()).device
    mean, std = (
        torch.tensor(v, device=device).view(-1, 1, 1) for v in (backbone.mean, backbone.std)
    )

    def see(images: Tensor) -> Tensor:
        images = images.to(device)
        return standardize(images) if protocol == "grey" else (images - mean) / std

    return see


def last_block_features(backbone: Backbone, images: Tensor, blocks: int = 4) -> Tensor:
    """Return the view features of the last blocks side by side [B, sum of D] (DINO, EsViT probe).

    Outputs of the last stage pass through the final norm; those of earlier stages, which it does
    not fit, are taken as they are.
    """
    (features,) = backbone([images], Ask(hidden=tuple(range(-blocks, 0))))
    ends = backbone.stage_ends
    last_stage = backbone.depth - (ends[-2] + 1 if len(ends) > 1 else 0)
    parts = []
    for place, tokens in zip(range(-blocks, 0), features.hidden, strict=True):
        if place >= -last_stage:
            tokens = Tokens(
                backbone.norm(tokens.grid),
                None if tokens.prefix is None else backbone.norm(tokens.prefix),
            )
        parts.append(backbone.pool(tokens))
    return torch.cat(parts, 1)


@dataclass(frozen=True, slots=True)
class Described:
    """Rows of the images that could be read."""

    rows: Mapping[str, Tensor]
    """[N, D] of each description, on the CPU."""
    index: Tensor
    """[N] number of each image in its source."""
    target: Tensor
    """[N] class, -1 where the source has none."""
    unreadable: Sequence[Unreadable]


def describe_batches(
    images: Iterable[ImageBatch], descriptions: Mapping[str, Description]
) -> Iterator[Described]:
    """Describe images in every way, batch by batch; where none could be read there are no rows.

    Raises ValueError, at the end, if no image at all could be read.
    """
    read = unread = 0
    for batch in images:
        found = descriptions if len(batch.index) else {}
        rows = {name: way(batch.pixels).float().cpu() for name, way in found.items()}
        yield Described(rows, batch.index, batch.target, batch.unreadable)
        read, unread = read + len(batch.index), unread + len(batch.unreadable)
    if not read:
        raise ValueError(f"None of the {unread} images could be read.")


def join(batches: Iterable[Described]) -> Described:
    """Return what was found of all batches in one; some image must have been read."""
    parts = list(batches)
    full = [part for part in parts if len(part.index)]
    return Described(
        {name: torch.cat([part.rows[name] for part in full]) for name in full[0].rows},
        torch.cat([part.index for part in full]),
        torch.cat([part.target for part in full]),
        [entry for part in parts for entry in part.unreadable],
    )


def describe(images: Iterable[ImageBatch], descriptions: Mapping[str, Description]) -> Described:
    """Describe all images in every way, in one pass. Raises ValueError if none could be read."""
    return join(describe_batches(images, descriptions))
