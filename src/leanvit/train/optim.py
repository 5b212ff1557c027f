"""Parameter groups, optimisers, clipping. Nothing here reads a number back from the device."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from leanvit.config import AdamWConfig, LARSConfig, MuonConfig, OptimConfig, SGDConfig
from leanvit.methods.base import Method
from leanvit.train.muon import Muon

NO_SCALES: Mapping[str, float] = MappingProxyType({})
"""Every learning rate is that of the run."""


def parameter_groups(
    module: nn.Module,
    *,
    decay_all_matrices: bool,
    scales: Mapping[str, float] = NO_SCALES,
    turned: Collection[Tensor] = (),
) -> list[dict[str, Any]]:
    """Split trained parameters by weight decay, and by what their learning rate is scaled with.

    Biases and vectors are never decayed; what a module lists as `undecayed` (position tables,
    class tokens, prototype gains) only with `decay_all_matrices`, which is the official rule.
    scales: by name of a parameter, 1 where it is missing; turned: matrices that `Muon` has
    orthogonal steps for. Decayed groups come first.
    """
    groups: dict[tuple[bool, bool, float], dict[str, Any]] = {}
    apart = {id(matrix) for matrix in turned}
    for place, owner in module.named_modules():
        spared = () if decay_all_matrices else getattr(owner, "undecayed", ())
        for name, parameter in owner.named_parameters(place, recurse=False):
            if parameter.requires_grad:
                leaf = name.rpartition(".")[2]
                decayed = parameter.ndim > 1 and leaf != "bias" and leaf not in spared
                scale, orthogonal = scales.get(name, 1.0), id(parameter) in apart
                facts = {"decayed": decayed, "orthogonal": orthogonal, "scale": scale}
                group = groups.setdefault(
                    (decayed, orthogonal, scale), {"params": [], "names": [], **facts}
                )
                group["params"].append(parameter)
                group["names"].append(name)
    return [groups[key] for key in sorted(groups, reverse=True)]


def layer_scales(method: Method, decay: float) -> dict[str, float]:
    """Return what the learning rate of each parameter of the trained backbone is scaled with.

    Depth d of L blocks has decay^(L + 1 - d): 1 for the final norm (L + 1), decay for the last
    block, decay^(L + 1) for the embedding (0), as in BEiT and MAE. What is no part of the backbone,
    such as heads and decoders, is missing.
    """
    if decay == 1:
        return {}
    backbone = method.learner() or method.encoder()
    (place,) = (f"{name}." for name, module in method.named_modules() if module is backbone)
    return {
        place + name: decay ** (backbone.depth + 1 - depth)
        for name, depth in backbone.param_layers()
    }


def block_matrices(method: Method) -> list[Tensor]:
    """Return the weights of the linear layers within the blocks of the trained backbone."""
    backbone = method.learner() or method.encoder()
    layers = (layer for block in backbone.blocks() for layer in block.modules())
    return [layer.weight for layer in layers if isinstance(layer, nn.Linear)]


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    """Return the optimiser of a configuration; learning rate and decay are set at every step."""
    if isinstance(config, MuonConfig):
        return Muon(groups, betas=config.betas, momentum=config.momentum)
    if isinstance(config, AdamWConfig):
        return AdamW(groups, lr=0.0, betas=config.betas, fused=True)
    if isinstance(config, LARSConfig):
        return LARS(groups, momentum=config.momentum, trust=config.trust)
    assert isinstance(config, SGDConfig)
    optimizer = SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    if config.momentum:  # torch cannot add a buffer later, when frozen parameters thaw
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_rates(optimizer: Optimizer, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate, scaled by group, and its weight decay where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
        group["weight_decay"] = weight_decay if group["decayed"] else 0.0


def skip_if(optimizer: Optimizer, flag: Tensor) -> None:
    """Have the next `step` change nothing if the device-side flag (fp32, 0 or 1) is set.

    This is the door that torch's gradient scaler uses on fused optimisers.
    """
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = flag  # type: ignore[attr-defined]


class LARS(Optimizer):
    """SGD with momentum and a trust ratio for every matrix (arXiv 1708.03888).

    Vectors get neither decay nor ratio.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Any, *, momentum: float, trust: float) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0})
        self.momentum, self.trust = momentum, trust

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, unless `found_inf` is set."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        update = parameter.grad
        assert update is not None
        if parameter.ndim > 1:
            update = update + weight_decay * parameter
            size, reach = parameter.norm(), update.norm()
            ratio = torch.where((size > 0) & (reach > 0), self.trust * size / reach, 1.0)
            update = update * ratio
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        moved = state["momentum_buffer"] * self.momentum + update
        if self.found_inf is not None:
            moved = torch.where(self.found_inf > 0, state["momentum_buffer"], moved)
            lr = lr * (1 - self.found_inf)  # type: ignore[assignment]
        state["momentum_buffer"].copy_(moved)
        parameter.sub_(lr * moved)


def clip_gradients(
    parts: Mapping[str, Sequence[Tensor]], limit: float, by: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Scale gradients down to a largest norm; return each part's norm before that, and the whole.

    parts: trained parameters by part. by: "tensor" limits every tensor's norm (DINO, EsViT),
    "module" every part's, "global" the norm of all together. limit 0 only measures. A part
    without gradients is left out.
    """
    gradients = {
        name: [p.grad for p in parameters if p.grad is not None]
        for name, parameters in parts.items()
    }
    gradients = {name: found for name, found in gradients.items() if found}
    tensor_norms = {
        name: torch.stack(torch._foreach_norm(found)) for name, found in gradients.items()
    }
    norms = {name: found.norm() for name, found in tensor_norms.items()}
    whole = torch.stack(list(norms.values())).norm()
    if limit:
        for name, found in gradients.items():
            measured = {"tensor": tensor_norms[name], "module": norms[name], "global": whole}[by]
            scale = (limit / (measured + 1e-6)).clamp_max(1.0)
            _scale(found, scale.expand(len(found)))
    return norms, whole


def _scale(gradients: Sequence[Tensor], factors: Tensor) -> None:
    torch._foreach_mul_(list(gradients), list(factors.unbind()))
