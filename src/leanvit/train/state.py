"""What a run is at a step: weights, optimiser, position; and how one step changes it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from leanvit.config import MuonConfig, RunConfig, settled
from leanvit.core.errors import DerailedError
from leanvit.core.precision import autocast
from leanvit.methods.base import Method, Moment, StepOutput
from leanvit.train.guard import Event, Guard
from leanvit.train.metrics import Meter
from leanvit.train.optim import (
    block_matrices,
    build_optimizer,
    clip_gradients,
    layer_scales,
    parameter_groups,
    set_rates,
    skip_if,
)
from leanvit.train.passes import Passes
from leanvit.train.sharing import Sharing


class TrainState:
    """The method under training and everything that a checkpoint must hold."""

    def __init__(self, method: Method, config: RunConfig, *, epoch_steps: int) -> None:
        if (
            settled(config.train.accumulate) > 1 and method.coupled()
        ):  # timm's networks show it only now
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
            turned=block_matrices(method) if isinstance(config.optim, MuonConfig) else (),
        )
        self.optimizer = build_optimizer(groups, config.optim)
        self.parts: dict[str, list[Tensor]] = {}
        for name, parameter in self._optimized():
            self.parts.setdefault(method.part(name), []).append(parameter)
        self.meter = Meter()
        self.sharing = Sharing(method, self._optimized())
        self.passes = Passes(method, config.train)
        self._micro = 0
        saved = {id(value) for value in method.state_dict(keep_vars=True).values()}
        moving = [buffer for buffer in method.buffers() if id(buffer) in saved]
        self.guard = Guard(config.guard, moving, self.device)  # the others are tables
        self.lr_scale = 1.0
        """What the learning rate is multiplied by: less than 1 after the run went back."""
        self.rollbacks = 0
        """How often it did."""
        self._loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def begin_step(self) -> Moment:
        """Return the moment of the coming step; set its rates and what it trains."""
        at = Moment(self.step, self.run, self.step // self.epoch_steps, self.config.train.seed)
        self.sharing.freeze(at)
        set_rates(
            self.optimizer,
            at.value(self.config.optim.lr) * self.lr_scale,
            at.value(self.config.optim.weight_decay),
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.remember()
        self._loss.zero_()
        self._micro = 0
        return at

    def leave(self) -> None:
        """Let go of the other processes."""
        self.sharing.leave()

    def backward(self, micro: Any, at: Moment, parts: int) -> None:
        """Add the gradients of one of `parts` micro-batches; processes share them at the last."""
        self._micro += 1
        with self.passes.step(), self.sharing.gradients(last=self._micro == parts):
            with autocast(self.config.train.precision, self.device.type):
                out: StepOutput = self.sharing.module(micro, at)
            (out.total / parts).backward()
        self._loss += out.total.detach() / parts
        self.meter.add({"loss": out.total, **out.terms, **out.stats})

    def update(self, at: Moment) -> None:
        """Clip, step and move what follows the weights; one that is not sound changes nothing."""
        config = self.config.optim
        self.sharing.settle()
        norms, whole = clip_gradients(self.parts, config.clip, config.clip_by)
        self.meter.add({f"grad_norm/{name}": norm for name, norm in norms.items()})
        sound = self.guard.judge(self._loss, whole, self.step)
        skip_if(self.optimizer, 1 - sound)
        self.optimizer.step()
        self.method.after_step(at, sound)
        self.guard.put_back(sound)
        self.step += 1

    def require_sound(self) -> list[Event]:
        """Return the steps since the last time that stood out; `Guard.events` says what it raises.

        Nothing changed since such a step, so this is the state before it then, and `step` says so.
        """
        try:
            return self.guard.events()
        except DerailedError as error:
            self.step = error.step
            raise

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
            "images": self.step * settled(self.config.train.batch),
            **(rates if self.step else {}),
            **self.meter.read(),
            **(self.passes.row() if self.step else {}),
            **({"skipped": self.guard.skipped} if self.guard.skipped else {}),
            **({"rollbacks": self.rollbacks} if self.rollbacks else {}),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that has to be saved, by name."""
        saved = {f"method.{name}": value for name, value in self.method.state_dict().items()}
        saved |= {f"guard.{name}": value for name, value in self.guard.tensors().items()}
        saved["guard.lr_scale"] = torch.tensor(self.lr_scale, dtype=torch.float64)
        saved["guard.rollbacks"] = torch.tensor(self.rollbacks)
        for name, parameter in self._optimized():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    saved[f"optimizer.{name}.{key}"] = value
        return saved

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Become what `tensors` returned at a step. Raises ValueError on any mismatch."""
        weights, remembered, guard = (
            {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
            for part in ("method.", "optimizer.", "guard.")
        )
        try:
            self.method.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            first = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(f"The checkpoint's weights do not fit this run: {first}") from error
        self._restore_optimizer(remembered)
        self.guard.restore(guard)
        self.lr_scale, self.rollbacks = float(guard["lr_scale"]), int(guard["rollbacks"])
        self.meter = Meter()
        self.step = step

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what the optimiser remembers of each parameter: everything, or nothing."""
        known = dict(self._optimized())
        self.optimizer.state.clear()
        found: dict[str, dict[str, Tensor]] = {}
        kinds: dict[bool, set[frozenset[str]]] = {}
        for full_name, value in tensors.items():
            name, key = full_name.rsplit(".", 1)
            if name not in known or (value.ndim and value.shape != known[name].shape):
                raise ValueError(f"The checkpoint's optimiser state of {name!r} fits no parameter.")
            found.setdefault(name, {})[key] = value.to(self.device)
        for group in self.optimizer.param_groups:  # Muon's keep other things than AdamW's
            kept = {frozenset(found[name]) for name in group["names"] if name in found}
            kinds.setdefault(group["orthogonal"], set()).update(kept)
        if any(len(kept) > 1 for kept in kinds.values()):
            raise ValueError("The checkpoint's optimiser state is not complete.")
        for name, entry in found.items():
            self.optimizer.state[known[name]].update(entry)

    def _optimized(self) -> list[tuple[str, Tensor]]:
        return [
            pair
            for group in self.optimizer.param_groups
            for pair in zip(group["names"], group["params"], strict=True)
        ]
