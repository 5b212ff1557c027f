"""Which patches of an image are hidden: drawn by (seed, epoch, image), whatever the batch is.

Letters: B images, N patches, n visible ones, S side of the view.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from leanvit.backbones.base import PLAIN, Ask, Backbone
from leanvit.backbones.catalogue import build_backbone
from leanvit.config import BackboneConfig, MaeConfig, SimMIMConfig
from leanvit.core import random
from leanvit.core.precision import to_device
from leanvit.data.batch import ViewBatch
from leanvit.data.views import ViewSpec, single_crop
from leanvit.methods.base import Method, Moment, StepOutput, learner_ask


class Masked(Method):
    """A method that hides patches of one crop from its encoder and predicts their pixels."""

    def __init__(
        self, config: MaeConfig | SimMIMConfig, backbone: BackboneConfig, what: str, patch: int = 0
    ) -> None:
        """what: a patch's name in errors; patch: its side in pixels, else the encoder's region.

        Raises ValueError if the backbone cannot hide them, or if they do not fit into the view.
        """
        super().__init__()
        self.crop = config.views
        self.backbone = build_backbone(backbone)
        if "fill" not in self.backbone.can:
            raise ValueError(
                f"{config.kind} hides patches, which {type(self.backbone).__name__} cannot; take a "
                f"ViT, Swin, CvT or Vision Longformer."
            )
        self.patch = patch or self.backbone.stride
        require_whole(self.view_size, self.patch, what)
        self.rows = self.view_size // self.patch
        self.visible = visible_count(self.patches, config.mask_ratio, what)

    @property
    def view_size(self) -> int:
        """S."""
        return self.crop.size

    @property
    def patches(self) -> int:
        """N, among which noise chooses."""
        return self.rows**2

    def views(self) -> ViewSpec:
        """Return one crop."""
        return single_crop(self.crop)

    def encoder(self) -> Backbone:
        """Return the encoder."""
        return self.backbone

    def forward(self, batch: ViewBatch, at: Moment) -> StepOutput:
        """Hide patches and predict them."""
        images = batch.groups[0][0]
        noise = to_device(mask_noise(batch.index, self.patches, at), images.device)
        drawn = learner_ask(self.backbone, 1, batch.index, at, images.device)
        return self.learn(images, noise, drawn)

    @abstractmethod
    def learn(self, images: Tensor, noise: Tensor, drawn: Ask = PLAIN) -> StepOutput:
        """Return the loss of images [B, 3, S, S] whose patches are hidden by noise [B, N].

        drawn: what else was drawn for the pass.
        """

    @abstractmethod
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Hide patches by noise [B, N] and predict them, without any other draw.

        images: [B, 3, S, S], normalised. Returns which pixels are hidden [B, S, S] and the
        prediction of all pixels [B, 3, S, S], in fp32 and normalised as the images are.
        """


def mask_noise(index: Tensor, patches: int, at: Moment) -> Tensor:
    """Draw a number in [0, 1) for every patch [B, N]; those with the smallest stay visible."""
    drawn = random.units_of_each(at.seed, "mask noise", at.epoch, each=index.numpy(), count=patches)
    return torch.from_numpy(drawn).float()


def visible_patches(noise: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the visible patches [B, n] and the hidden ones [B, N - n], and the mask [B, N].

    Both in the order of their noise; the mask is true where a patch is hidden.
    """
    order = noise.argsort(dim=1, stable=True)
    kept, hidden = order[:, :count], order[:, count:]
    mask = torch.zeros_like(noise, dtype=torch.bool).scatter(1, hidden, True)
    return kept, hidden, mask


def enlarged(mask: Tensor, times: int) -> Tensor:
    """Return a mask [B, h, w] in which every entry is a square: [B, h * times, w * times]."""
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)


def visible_count(patches: int, ratio: float, what: str) -> int:
    """Return how many of N patches, called `what`, stay visible when a share is hidden.

    Raises ValueError if none does, or if none is hidden.
    """
    count = int(patches * (1 - ratio) + 1e-9)  # of 100, 0.9 leave 10: 1 - 0.9 is a little less
    if not 0 < count < patches:
        left = "none is left to see" if count == 0 else "none is hidden"
        raise ValueError(
            f"method.mask_ratio {ratio:g} of {patches} {what}: {left}; choose a ratio that hides "
            f"some and leaves some, larger views (method.views.size) or smaller {what}."
        )
    return count


def require_whole(size: int, side: int, what: str) -> None:
    """Raise ValueError if views of `size` pixels are not made of whole squares, called `what`."""
    if size % side:
        below = size // side * side
        raise ValueError(
            f"Views of {size} pixels (method.views.size) are not made of whole {what} of {side}; "
            f"the nearest sizes are {below} and {below + side}."
        )
