"""The published EsViT step, and DINO's, in the official order of operations: what ours is beside.

Nothing is saved here that the official code does not save: one forward a size of view, windows by
padding, rolling and cutting, masks anew in every shifted block, attention held for the backward
pass, logits of every view and region for all prototypes, a log-softmax for every pair of views,
norms that the host reads tensor by tensor, averages one tensor after another. Networks have the
names of ours and take their weights. Do not improve this file: ratios are ratios to it.

Letters: B images of a size, h and w rows and columns of the map, N = h * w tokens, T tokens of a
window, W windows of an image, H heads, C channels, K prototypes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanvit.backbones.swin import relative_position_index
from leanvit.config import AdamWConfig, DinoConfig, HeadConfig, RunConfig, SwinConfig
from leanvit.core.random import generator
from leanvit.data.batch import ViewBatch
from leanvit.kernels.windows import MASKED
from leanvit.methods.base import Moment
from leanvit.methods.dino import DINO

EPS = 1e-6


def cut_windows(grid: Tensor, side: int) -> Tensor:
    """[B, h, w, C] -> [B * W, T, C]."""
    b, h, w, c = grid.shape
    cut = grid.view(b, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
    return cut.contiguous().view(-1, side * side, c)


def join_windows(windows: Tensor, side: int, h: int, w: int) -> Tensor:
    """[B * W, T, C] -> [B, h, w, C]."""
    cut = windows.view(-1, h // side, w // side, side, side, windows.shape[-1])
    return cut.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, h, w, windows.shape[-1])


def window_mask(h: int, w: int, side: int, shift: int, device: torch.device) -> Tensor:
    """Return what is added to the logits of the windows of a rolled map: [W, T, T]."""
    region = torch.zeros((1, h, w, 1))
    edges = slice(0, -side), slice(-side, -shift), slice(-shift, None)
    for number, (rows, columns) in enumerate((a, b) for a in edges for b in edges):
        region[:, rows, columns, :] = number
    cut = cut_windows(region, side).squeeze(-1)
    differ = cut.unsqueeze(1) - cut.unsqueeze(2)
    mask = differ.masked_fill(differ != 0, MASKED).masked_fill(differ == 0, 0.0)
    return mask.to(device)


class Attention(nn.Module):
    """Attention within windows."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        index = relative_position_index(window)
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B * W, T, C] -> the same."""
        windows, t, c = x.shape
        qkv = self.qkv(x).reshape(windows, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        logits = logits + bias.view(t, t, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            by_image = logits.view(-1, len(mask), self.heads, t, t)
            logits = (by_image + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.heads, t, t)
        out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(windows, t, c)
        found: Tensor = self.proj(out)
        return found


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> the same."""
        found: Tensor = self.fc2(self.act(self.fc1(x)))
        return found


class Block(nn.Module):
    """A Swin block; drop: its stochastic depth."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, ratio: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop = window, shift, 0.0
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)
        self.attn, self.mlp = Attention(dim, heads, window), Mlp(dim, int(dim * ratio))
        self.draws = generator(0, "drop path")

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        """[B, N, C] -> the same."""
        b, n, c = x.shape
        grid = self.norm1(x).view(b, h, w, c)
        grid = functional.pad(grid, (0, 0, 0, -w % self.window, 0, -h % self.window))
        rows, columns = grid.shape[1:3]
        mask = None
        if self.shift:
            grid = torch.roll(grid, (-self.shift, -self.shift), (1, 2))
            mask = window_mask(rows, columns, self.window, self.shift, x.device)
        attended = self.attn(cut_windows(grid, self.window), mask)
        grid = join_windows(attended, self.window, rows, columns)
        if self.shift:
            grid = torch.roll(grid, (self.shift, self.shift), (1, 2))
        if (rows, columns) != (h, w):
            grid = grid[:, :h, :w, :].contiguous()
        x = x + self._dropped(grid.view(b, n, c))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Leave the branch out for some images."""
        if not (self.drop and self.training):
            return branch
        keep = 1 - self.drop
        drawn = torch.from_numpy(self.draws.random((len(branch), 1, 1))).to(branch)
        return branch.div(keep) * (keep + drawn).floor_()


class Merging(nn.Module):
    """Joins 2 x 2 neighbours."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim, EPS)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        """[B, N, C] -> [B, N / 4, 2 C]."""
        grid = x.view(len(x), h, w, -1)
        if h % 2 or w % 2:
            grid = functional.pad(grid, (0, 0, 0, w % 2, 0, h % 2))
        corners = [grid[:, y::2, x::2, :] for x in (0, 1) for y in (0, 1)]
        joined = torch.cat(corners, -1)
        merged: Tensor = self.reduction(self.norm(joined.view(len(x), -1, joined.shape[-1])))
        return merged


class Stage(nn.Module):
    """Blocks at a resolution, and the merging after them."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        side = -(-(config.image_size // config.patch) // 2**stage)
        window, shift = config.window, config.window // 2
        if side <= window:
            window, shift = side, 0
        dim, heads = config.dim * 2**stage, config.heads[stage]
        self.blocks = nn.ModuleList(
            Block(dim, heads, window, shift * (index % 2), config.mlp_ratio)
            for index in range(config.depths[stage])
        )
        self.downsample = Merging(dim) if stage < len(config.depths) - 1 else None

    def forward(self, x: Tensor, h: int, w: int) -> tuple[Tensor, int, int]:
        """[B, N, C] -> what enters the next stage, with its rows and columns."""
        for block in self.blocks:
            x = block(x, h, w)
        if self.downsample is None:
            return x, h, w
        return self.downsample(x, h, w), -(-h // 2), -(-w // 2)


class Embedding(nn.Module):
    """Patches, normed."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.dim, EPS)

    def forward(self, images: Tensor) -> tuple[Tensor, int, int]:
        """[B, 3, height, width] -> [B, N, C], with rows and columns."""
        maps = self.proj(images)
        return self.norm(maps.flatten(2).transpose(1, 2)), *maps.shape[2:]


class Backbone(nn.Module):
    """Swin; one forward a size."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embed = Embedding(config)
        self.layers = nn.ModuleList(Stage(config, stage) for stage in range(len(config.depths)))
        dim = config.dim * 2 ** (len(config.depths) - 1)
        self.norm, self.avgpool = nn.LayerNorm(dim, EPS), nn.AdaptiveAvgPool1d(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, height, width] -> view feature [B, C] and regions [B, N, C]."""
        x, h, w = self.patch_embed(images)
        for layer in self.layers:
            x, h, w = layer(x, h, w)
        regions = self.norm(x)
        return torch.flatten(self.avgpool(regions.transpose(1, 2)), 1), regions

    def set_drop(self, most: float, draws: np.random.Generator) -> None:
        """Give the blocks a linearly growing stochastic depth."""
        blocks = [block for block in self.modules() if isinstance(block, Block)]
        for number, block in enumerate(blocks):
            block.drop, block.draws = most * number / max(len(blocks) - 1, 1), draws


class LastLayer(nn.Module):
    """A linear layer with weight norm, computed in every call."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.zeros(config.prototypes, config.bottleneck))
        self.weight_g = nn.Parameter(torch.ones(config.prototypes, 1), config.train_gain)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, K]."""
        return functional.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class Head(nn.Module):
    """MLP, unit bottleneck, prototypes."""

    def __init__(self, channels: int, config: HeadConfig) -> None:
        super().__init__()
        hidden, narrow = config.hidden, config.bottleneck
        self.mlp = nn.Sequential(
            *(nn.Linear(channels, hidden), nn.GELU()),
            *(nn.Linear(hidden, hidden), nn.GELU()),
            nn.Linear(hidden, narrow),
        )
        self.last_layer = LastLayer(config)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., K]."""
        logits: Tensor = self.last_layer(functional.normalize(self.mlp(x), dim=-1, p=2))
        return logits


class Network(nn.Module):
    """Backbone and heads; views come as a list, global ones first."""

    def __init__(self, backbone: SwinConfig, head: HeadConfig, *, regions: bool) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)
        channels = self.backbone.norm.normalized_shape[0]
        self.head = Head(channels, head)
        self.region_head = Head(channels, head) if regions else None

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor, list[int]]:
        """Return view logits, region logits, regions [all of them, C], and regions of each size."""
        sides = torch.tensor([view.shape[-1] for view in views])
        ends = torch.cumsum(torch.unique_consecutive(sides, return_counts=True)[1], 0)
        start, pooled, regions, counts = 0, [], [], []
        for end in ends:
            view, found = self.backbone(torch.cat(list(views[start:end])))
            b, n, c = found.shape
            pooled.append(view)
            regions.append(found.reshape(b * n, c))
            counts.append(n)
            start = int(end)
        every = torch.cat(regions)
        logits = None if self.region_head is None else self.region_head(every)
        return self.head(torch.cat(pooled)), logits, every, counts


class PlainStep:
    """Student, teacher, centers and optimiser of a method of ours, and the published step."""

    def __init__(self, method: DINO, config: RunConfig, at: Moment) -> None:
        assert isinstance(config.backbone, SwinConfig) and isinstance(config.method, DinoConfig)
        assert isinstance(config.optim, AdamWConfig)
        self.config, self.method, self.at = config, config.method, at
        self.device = torch.device(config.train.device)
        sizes = config.backbone, config.method.head
        self.student, self.teacher = (Network(*sizes, regions=method.regions) for _ in range(2))
        self.student.load_state_dict(method.student.state_dict())
        self.teacher.load_state_dict(method.teacher.state_dict())
        draws = generator(0, "drop path")
        self.student.backbone.set_drop(config.backbone.drop_path, draws)
        self.teacher.requires_grad_(False)
        self.student.to(self.device).train()
        self.teacher.to(self.device).train()
        k = config.method.head.prototypes
        self.center = torch.zeros(1, k, device=self.device)
        self.region_center = torch.zeros(1, k, device=self.device)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=0.0, betas=config.optim.betas)

    def _groups(self) -> list[dict[str, list[nn.Parameter]]]:
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                vector = name.endswith(".bias") or parameter.ndim == 1
                (free if vector else decayed).append(parameter)
        return [{"params": decayed}, {"params": free}]

    def step(self, batch: ViewBatch) -> float:
        """Train on a batch; return its loss."""
        optim, at = self.config.optim, self.at
        assert isinstance(optim, AdamWConfig)
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = at.value(optim.lr)
            group["weight_decay"] = at.value(optim.weight_decay) if number == 0 else 0.0
        views = [view for group in batch.groups for view in group]
        narrow = self.config.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
            seen, found = self.teacher(views[:2]), self.student(views)
            loss = self._loss(found, seen, len(views))
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(f"The loss is {value}.")
        self.optimizer.zero_grad()
        loss.backward()
        self._clip(optim.clip)
        self.optimizer.step()
        with torch.no_grad():
            momentum = at.value(self.method.teacher_momentum)
            both = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
            for ours, theirs in both:
                theirs.data.mul_(momentum).add_((1 - momentum) * ours.detach().data)
        return value

    def _clip(self, limit: float) -> None:
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                factor = limit / (parameter.grad.data.norm(2).item() + 1e-6)
                if factor < 1:
                    parameter.grad.data.mul_(factor)

    def _loss(
        self,
        found: tuple[Tensor, Tensor | None, Tensor, list[int]],
        seen: tuple[Tensor, Tensor | None, Tensor, list[int]],
        views: int,
    ) -> Tensor:
        """Return the loss over all pairs of a teacher's and another student's view."""
        temperature = self.at.value(self.method.teacher_temp)
        (logits, regions, features, counts), sharp = found, self.method.student_temp
        parts = (logits / sharp).chunk(views)
        targets = functional.softmax((seen[0] - self.center) / temperature, -1).detach().chunk(2)
        cut: list[int] = []
        if regions is not None and seen[1] is not None:
            images = len(seen[0]) // 2
            cut = [counts[0] * images] * 2 + [counts[-1] * images] * (views - 2)
            region_parts, region_features = (regions / sharp).split(cut), features.split(cut)
            region_targets = functional.softmax((seen[1] - self.region_center) / temperature, -1)
            goals, seen_features = region_targets.detach().chunk(2), seen[2].chunk(2)
        total, terms = logits.new_zeros(()), 0
        for which, target in enumerate(targets):
            for number, part in enumerate(parts):
                if number == which:
                    continue
                term = torch.sum(-target * functional.log_softmax(part, -1), -1).mean()
                if cut:
                    pair = region_parts[number], region_features[number]
                    there = goals[which], seen_features[which]
                    term = 0.5 * term + 0.5 * _region_term(*pair, *there, len(target))
                total, terms = total + term, terms + 1
        self._move_centers(seen)
        return total / terms

    @torch.no_grad()
    def _move_centers(self, seen: tuple[Tensor, Tensor | None, Tensor, list[int]]) -> None:
        momentum = self.method.center_momentum
        for center, logits in ((self.center, seen[0]), (self.region_center, seen[1])):
            if logits is not None:
                mean = torch.sum(logits, 0, keepdim=True) / len(logits)
                center.copy_(center * momentum + mean * (1 - momentum))


def _region_term(
    logits: Tensor, features: Tensor, target: Tensor, seen: Tensor, images: int
) -> Tensor:
    """Return the cross-entropy of a view's regions and the most similar ones of another view."""
    logits, features = (x.view(images, -1, x.shape[-1]) for x in (logits, features))
    target, seen = (x.view(images, -1, x.shape[-1]) for x in (target, seen))
    with torch.no_grad():
        like = functional.normalize(features, dim=-1) @ functional.normalize(seen, dim=-1).mT
        best = like.max(dim=2)[1].unsqueeze(2).expand(-1, -1, target.shape[2])
        matched = torch.gather(target, 1, best)
    return torch.sum(-matched * functional.log_softmax(logits, -1), -1).mean(-1).mean()
