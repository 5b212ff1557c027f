"""What a run is at a step: weights, optimiser, position; and how one step changes it."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from leanvit.config import RunConfig
from leanvit.core.distributed import all_max, all_sum, world_size
from leanvit.core.errors import NonFiniteError
from leanvit.core.precision import autocast
from leanvit.core.syncbn import SyncBatchNorm
from leanvit.methods.base import Method, Moment, StepOutput
from leanvit.train.metrics import Meter
from leanvit.train.optim import (
    build_optimizer,
    clip_gradients,
    layer_scales,
    parameter_groups,
    set_rates,
    skip_if,
)


class TrainState:
    """The method under training and everything that a checkpoint must hold."""

    def __init__(self, method: Method, config: RunConfig, *, epoch_steps: int) -> None:
        coupled = any(isinstance(module, SyncBatchNorm) for module in method.modules())
        if coupled and config.train.accumulate > 1:  # what timm's networks hold shows only now
            raise ValueError(
                "Batch norm couples the images of a batch, so a step cannot be split: set "
                "train.accumulate to 1 or choose another backbone, and heads without batch norm."
            )
        self.method, self.config, self.epoch_steps = method, config, epoch_steps
        self.device = torch.device(config.train.device)
        self.method.to(self.device).train()
        self.run = int(config.train.duration.amount)
        self.step = 0
        groups = parameter_groups(
            method,
            decay_all_matrices=config.optim.decay_all_matrices,
            scales=layer_scales(method, config.optim.layer_decay),
        )
        self.optimizer = build_optimizer(groups, config.optim)
        self.parts: dict[str, list[Tensor]] = {}
        for name, parameter in self._optimized():
            self.parts.setdefault(method.part(name), []).append(parameter)
        self.meter = Meter()
        self.idle: list[str] | None = None
        """Trained parameters that the loss never reached; None until a step found out."""
        self._frozen: set[int] | None = None
        self._shared: DistributedDataParallel | None = None
        self._micro = 0
        self._bad_step = torch.full((), -1, device=self.device)
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)

    def begin_step(self) -> Moment:
        """Return the moment of the coming step; set its rates and what it trains."""
        at = Moment(self.step, self.run, self.step // self.epoch_steps, self.config.train.seed)
        self._freeze(at)
        set_rates(
            self.optimizer,
            at.value(self.config.optim.lr),
            at.value(self.config.optim.weight_decay),
        )
        self.optimizer.zero_grad(set_to_none=True)
        self._finite.fill_(True)
        self._micro = 0
        return at

    def _freeze(self, at: Moment) -> None:
        """Let gradients pass by what is frozen now; the step of a change finds what is idle."""
        frozen = {id(parameter) for parameter in self.method.frozen(at)}
        if frozen == self._frozen:
            return
        self._frozen, self._shared, self.idle = frozen, None, None
        for _, parameter in self._optimized():
            parameter.requires_grad_(id(parameter) not in frozen)

    def _settle(self) -> None:
        """Find what the loss does not reach; let DDP share the gradients of all else from now on.

        DDP waits for the gradient of every parameter that could have one when it was made, so it
        is made only now, and these first gradients are averaged here. Its buffers stay apart, see
        `methods.heads.Center`.
        """
        trained = [pair for pair in self._optimized() if pair[1].requires_grad]
        self.idle = [name for name, parameter in trained if parameter.grad is None]
        if world_size() == 1:
            return
        for _, parameter in trained:
            parameter.requires_grad_(parameter.grad is not None)
            if parameter.grad is not None:
                parameter.grad = all_sum(parameter.grad) / world_size()
        self._shared = DistributedDataParallel(self.method, broadcast_buffers=False)

    def leave(self) -> None:
        """Let go of the other processes."""
        self._frozen = self._shared = None

    def backward(self, micro: Any, at: Moment, parts: int) -> None:
        """Add the gradients of one of `parts` micro-batches; processes share them at the last."""
        self._micro += 1
        shared = self._shared
        with shared.no_sync() if shared is not None and self._micro < parts else nullcontext():
            with autocast(self.config.train.precision, self.device.type):
                out: StepOutput = (shared or self.method)(micro, at)
            (out.total / parts).backward()
        self._finite &= out.total.detach().isfinite()
        self.meter.add({"loss": out.total, **out.terms, **out.stats})

    def update(self, at: Moment) -> None:
        """Clip, step and move what follows the weights; change no weight if a number is bad."""
        config = self.config.optim
        if self.idle is None:
            self._settle()
        norms, whole = clip_gradients(self.parts, config.clip, config.clip_by)
        self.meter.add({f"grad_norm/{name}": norm for name, norm in norms.items()})
        self._note_finite(whole)
        skip_if(self.optimizer, (self._bad_step >= 0).float())
        self.optimizer.step()
        self.method.after_step(at)
        self.step += 1

    def _note_finite(self, gradient_norm: Tensor) -> None:
        """Remember the first step at which any process saw a bad number; stays on the device."""
        bad = all_max((~(self._finite & gradient_norm.isfinite())).to(self._bad_step.dtype))
        first = (bad > 0) & (self._bad_step < 0)
        self._bad_step = torch.where(first, self.step, self._bad_step)

    def require_finite(self) -> None:
        """Raise NonFiniteError if a bad number was seen; every step since changed no weight."""
        step = int(self._bad_step.item())
        if step >= 0:
            raise NonFiniteError(
                f"The loss or a gradient was not finite at step {step}. The weights did not "
                f"change since and nothing was saved; the last checkpoint is good. A lower "
                f"optim.lr.peak or train.precision fp32 usually helps."
            )

    def row(self) -> dict[str, float]:
        """Return the means since the last row, with the step and, once there was one, its rates.

        The learning rate is that of the last layer, the weight decay that of matrices.
        """
        rates = {
            name: max(group[name] for group in self.optimizer.param_groups)
            for name in ("lr", "weight_decay")
        }
        return {
            "step": self.step,
            "epoch": self.step / self.epoch_steps,
            "images": self.step * self.config.train.batch,
            **(rates if self.step else {}),
            **self.meter.read(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that has to be saved, by name."""
        saved = {f"method.{name}": value for name, value in self.method.state_dict().items()}
        for name, parameter in self._optimized():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    saved[f"optimizer.{name}.{key}"] = value
        return saved

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Become what `tensors` returned at a step. Raises ValueError on any mismatch."""
        weights, remembered = (
            {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
            for part in ("method.", "optimizer.")
        )
        try:
            self.method.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            first = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(f"The checkpoint's weights do not fit this run: {first}") from error
        self._restore_optimizer(remembered)
        self.step = step

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what the optimiser remembers of each parameter: everything, or nothing."""
        known = dict(self._optimized())
        found: dict[str, dict[str, Tensor]] = {}
        for full_name, value in tensors.items():
            name, key = full_name.rsplit(".", 1)
            if name not in known or (value.ndim and value.shape != known[name].shape):
                raise ValueError(f"The checkpoint's optimiser state of {name!r} fits no parameter.")
            found.setdefault(name, {})[key] = value.to(self.device)
        if len({frozenset(entry) for entry in found.values()}) > 1:
            raise ValueError("The checkpoint's optimiser state is not complete.")
        for name, entry in found.items():
            self.optimizer.state[known[name]].update(entry)

    def _optimized(self) -> list[tuple[str, Tensor]]:
        return [
            pair
            for group in self.optimizer.param_groups
            for pair in zip(group["names"], group["params"], strict=True)
        ]
