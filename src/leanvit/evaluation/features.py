"""What images are described by: networks, and what needs none.

A description turns images [B, 3, S, S] in [0, 1] into rows [B, D]. It sees them under a protocol:
`color`, as they are, or `grey`, where each image becomes grey, mean 0 and deviation 1, so that
neither color nor brightness gives its class away.

Letters: B images, S side in pixels, D columns of a description.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from leanvit.backbones.base import Ask, Backbone, Features, Tokens
from leanvit.core.distributed import all_lists, all_max, all_rows_of_any_number, world_size
from leanvit.data.batch import Unreadable
from leanvit.data.images import ImageBatch


@dataclass(frozen=True, slots=True)
class Description:
    """What turns images [B, 3, S, S] in [0, 1] into rows [B, D]."""

    see: Callable[[Tensor], Tensor]
    key: Callable[[], str] = str
    """Returns words and digests that are the same only where the rows are; none: rows that are
    not worth keeping."""

    def __call__(self, images: Tensor) -> Tensor:
        """Describe images."""
        return self.see(images)


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

    return Description(rows)


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

    return Description(rows)


BASELINES: Mapping[str, Callable[[str], Description]] = MappingProxyType(
    {"raw pixels": describe_pixels, "histogram": describe_histogram}
)
"""What needs no network, by protocol."""


def describe_baselines(protocol: str) -> dict[str, Description]:
    """Return what needs no network, by protocol and name."""
    return {f"{protocol}/{name}": describe(protocol) for name, describe in BASELINES.items()}


def _shares(bins: Tensor, count: int) -> Tensor:
    """Return how often each of `count` bins occurs in each row of bin numbers [B, N]."""
    shares = torch.zeros(len(bins), count, device=bins.device)
    ones = torch.ones((), device=bins.device).expand_as(bins)
    return shares.scatter_add_(1, bins, ones) / bins.shape[1]


def describe_network(
    backbone: Backbone, protocol: str = "color", blocks: int = 0, pooling: str = "view"
) -> Description:
    """Return the view features of a network, or what its last `blocks` say, side by side.

    pooling: of blocks, as in `last_block_features`. Raises ValueError if the network has fewer.
    """
    if blocks > backbone.depth:
        raise ValueError(f"The network has {backbone.depth} blocks, fewer than the last {blocks}.")
    see = _eye(backbone, protocol)

    @torch.no_grad()
    def rows(images: Tensor) -> Tensor:
        if blocks:
            return last_block_features(backbone, see(images), blocks, pooling)
        return backbone.features(see(images)).pooled

    return Description(rows, lambda: f"{protocol} {blocks} {pooling} {digest(backbone)}")


def describe_grid(backbone: Backbone, protocol: str = "color") -> Description:
    """Return the region features [B, h, w, D] of a network."""
    see = _eye(backbone, protocol)

    @torch.no_grad()
    def rows(images: Tensor) -> Tensor:
        return backbone.features(see(images)).grid

    return Description(rows)


def describe_classes(backbone: Backbone, scores: Callable[[Features], Tensor]) -> Description:
    """Return the scores [B, C] that a head gives what a network says of images."""
    see = _eye(backbone, "color")

    @torch.no_grad()
    def rows(images: Tensor) -> Tensor:
        return scores(backbone.features(see(images)))

    return Description(rows)


def digest(backbone: Backbone) -> str:
    """Return a digest of a network: its configuration, its weights, and how it sees colors."""
    found = hashlib.sha256(repr((backbone.config, backbone.mean, backbone.std)).encode())
    for name, value in sorted(backbone.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _eye(backbone: Backbone, protocol: str) -> Callable[[Tensor], Tensor]:
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


def last_block_features(
    backbone: Backbone, images: Tensor, blocks: int = 4, pooling: str = "view"
) -> Tensor:
    """Return what the last blocks say side by side [B, sum of D] (DINO, EsViT probe).

    pooling: view, their view features; mean, the means of their regions; both, first all of the
    former, then all of the latter. Outputs of the last stage pass through the final norm; those of
    earlier stages, which it does not fit, are taken as they are.
    """
    (features,) = backbone([images], Ask(hidden=tuple(range(-blocks, 0))))
    ends = backbone.stage_ends
    last_stage = backbone.depth - (ends[-2] + 1 if len(ends) > 1 else 0)
    views, means = [], []
    for place, tokens in zip(range(-blocks, 0), features.hidden, strict=True):
        if place >= -last_stage:
            tokens = Tokens(
                backbone.norm(tokens.grid),
                None if tokens.prefix is None else backbone.norm(tokens.prefix),
            )
        if pooling != "mean":
            views.append(backbone.pool(tokens))
        if pooling != "view":
            means.append(tokens.grid.mean((1, 2)))
    return torch.cat([*views, *means], 1)


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
    marks: bytes = b""
    """Digests of what the images were decoded from."""

    def labelled(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the rows [N, D] of a description, with the classes [N]."""
        return self.rows[name], self.target


def describe_batch(
    images: ImageBatch,
    descriptions: Mapping[str, Description],
    known: Mapping[str, Tensor] = MappingProxyType({}),
) -> Described:
    """Describe a batch in every way; where no image could be read there are no rows.

    known: rows that need not be computed.
    """
    found = descriptions if len(images.index) else {}
    rows = {
        name: known[name] if name in known else way(images.pixels).float().cpu()
        for name, way in found.items()
    }
    return Described(rows, images.index, images.target, images.unreadable, images.marks)


def join(parts: Iterable[Described]) -> Described:
    """Return what was found of all parts in one; of no image that was read, there are no rows."""
    parts = list(parts)
    full = [part for part in parts if len(part.index)]
    names = full[0].rows if full else ()
    none = torch.empty(0, dtype=torch.long)
    return Described(
        {name: torch.cat([part.rows[name] for part in full]) for name in names},
        torch.cat([none, *(part.index for part in full)]),
        torch.cat([none, *(part.target for part in full)]),
        [entry for part in parts for entry in part.unreadable],
        b"".join(part.marks for part in parts),
    )


def shared(found: Described, names: Iterable[str]) -> Described:
    """Return what all processes found, in their order.

    names: of the rows, of which a process without images has none.
    """
    if world_size() == 1:
        return found
    columns = {}
    for name in names:
        rows = found.rows.get(name, torch.empty(0, 0))
        width = int(all_max(torch.tensor(rows.shape[1])))
        columns[name] = all_rows_of_any_number(rows if len(rows) else torch.empty(0, width))
    return Described(
        columns,
        all_rows_of_any_number(found.index),
        all_rows_of_any_number(found.target),
        all_lists(found.unreadable),
    )


def describe(images: Iterable[ImageBatch], descriptions: Mapping[str, Description]) -> Described:
    """Describe all images in every way, in one pass. Raises ValueError if none could be read."""
    found = join(describe_batch(batch, descriptions) for batch in images)
    if not found.rows:
        raise ValueError(f"None of the {len(found.unreadable)} images could be read.")
    return found
