"""timm's networks with our weights, which ours are measured against, and ours in the same form.

Letters: B images, h and w rows and columns of the grid, D channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from leanvit.backbones.base import Backbone
from leanvit.config import BackboneConfig, SwinConfig, ViTConfig
from leanvit.core.compiling import Compiler
from leanvit.core.errors import RunError
from leanvit.core.random import seeded
from leanvit.weights.layouts import LAYOUTS
from leanvit.weights.names import NAMINGS
from leanvit.weights.timm_format import architecture

NEAR = 1e-3
"""How far features may differ, by their norm: more than rounding, less than any other function."""


def has_twin(config: BackboneConfig) -> bool:
    """Return whether timm has this network: Swin, and plain ViT but for some of its additions."""
    if isinstance(config, ViTConfig):
        added = config.registers or config.position_bias or config.positions == "sincos"
        return not (added or config.pool == "mean_norm")
    return isinstance(config, SwinConfig)


class Ours(nn.Module):
    """Our network; all sizes in one forward."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Return the grid [B, h, w, D] and the view feature [B, D] of each view in turn."""
        return [part for found in self.network(views) for part in (found.grid, found.pooled)]

    def use_compiler(self, backend: str | Compiler) -> None:
        """Compile block by block, as blocks are made for, for the very sizes that come."""
        for block in self.network.blocks():
            block.compile(backend=backend, dynamic=False)


class Twin(nn.Module):
    """timm's network with the weights of ours; one forward for each size.

    flexible: also for images of other sizes than the nominal one, which costs timm's Swin the masks
    that it keeps otherwise.
    """

    def __init__(self, ours: Backbone, *, flexible: bool) -> None:
        super().__init__()
        assert isinstance(ours.config, SwinConfig | ViTConfig)
        self.config = ours.config
        with seeded(0, "twin"):
            self.network = _network(ours.config, flexible).eval()
        naming, _ = LAYOUTS["timm"].writes[ours.config.kind]
        self.network.load_state_dict(NAMINGS[naming].theirs(ours.state_dict()), strict=True)

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Return the grid [B, h, w, D] and the view feature [B, D] of each view in turn."""
        found = []
        for view in views:
            tokens: Tensor = self.network(view)
            if isinstance(self.config, ViTConfig):
                rows = view.shape[-2] // self.config.patch
                grid = tokens[:, 1:].unflatten(1, (rows, -1))
                mean = self.config.pool == "mean"
                found += [grid, grid.mean((1, 2)) if mean else tokens[:, 0]]
            else:
                found += [tokens, tokens.mean((1, 2))]
        return found

    def use_compiler(self, backend: str | Compiler) -> None:
        """Compile the whole network, as timm's own benchmark does."""
        self.network.compile(backend=backend, dynamic=False)


def require_equal(name: str, ours: nn.Module, twin: nn.Module, image: Tensor) -> None:
    """Compare the features of images [B, 3, side, side] of the nominal size, in evaluation mode.

    Raises RunError if they differ: a bench of different functions would say nothing.
    """
    with torch.no_grad():
        pairs = zip(ours.eval()([image]), twin.eval()([image]), strict=True)
    for found, other in pairs:
        apart = float((found - other).norm() / found.norm())
        if not apart < NEAR:
            raise RunError(
                f"timm's network gives other features than our {name} with the same weights (they "
                f"differ by {apart:.1e} of their norm), so nothing was measured."
            )


def _network(config: SwinConfig | ViTConfig, flexible: bool) -> nn.Module:
    """Build timm's network as it is exported, but for its head and what it does with sizes."""
    name, arguments = architecture(config)
    swin = isinstance(config, SwinConfig)
    sizes = {"strict_img_size": not flexible} if swin else {"dynamic_img_size": flexible}
    changes: dict[str, Any] = {
        **sizes,
        "num_classes": 0,
        "global_pool": "",
        "drop_path_rate": 0.0,
        "norm_layer": partial(nn.LayerNorm, eps=config.norm_eps),
    }
    return timm.create_model(name, **arguments | changes)
