"""D2-MAE: reconstruction trains the lower blocks, distillation all of them.

arXiv 2404.12210. The decoder reads an inner block; a further block, of which only the norm and the
projection to queries and keys exist, makes the attention logits that the teacher is imitated with.

Letters: B images, H heads, T visible tokens, D channels.
"""

from dataclasses import replace

from torch import Tensor, nn

from leanvit.backbones.base import Ask, Features, Tokens
from leanvit.backbones.layers import LayerNorm, init_linear
from leanvit.config import BackboneConfig, D2maeConfig
from leanvit.kernels.attention import attention_logits
from leanvit.kernels.linear import Linear
from leanvit.methods.dmae import DMAE
from leanvit.methods.mae import Seen


class LogitBlock(nn.Module):
    """The norm and the projection to queries and keys of a block that has nothing else."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(dim, eps)
        self.qk = Linear(dim, 2 * dim)
        init_linear(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scaled logits [B, H, T, T] of tokens [B, T, D], in fp32 or wider."""
        b, t, _ = tokens.shape
        q, k = self.qk(self.norm1(tokens)).view(b, t, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return attention_logits(q, k)


class D2MAE(DMAE):
    """D-MAE with the two tasks apart."""

    config: D2maeConfig

    def __init__(self, config: D2maeConfig, backbone: BackboneConfig) -> None:
        super().__init__(config, backbone)
        if config.decode_from > self.backbone.depth:
            raise ValueError(
                f"The decoder cannot read block {config.decode_from} (method.decode_from); the "
                f"backbone has {self.backbone.depth}."
            )
        vit = self.backbone.config
        self.logit_block = LogitBlock(vit.dim, vit.heads, vit.norm_eps)

    def logit_depth(self) -> int:
        """Return the number of the backbone's blocks, and of the one that only makes logits."""
        return self.backbone.depth + 1

    def ask(self, seen: Seen) -> Ask:
        """Ask for the decoder's block and the last, besides what is compared."""
        asked = super().ask(seen)
        inner = tuple(layer for layer in asked.logits if layer < self.backbone.depth)
        return replace(asked, logits=inner, hidden=(*asked.hidden, self.config.decode_from - 1, -1))

    def read(self, found: Features) -> Tokens:
        """Return the tokens that the decoder reads: those of the inner block, normed."""
        tokens = found.hidden[-2]
        return Tokens(self.backbone.norm(tokens.grid), self.backbone.norm(tokens.prefix))

    def logits(self, found: Features) -> list[Tensor]:
        """Return attention logits, those of the further block where it is compared."""
        inner = iter(super().logits(found))
        further = self.backbone.depth
        return [
            self.logit_block(found.hidden[-1].sequence()) if layer == further else next(inner)
            for layer, _ in self.attention
        ]
