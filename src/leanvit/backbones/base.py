"""The contract of every backbone, and the only loop over blocks.

Letters: B images of a view, h and w rows and columns of its token grid, P prefix (class) tokens,
D channels, H heads, T tokens that attend to each other, W windows, L blocks,
S samples (images of all views), N tokens of all views.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.export import register_dataclass

from leanvit.config import BackboneConfig
from leanvit.core.tracing import once_per_size
from leanvit.kernels.windows import Shapes


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants besides the final features."""

    hidden: tuple[int, ...] = ()
    """Outputs of these blocks; -1 is the last."""
    logits: tuple[int, ...] = ()
    """Attention logits of these blocks and where their tokens lie."""
    keep: Tensor | None = None
    """[B, n] visible patches of the first view, row-major from 0; its others are dropped before the
    first block."""
    fill: tuple[Tensor, Tensor] | None = None
    """Mask [B, h, w] (true: hidden) and the token [D] put in its place after patch embedding."""
    drop: Tensor | None = None
    """[L, 2, S] stochastic depth: true where a sample keeps the attention and the MLP branch.

    L is the number of `drop_rates`.
    """
    neighbors: Tensor | None = None
    """[L] the one neighbour, 0..7 by rows, that the chunks of a block see; None: all eight."""


PLAIN: Final = Ask()
"""Nothing but the final features, of everything."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The output of a block for one view."""

    grid: Tensor
    """[B, h, w, D]; with `Ask.keep`, of the first view, [B, 1, n, D] in the order asked for."""
    prefix: Tensor | None
    """[B, P, D], or None."""

    def sequence(self) -> Tensor:
        """Return [B, P + h * w, D], prefix first."""
        grid = self.grid.flatten(1, 2)
        return grid if self.prefix is None else torch.cat([self.prefix, grid], 1)


@dataclass(frozen=True, slots=True)
class Logits:
    """Attention logits of one block for one view; softmax over the last axis is the attention."""

    values: Tensor
    """[B, W, H, T, T], with position bias and window mask; W is 1 without windows."""
    where: Tensor
    """[1 or B, W, T] each token's number in `Tokens.sequence()` of the whole image, -1: padding."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a backbone says of one view."""

    pooled: Tensor
    """[B, D] the view feature: what a probe reads."""
    grid: Tensor
    """[B, h, w, D] region features after the final norm."""
    prefix: Tensor | None
    """[B, P, D] class and register tokens after the final norm; None for window models."""
    hidden: tuple[Tokens, ...] = ()
    """In the order of `Ask.hidden`."""
    logits: tuple[Logits, ...] = ()
    """In the order of `Ask.logits`."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Tokens of all views in one matrix: view after view, image after image, prefix first.

    What acts on single tokens (norms, MLPs, projections) runs once on `x` for all views.
    """

    x: Tensor
    """[N, D]"""
    shapes: Shapes
    """(B, h, w) of each view."""
    prefix: int = 0
    """P."""
    plan: Any = None
    """What a family worked out from the shapes for the blocks of a stage: its layouts."""
    neighbor: Tensor | None = None
    """[] the one neighbour that chunks see (Vision Longformer); None: all."""
    mlps_again: bool = False
    """Whether the backward pass computes MLPs again."""

    def with_(self, x: Tensor) -> "Packed":
        """Return the same packing of other token values [N, D']."""
        return replace(self, x=x)

    def filled(self, fill: tuple[Tensor, Tensor] | None) -> "Packed":
        """Return the tokens of one view, without a prefix, with `Ask.fill` put in."""
        return self if fill is None else self.with_(hide(self.x, fill, self.shapes[0]))

    def views(self, x: Tensor | None = None) -> list[Tensor]:
        """Return one [B, P + h * w, D] for each view, of `x` [N, D] or of the tokens."""
        x = self.x if x is None else x
        counts = [b * (self.prefix + h * w) for b, h, w in self.shapes]
        parts = x.split(counts) if len(counts) > 1 else (x,)  # whose gradient would be a copy
        return [
            part.view(b, -1, x.shape[1]) for part, (b, _, _) in zip(parts, self.shapes, strict=True)
        ]

    def tokens(self, x: Tensor | None = None) -> list[Tokens]:
        """Return prefix and grid of each view."""
        found = []
        for part, (b, h, w) in zip(self.views(x), self.shapes, strict=True):
            grid = part[:, self.prefix :].reshape(b, h, w, part.shape[-1])
            found.append(Tokens(grid, part[:, : self.prefix] if self.prefix else None))
        return found

    def per_token(self, samples: Tensor) -> Tensor:
        """Spread values of the samples [..., S] over their tokens: [..., N]."""
        places = token_samples(self.shapes, self.prefix, samples.device)
        return samples.index_select(-1, places)


def end_to_end(parts: Sequence[Tensor]) -> Tensor:
    """Return the tokens of all views [N, D]; of a single view they are not copied."""
    return torch.cat([*parts]) if len(parts) > 1 else parts[0]


@once_per_size
def token_samples(shapes: Shapes, prefix: int, device: torch.device) -> Tensor:
    """Return [N] the sample that each token of a packing belongs to."""
    counts = torch.cat([torch.full((b,), prefix + h * w) for b, h, w in shapes])
    return torch.arange(len(counts)).repeat_interleave(counts).to(device)


def hide(x: Tensor, fill: tuple[Tensor, Tensor], shape: tuple[int, int, int]) -> Tensor:
    """Put the token of `Ask.fill` where its mask is true; x [..., D] of B * h * w tokens.

    Raises ValueError if the mask is not [B, h, w].
    """
    mask, token = fill
    if tuple(mask.shape) != shape:
        raise ValueError(f"The mask of fill is {tuple(mask.shape)}; expected {shape}: [B, h, w].")
    return torch.where(mask.reshape(*x.shape[:-1], 1), token.to(x.dtype), x)


for _dataclass in (Ask, Tokens, Logits, Features):
    register_dataclass(_dataclass)  # so that graphs can take and return them


class Block(nn.Module):
    """One transformer block on packed tokens."""

    def forward(
        self, packed: Packed, scales: tuple[Tensor, Tensor] | None, with_logits: bool
    ) -> tuple[Packed, list[Logits]]:
        """Return the new tokens and, if asked, the logits of each view.

        scales: [N, 1] factors of the attention and of the MLP branch, or None for ones.
        """
        raise NotImplementedError


def call_block(block: nn.Module, /, *args: Any, **named: Any) -> Any:
    """Call a block; the words are those of timm's blocks."""
    return block(*args, **named)


@dataclass(frozen=True, slots=True)
class Manner:
    """How blocks run, and not what they compute: a training step sets it, see `train.passes`."""

    call: Callable[..., Any] = call_block
    """Called in place of `call_block`."""
    mlps_again: bool = False
    """Whether the backward pass computes MLPs again, so that it keeps no hidden rows."""


class Backbone(nn.Module):
    """A vision backbone. Families implement `embed`, `blocks` and `after_block`."""

    can: ClassVar[frozenset[str]] = frozenset()
    """Which of keep, fill, logits and neighbors a caller may ask for."""

    undecayed: ClassVar[frozenset[str]] = frozenset()
    """Own parameters that weight decay leaves alone: where things lie, not what they are."""

    stage_ends: tuple[int, ...]
    """Last block of each stage: what a feature pyramid asks for."""
    stage_dims: tuple[int, ...]
    """Channels of each stage."""
    stage_strides: tuple[int, ...]
    """Pixels between neighbouring tokens of each stage."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of the channels that the input is normalised with, pixels in [0, 1]."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of the channels."""
    norm: nn.Module
    """Final norm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.manner = Manner()

    def embed(self, views: Sequence[Tensor], ask: Ask) -> Packed:
        """Return the tokens that enter the first block."""
        raise NotImplementedError

    def blocks(self) -> Iterable[nn.Module]:
        """Yield the blocks in order: what compilation, recomputation and sharding wrap."""
        raise NotImplementedError

    def after_block(self, index: int, packed: Packed) -> Packed:
        """Return what enters the next block: merged patches at the end of a stage."""
        return packed

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the view feature [B, D] of the normed tokens; the mean of the grid by default."""
        return tokens.grid.mean((1, 2))

    def param_layers(self) -> Iterator[tuple[str, int]]:
        """Yield every parameter's name and depth: 0 embedding, 1..L blocks, L + 1 final norm."""
        raise NotImplementedError

    def drop_rates(self) -> list[float]:
        """Return the stochastic-depth rate of each block: linear from 0 to `drop_path`."""
        last = max(self.depth - 1, 1)
        return [self.config.drop_path * index / last for index in range(self.depth)]

    @property
    def draws_neighbors(self) -> bool:
        """Whether a learner is to be given `Ask.neighbors`."""
        return False

    @property
    def feature_dim(self) -> int:
        """D of the final features."""
        return self.stage_dims[-1]

    @property
    def stride(self) -> int:
        """Pixels between neighbouring tokens of the final grid."""
        return self.stage_strides[-1]

    @property
    def depth(self) -> int:
        """L."""
        return self.stage_ends[-1] + 1

    def forward(self, views: Sequence[Tensor], ask: Ask = PLAIN) -> list[Features]:
        """Return the features of each view [B, 3, height, width]; sizes may differ between views.

        Raises ValueError if something is asked that this backbone cannot give.
        """
        self._check(views, ask)
        return self._traverse(views, ask)

    def _traverse(self, views: Sequence[Tensor], ask: Ask) -> list[Features]:
        packed = self.embed(views, ask)
        want_hidden = [index % self.depth for index in ask.hidden]
        want_logits = [index % self.depth for index in ask.logits]
        hidden: dict[int, list[Tokens]] = {}
        logits: dict[int, list[Logits]] = {}
        rates = self.drop_rates()
        for index, block in enumerate(self.blocks()):
            scales = self._scales(packed, ask.drop, index, rates[index])
            if ask.neighbors is not None:
                packed = replace(packed, neighbor=ask.neighbors[index])
            if self.manner.mlps_again:
                packed = replace(packed, mlps_again=True)
            packed, block_logits = self.manner.call(block, packed, scales, index in want_logits)
            if index in want_hidden:
                hidden[index] = packed.tokens()
            if index in want_logits:
                logits[index] = block_logits
            packed = self.after_block(index, packed)
        return [
            Features(
                pooled=self.pool(tokens),
                grid=tokens.grid,
                prefix=tokens.prefix,
                hidden=tuple(hidden[index][view] for index in want_hidden),
                logits=tuple(logits[index][view] for index in want_logits),
            )
            for view, tokens in enumerate(packed.tokens(self.norm(packed.x)))
        ]

    def features(self, images: Tensor, *, stages: bool = False) -> Features:
        """Return the features of one batch of images [B, 3, height, width].

        With stages, `hidden` holds the tokens at the end of each stage, before the final norm
        where the network has it outside its stages: what a feature pyramid is built on.
        """
        (found,) = self([images], Ask(hidden=self.stage_ends if stages else ()))
        return found

    def require_size(self, height: int, width: int) -> None:
        """Raise ValueError if the network cannot take views of so many pixels."""
        if min(height, width) < self.config.patch:
            raise ValueError(
                f"A view of {(height, width)} pixels is smaller than one patch of "
                f"{self.config.patch}."
            )

    def require_manner(self, manner: Manner) -> None:
        """Raise ValueError if blocks cannot run so."""

    def _scales(
        self, packed: Packed, drop: Tensor | None, index: int, rate: float
    ) -> tuple[Tensor, Tensor] | None:
        """Turn a keep mask into factors 0 or 1 / (1 - rate), so that the expectation stays."""
        if drop is None or rate == 0:
            return None
        kept = drop[index].to(packed.x.dtype) / (1 - rate)
        first, second = packed.per_token(kept)[..., None]
        return first, second

    def _check(self, views: Sequence[Tensor], ask: Ask) -> None:
        asked = {
            "keep": ask.keep is not None,
            "fill": ask.fill is not None,
            "logits": ask.logits,
            "neighbors": ask.neighbors is not None,
        }
        name = type(self).__name__
        for what, wanted in asked.items():
            if wanted and what not in self.can:
                raise ValueError(f"{name} cannot serve {what!r}; it can: {sorted(self.can)}.")
        if ask.fill is not None and len(views) != 1:
            raise ValueError(f"fill belongs to one view; {len(views)} were given.")
        for index in (*ask.hidden, *ask.logits):
            if not -self.depth <= index < self.depth:
                raise ValueError(f"{name} has {self.depth} blocks; there is no block {index}.")
        if not views:
            raise ValueError("There is no view; expected at least one.")
        for view in views:
            if view.ndim == 4 and not view.shape[0]:
                raise ValueError("A view has no images; expected at least one.")
            if view.ndim != 4 or view.shape[1] != 3 or not view.is_floating_point():
                raise ValueError(
                    f"A view is a floating-point tensor [B, 3, height, width], normalised, not "
                    f"{view.dtype} {tuple(view.shape)}."
                )
            self.require_size(*view.shape[-2:])
        if ask.keep is not None and (ask.keep.ndim != 2 or len(ask.keep) != len(views[0])):
            raise ValueError(
                f"keep has shape {tuple(ask.keep.shape)}; expected [{len(views[0])}, n]: the "
                f"visible patches of each image of the first view."
            )
        samples = sum(view.shape[0] for view in views)  # len() would fix an exported graph's
        expected = (len(self.drop_rates()), 2, samples)
        if ask.drop is not None and tuple(ask.drop.shape) != expected:
            raise ValueError(
                f"drop has shape {tuple(ask.drop.shape)}; expected {expected}: blocks, branches, "
                f"images of all views."
            )
        if ask.neighbors is not None and tuple(ask.neighbors.shape) != (self.depth,):
            raise ValueError(
                f"neighbors has shape {tuple(ask.neighbors.shape)}; expected {(self.depth,)}: one "
                f"for each block."
            )


class StagedBackbone(Backbone):
    """A backbone of `stages`, each an `embed` and `blocks`."""

    stages: nn.ModuleList

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of all stages in order."""
        for stage in self.stages:
            yield from stage.blocks  # type: ignore[misc]

    def param_layers(self) -> Iterator[tuple[str, int]]:
        """Yield names and depths; a later embedding belongs to the last block before it."""
        starts = [0, *(end + 1 for end in self.stage_ends)]
        for name, _ in self.named_parameters():
            first, stage, part, block, *_ = (*name.split("."), "", "")
            if first == "norm":
                yield name, self.depth + 1
            else:
                yield name, starts[int(stage)] + (int(block) + 1 if part == "blocks" else 0)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Let a network see as it does in use: batch norm takes its running statistics, moves none."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
