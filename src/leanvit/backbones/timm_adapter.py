"""Any image network of timm behind the contract of every backbone.

What a network gives is decided by what timm says of it: `feature_info` lists the stages,
`output_fmt` and `num_prefix_tokens` say how the final features lie, `head_hidden_size` whether its
own head pools them at their width. Options that let a network take several sizes are set where its
class has them. Parameters keep timm's names, under `network.model.`.

Letters as in base.py; L of `Ask.drop` counts the blocks with stochastic depth.
"""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, cast

import timm
import torch
from timm.layers.drop import DropPath as TimmDropPath
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from leanvit.backbones.base import Ask, Backbone, Features, Manner, Tokens, call_block
from leanvit.backbones.timm_blocks import blocks_of, in_manner, mlps_of, stages_of
from leanvit.config import TimmConfig
from leanvit.core.precision import full
from leanvit.core.random import seeded
from leanvit.core.recompute import Again, Remembering
from leanvit.core.syncbn import SyncBatchNorm


class DropPath(nn.Module, Remembering):
    """Stochastic depth of a branch; which images keep it is said from outside.

    The branches of a block take its two masks in turn.
    """

    scales: Tensor | None = None
    """[2, B] 0 where an image drops a branch, 1 / (1 - rate) else; None: 1 for all of them.

    In fp64, whatever the network is in. Blocks that differ in their rate alone are compiled once,
    since the rate itself is not read in the forward pass."""
    turn: int = 0

    def __init__(self, row: int, branch: int, rate: float) -> None:
        super().__init__()
        self.row, self.branch, self.rate = row, branch, rate

    def begin(self, drop: Tensor | None) -> None:
        """Take the masks [L, 2, B] of the coming pass, or none."""
        self.scales = None if drop is None else drop[self.row].double() / (1 - self.rate)
        self.turn = self.branch

    def remember(self) -> Again:
        """Return a context with the masks and the turn of now."""
        scales, turn = self.scales, self.turn

        @contextmanager
        def again() -> Iterator[None]:
            then = self.scales, self.turn
            self.scales, self.turn = scales, turn
            try:
                yield
            finally:
                self.scales, self.turn = then

        return again

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]: 0 where an image drops the branch, 1 / (1 - rate) times x else."""
        if self.scales is None:
            return x
        scale = self.scales[self.turn % 2].to(x.dtype)
        self.turn += 1
        if len(x) != len(scale):
            raise RuntimeError("it drops parts of images: set backbone.drop_path to 0")
        return x * scale.view(-1, *[1] * (x.ndim - 1))


class SyncBatchNormAct(SyncBatchNorm):
    """Batch norm with the activation that timm keeps inside it."""

    def __init__(self, norm: BatchNormAct2d, **options: Any) -> None:
        super().__init__(norm.num_features, **options)
        self.act = norm.act

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> [N, C, ...]"""
        out: Tensor = self.act(super().forward(input))
        return out


def _synced(norm: _BatchNorm) -> SyncBatchNorm:
    """Return the same batch norm, parameters and buffers included, over all processes."""
    options: dict[str, Any] = {
        name: getattr(norm, name) for name in ("eps", "momentum", "affine", "track_running_stats")
    }
    if isinstance(norm, BatchNormAct2d):
        new: SyncBatchNorm = SyncBatchNormAct(norm, **options)
    else:
        new = SyncBatchNorm(norm.num_features, **options)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(norm, name))
    return new


@lru_cache
def options_of(name: str) -> frozenset[str]:
    """Return the options of the class of timm's network, its parents' included."""
    with seeded(0, "skeleton"), torch.device("meta"):
        kind = type(timm.create_model(name))
    return frozenset(name for c in kind.__mro__ for name in inspect.signature(c).parameters)


def heads_of(name: str) -> int:
    """Return the attention heads of timm's plain ViT; 0 if timm has none by this name."""
    if not timm.is_model(name):
        return 0
    with seeded(0, "skeleton"), torch.device("meta"):
        model: Any = timm.create_model(name)
    heads = (getattr(each, "num_heads", 0) for each in model.modules())
    return next((int(count) for count in heads if count), 0)


def require_architecture(name: str) -> None:
    """Raise ValueError, with the nearest names, if timm has no network of a name without a tag."""
    if timm.is_model(name):
        return
    near = " or ".join(map(repr, get_close_matches(name, timm.list_models(), n=3)))
    raise ValueError(
        f"timm {timm.__version__} has no network {name!r}"
        f"{f'; did you mean {near}?' if near else '.'} timm.list_models() lists them."
    )


def usual_size(name: str) -> int:
    """Return the side of the images, in pixels, that timm's network of a name was made for."""
    usual = timm.get_pretrained_cfg(name)
    return int(usual.input_size[-1]) if usual is not None else 224


def head_names(config: TimmConfig) -> frozenset[str]:
    """Return the parameters and buffers of timm's own network that are not in ours: its head."""
    with seeded(0, "skeleton"), torch.device("meta"):
        theirs, ours = timm.create_model(config.name), Network(config).model
    return frozenset(theirs.state_dict()) - frozenset(ours.state_dict())


def _require_untagged(name: str) -> None:
    arch, _, tag = name.partition(".")
    require_architecture(arch)
    if tag:
        raise ValueError(
            f"{name!r} names trained weights of timm; a backbone of a run begins untrained: take "
            f"{arch!r}, or start from these weights: --init timm:{name}."
        )


def size_options(config: TimmConfig) -> dict[str, Any]:
    """Return the options that let a network take several sizes, of those that its class has."""
    asked: dict[str, Any] = {
        "img_size": config.image_size,
        "dynamic_img_size": True,
        "dynamic_img_pad": True,
        "strict_img_size": False,
    }
    known = options_of(config.name)
    return {option: value for option, value in asked.items() if option in known}


def _create(config: TimmConfig) -> nn.Module:
    """Build timm's network as leanvit needs it: no classifier, no draws of its own."""
    _require_untagged(config.name)
    chosen = size_options(config)
    if "drop_path_rate" in options_of(config.name):
        chosen["drop_path_rate"] = config.drop_path
    model: Any = timm.create_model(config.name, num_classes=0, **chosen)
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(f"timm's {config.name} does not give the features of its stages.")
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm):
            model.set_submodule(name, _synced(module))
        elif isinstance(module, _DropoutNd):
            module.p = 0.0
        if getattr(module, "drop_rate", 0.0):  # what some hand to dropout as a function
            module.drop_rate = 0.0
    return cast(nn.Module, model)


def _take_over_drops(model: nn.Module) -> list[float]:
    """Put masks from outside in place of timm's draws; return the rate of each block.

    Branches with the same parent and rate are one block.
    """
    rates: list[float] = []
    for block in list(model.modules()):
        rows: dict[float, list[str]] = {}
        for name, child in block.named_children():
            if isinstance(child, TimmDropPath):
                rows.setdefault(float(child.drop_prob), []).append(name)
        for rate, names in rows.items():
            for branch, name in enumerate(names):
                block.set_submodule(name, DropPath(len(rates), branch, rate))
            rates.append(rate)
    return rates


def _spare(model: Any) -> None:
    """Pass on what timm says of parameters that weight decay leaves alone."""
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    for name, _ in model.named_parameters():
        if name in listed:
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            module.undecayed = getattr(module, "undecayed", frozenset()) | {leaf}


class Network(nn.Module):
    """timm's network, read as tokens: what compilation wraps.

    ViTs resize their position tables in a way whose gradient torch 2.11 compiles for fixed sizes
    alone: `compile(dynamic=False)`.
    """

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        model: Any = _create(config)
        self.model = model
        self.blocks = blocks_of(model) or stages_of(model)
        self.mlps = mlps_of(model, self.blocks)
        self.own_head = model.head_hidden_size == model.num_features
        if not self.own_head:
            model.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        self.rates = _take_over_drops(model)
        if config.drop_path and not self.rates:
            raise ValueError(
                f"timm's {config.name} has no stochastic depth: set backbone.drop_path to 0."
            )
        _spare(model)
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        # the norm of the final features, where the network has one; the head's own comes after it
        self.how: dict[str, Any] = {"norm": hasattr(model, "norm"), "output_fmt": "NCHW"}
        known = inspect.signature(model.forward_intermediates).parameters
        self.with_prefix = self.prefix > 0 and "return_prefix_tokens" in known
        if self.with_prefix:
            self.how["return_prefix_tokens"] = True

    def forward(
        self,
        image: Tensor,
        drop: Tensor | None,
        stages: Collection[int],
        manner: Manner | None = None,
    ) -> tuple[Tokens, list[Tokens]]:
        """Return the final tokens of [B, 3, height, width] and those of stages, in their order."""
        modules = () if drop is None else self.modules()
        branches = [module for module in modules if isinstance(module, DropPath)]
        try:
            for branch in branches:
                branch.begin(drop)
            if manner is None or manner == Manner():
                return self._read(image, stages)
            with in_manner(self.model, self.blocks, self.mlps, manner):
                return self._read(image, stages)
        finally:
            for branch in branches:
                branch.begin(None)

    def _read(self, image: Tensor, stages: Collection[int]) -> tuple[Tokens, list[Tokens]]:
        last = len(self.model.feature_info) - 1
        indices = sorted({*stages, last})
        final, maps = self.model.forward_intermediates(image, indices=indices, **self.how)
        found = {}
        for index, entry in zip(indices, maps, strict=True):
            grid, prefix = entry if self.with_prefix else (entry, None)
            found[index] = Tokens(
                full(grid.permute(0, 2, 3, 1)), None if prefix is None else full(prefix)
            )
        return self._tokens(final, found[last]), [found[index] for index in stages]

    def _tokens(self, final: Any, last: Tokens) -> Tokens:
        """Return timm's final features as tokens; the map of the last stage says how they lie."""
        if not isinstance(final, Tensor):
            raise RuntimeError("it ends in more than one map of features")
        if final.ndim == 4:
            return Tokens(full(final if self.channels_last else final.permute(0, 2, 3, 1)), None)
        _, h, w, _ = last.grid.shape
        if final.shape[1] != self.prefix + h * w:
            raise RuntimeError(
                f"timm does not say which of its {final.shape[1]} tokens are the {h} x {w} regions"
            )
        prefix, grid = final[:, : self.prefix], final[:, self.prefix :]
        return Tokens(full(grid.unflatten(1, (h, w))), full(prefix) if self.prefix else None)

    def pool(self, tokens: Tokens, flat: bool) -> Tensor:
        """Return what timm's head pools of final tokens [B, D]."""
        x = tokens.grid
        if flat:
            x = tokens.sequence()
        elif not self.channels_last:
            x = x.permute(0, 3, 1, 2)
        return full(self.model.forward_head(x, pre_logits=True))


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a network made of images of one size."""

    refusal: str = ""
    """Why it cannot take them."""
    flat: bool = False
    """Whether timm's final features are a sequence."""


def _require_places(module: nn.Module, given: Any, out: Any) -> None:
    """Refuse an empty map, which only a real convolution would."""
    if isinstance(out, Tensor) and not out.numel():
        raise RuntimeError(f"{type(module).__name__} would be left with an empty map")


@lru_cache(maxsize=256)
def _trial(config: TimmConfig, height: int, width: int) -> _Trial:
    """Find out, without computing anything, whether a network takes images of a size."""
    with seeded(0, "skeleton"), torch.device("meta"), torch.no_grad():
        try:
            network = Network(config).eval()
            for module in network.modules():
                module.register_forward_hook(_require_places)
            image, rows = torch.empty(2, 3, height, width), len(network.rates)
            drop = torch.empty(rows, 2, 2, dtype=torch.bool) if rows else None
            final, _ = network(image, drop, range(len(network.model.feature_info)))
            stride = network.model.feature_info[-1]["reduction"]
            for side, cells in zip((height, width), final.grid.shape[1:3], strict=True):
                if (cells - 1) * stride >= side:
                    return _Trial(refusal=f"{cells} regions a side do not lie on {side} pixels")
            return _Trial(flat=network.model.forward_features(image).ndim == 3)
        except (RuntimeError, AssertionError) as error:
            return _Trial(refusal=str(error).partition("\n")[0] or "it does not say why")


class TimmNetwork(Backbone):
    """A network of timm.

    grid: the features of timm's `forward_features`, normalised where timm normalises them before
    it pools; pooled: what timm's own head pools of them, or their mean where that head makes them
    wider first, as in MobileNets, and is left out. hidden: the stages, or the blocks of plain
    transformers, that `feature_info` lists, through the final norm where timm applies it to them:
    `norm` has nothing left to do. Statistics of batch norm are those of one size of views and all
    processes.
    """

    config: TimmConfig

    def __init__(self, config: TimmConfig) -> None:
        super().__init__(config)
        trial = _trial(config, config.image_size, config.image_size)
        if trial.refusal:
            raise ValueError(
                f"timm's {config.name} cannot be built for images of {config.image_size} x "
                f"{config.image_size} (backbone.image_size): {trial.refusal.rstrip('.')}."
            )
        self.flat = trial.flat
        self.network = Network(config)
        model = self.network.model
        self.norm = nn.Identity()
        kinds = [(info["num_chs"], info["reduction"]) for info in model.feature_info]
        ends = [i for i, kind in enumerate(kinds) if kinds[i + 1 : i + 2] != [kind]]
        self.stage_ends = tuple(ends)
        self.stage_dims = tuple(kinds[end][0] for end in ends)
        self.stage_strides = tuple(kinds[end][1] for end in ends)

    @property
    def feature_dim(self) -> int:
        """D of the final features, which may be wider than the last stage's."""
        return int(self.network.model.num_features)

    def blocks(self) -> Iterator[Network]:
        """Yield the whole network: timm's stages do not run one by one."""
        yield self.network

    def require_manner(self, manner: Manner) -> None:
        """Raise ValueError where no block or no MLP of the network is known."""
        name, network = f"timm's {self.config.name}", self.network
        if manner.call is not call_block and not network.blocks:
            raise ValueError(
                f"{name} has no blocks: set train.recompute and train.compile to none."
            )
        if manner.mlps_again and not network.mlps:
            raise ValueError(
                f"{name} has no MLPs that could be computed again: set train.recompute to full, "
                f"for whole blocks, or to none."
            )

    def drop_rates(self) -> list[float]:
        """Return the rate of each block that has stochastic depth, as timm set it."""
        return self.network.rates

    def pool(self, tokens: Tokens) -> Tensor:
        """Return what timm's head pools, or the mean of tokens that are not as it wants them."""
        whole = (tokens.prefix is None) == (self.network.prefix == 0)
        if whole and self.network.own_head and tokens.grid.shape[-1] == self.feature_dim:
            return self.network.pool(tokens, self.flat)
        return super().pool(tokens)

    def _traverse(self, views: Sequence[Tensor], ask: Ask) -> list[Features]:
        stages = [index % self.depth for index in ask.hidden]
        counts = [view.shape[0] for view in views]
        drops: Sequence[Tensor | None] = [None] * len(views)
        if ask.drop is not None:
            drops = ask.drop.split(counts, 2)
        found = []
        for view, drop in zip(views, drops, strict=True):
            final, hidden = self.network(view, drop, stages, self.manner)
            found.append(Features(self.pool(final), final.grid, final.prefix, tuple(hidden)))
        return found

    def param_layers(self) -> Iterator[tuple[str, int]]:
        """Yield names and depths; what comes before a stage belongs to it, but for the first."""
        model = self.network.model
        places = {name: place for place, (name, _) in enumerate(model.named_modules())}
        stages = [f"{info['module']}." for info in model.feature_info]
        inside = [[p for n, p in places.items() if f"{n}.".startswith(stage)] for stage in stages]
        for name, _ in model.named_parameters():
            place = places[name.rpartition(".")[0]]
            depth = 1 + sum(max(stage, default=-1) < place for stage in inside)
            yield f"network.model.{name}", 0 if place < min(inside[0], default=0) else depth

    def require_size(self, height: int, width: int) -> None:
        """Raise ValueError if the network cannot take views of so many pixels."""
        if torch.compiler.is_compiling():
            return  # a graph's stand-ins for sizes have no place in the memory of trials
        config, size = self.config, self.config.image_size
        refusal = _trial(config, height, width).refusal
        if not refusal:
            return
        sides = range(self.stride, size, self.stride)
        least = next((s for s in sides if not _trial(config, s, s).refusal), size)
        raise ValueError(
            f"timm's {config.name}, built for {size} x {size} pixels (backbone.image_size), cannot "
            f"take {height} x {width}; the smallest square that it takes is {least} x {least} "
            f"({refusal.rstrip('.')})."
        )
