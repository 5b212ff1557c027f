"""Which patches of an image are hidden: drawn by (seed, epoch, image), whatever the batch is.

Letters: B images, N patches, n visible ones, S side of the view.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.core import random
from leanvit.methods.base import Moment


@runtime_checkable
class Reconstructs(Protocol):
    """A method that predicts the pixels of hidden patches: what a picture of them asks of it."""

    @property
    def view_size(self) -> int:
        """S."""
        ...

    @property
    def patches(self) -> int:
        """N, among which noise chooses."""
        ...

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Hide patches by noise [B, N] and predict them, without any other draw.

        images: [B, 3, S, S], normalised. Returns which pixels are hidden [B, S, S] and the
        prediction of all pixels [B, 3, S, S], in fp32 and normalised as the images are.
        """
        ...


def mask_noise(index: Tensor, patches: int, at: Moment) -> Tensor:
    """Draw a number in [0, 1) for every patch [B, N]; those with the smallest stay visible."""
    drawn = random.units_of_each(at.seed, "mask noise", at.epoch, each=index.numpy(), count=patches)
    return torch.from_numpy(drawn).float()


def visible_patches(noise: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the visible patches [B, n] in the order of their noise, and the mask [B, N].

    The mask is true where a patch is hidden.
    """
    kept = noise.argsort(dim=1, stable=True)[:, :count]
    mask = torch.ones_like(noise, dtype=torch.bool).scatter(1, kept, False)
    return kept, mask


def enlarged(mask: Tensor, times: int) -> Tensor:
    """Return a mask [B, h, w] in which every entry is a square: [B, h * times, w * times]."""
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)


def visible_count(patches: int, ratio: float) -> int:
    """Return how many of N patches stay visible when a share is hidden.

    Raises ValueError if none does, or if none is hidden.
    """
    count = int(patches * (1 - ratio) + 1e-9)  # of 100, 0.9 leave 10: 1 - 0.9 is a little less
    if not 0 < count < patches:
        left = "no patch is left to see" if count == 0 else "no patch is hidden"
        raise ValueError(
            f"mask_ratio {ratio:g} of {patches} patches: {left}; choose a ratio that hides some "
            f"and leaves some, larger views (method.views.size) or smaller patches."
        )
    return count


def require_hiding(kind: str, backbone: Backbone) -> None:
    """Raise ValueError if a backbone, given to a method, has no way to hide what it is to guess."""
    if "fill" not in backbone.can:
        raise ValueError(
            f"{kind} hides patches, which {type(backbone).__name__} cannot; take a ViT, Swin, CvT "
            f"or Vision Longformer."
        )


def require_whole(size: int, side: int, what: str) -> None:
    """Raise ValueError if views of `size` pixels are not made of whole squares, called `what`."""
    if size % side:
        below = size // side * side
        raise ValueError(
            f"Views of {size} pixels (method.views.size) are not made of whole {what} of {side}; "
            f"the nearest sizes are {below} and {below + side}."
        )
