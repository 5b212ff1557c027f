"""Layers that the families share; every one acts on single tokens [N, C]."""

from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.base import Block, Logits, Packed
from leanvit.core.precision import full, unrounded
from leanvit.core.recompute import mlp_again
from leanvit.kernels.branches import fits
from leanvit.kernels.linear import Linear
from leanvit.kernels.mlp import mlp_branch


class LayerNorm(nn.LayerNorm):
    """Layer norm computed and returned in fp32 (or wider), eps 1e-6 as in DINO and EsViT's Swin."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis."""
        with unrounded(input):
            return functional.layer_norm(
                full(input), self.normalized_shape, self.weight, self.bias, self.eps
            )


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C] -> [N, C]."""
        found: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return found


class PreNormBlock(Block):
    """Attention and an MLP, each after a norm and beside a residual.

    attn: takes the normed tokens packed, and whether logits are wanted; gives [N, dim] and those of
    each view.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps)
        self.attn = attn
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = mlp

    def forward(
        self, packed: Packed, scales: tuple[Tensor, Tensor] | None, with_logits: bool
    ) -> tuple[Packed, list[Logits]]:
        """Run the block on the tokens of all views at once."""
        attended, logits = self.attend(packed, with_logits)
        x = residual(packed.x, attended, scales and scales[0])
        x = residual(x, mlp_of(packed, x, self.norm2, self.mlp), scales and scales[1])
        return packed.with_(x), logits

    def attend(self, packed: Packed, with_logits: bool) -> tuple[Tensor, list[Logits]]:
        """Return the attention's branch [N, dim] and, if asked, the logits of each view."""
        found: tuple[Tensor, list[Logits]] = self.attn(
            packed.with_(self.norm1(packed.x)), with_logits
        )
        return found


def mlp_of(packed: Packed, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
    """Return mlp(norm(x)) of tokens [N, C]; on the CPU some of them at a time.

    Kept for the backward pass or done again there, as `packed` says.
    """
    if isinstance(mlp, Mlp) and fits(x, mlp, norm, mlp.fc1, mlp.fc2):
        assert isinstance(norm, LayerNorm)
        return mlp_branch(x, norm, mlp.fc1, mlp.fc2, keep=not packed.mlps_again)
    found: Tensor = mlp_again(norm, mlp, x) if packed.mlps_again else mlp(norm(x))
    return found


def residual(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """Return x + scale * branch, with scale [N, 1] from stochastic depth or None for one."""
    if scale is None:
        return x + branch
    same = x.dtype == branch.dtype == scale.dtype
    return x.addcmul(branch, scale) if same else x + branch * scale


def init_linear(module: nn.Module) -> None:
    """Initialise linear layers as DINO and Swin do: truncated normal 0.02, bias zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
