"""What keeps bad numbers out of a run: found on the device, before the weights change.

A step whose loss or gradient is not finite leaves no trace: not in weights, optimiser, averages,
centers or batch statistics. A loss that jumps far above its own level, a spike, is treated the
same where the run is told to. The host hears of both at the next row of metrics.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from leanvit.config import GuardConfig
from leanvit.core.distributed import all_sum, world_size
from leanvit.core.errors import DerailedError, NonFiniteError, SpikeError

WARMUP = 50
"""Steps after which a loss has a level."""
MEMORY = 0.02
"""Weight of a step in the level: about the last fifty count."""
LEAST_JUMP = 0.05
"""Share of the level below which no rise is a spike, however steady the loss was."""
REMEMBERED = 64
"""Events between two rows that are told one by one."""


@dataclass(frozen=True, slots=True)
class Event:
    """A step that stood out."""

    step: int
    spike: bool
    """Whether its loss was finite, but far above its level."""

    def __str__(self) -> str:
        what = "jumped far above its level" if self.spike else "or a gradient was not finite"
        return f"The loss {what} at step {self.step}"

    def error(self, more: str = "") -> DerailedError:
        """Return what a step ends the run with, or takes it back with."""
        kind = SpikeError if self.spike else NonFiniteError
        return kind(
            f"{self}{more}. No such step changed a weight. A lower optim.lr.peak, or "
            f"train.precision fp32, usually helps; from the start, where weights had grown too "
            f"large before.",
            self.step,
        )


class Guard:
    """Judges every step on the device, and remembers what a bad one must not change.

    Nothing here is read back until `events`.
    """

    def __init__(
        self, config: GuardConfig, buffers: Iterable[Tensor], device: torch.device
    ) -> None:
        self.config = config
        self._live = list(buffers)
        self._kept = [torch.empty_like(buffer) for buffer in self._live]
        self._level = torch.zeros(3, dtype=torch.float64, device=device)  # mean, variance, steps
        self._halted = torch.zeros((), dtype=torch.bool, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._slots = torch.arange(REMEMBERED, device=device)
        self._log = torch.zeros_like(self._slots)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._told = 0
        self.skipped = 0
        """Steps of the run that were left out, as `events` saw it."""
        self.newest: list[Event] = []
        """What `events` found the last time, also where it raised."""

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the buffers as they are before a step."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    @torch.no_grad()
    def judge(self, loss: Tensor, gradient_norm: Tensor, step: int) -> Tensor:
        """Return 1.0 for a sound step and 0.0 for one that must leave no trace, on the device.

        loss and gradient_norm: scalars of this process. The answer is that of all processes. After
        an event that ends the run or takes it back, no step is sound any more.
        """
        config = self.config
        finite = loss.isfinite() & gradient_norm.isfinite()
        seen = torch.stack([(~finite).double(), loss.double().nan_to_num(0.0, 0.0, 0.0)])
        broken, loss = all_sum(seen).unbind()
        bad, loss = broken > 0, loss / world_size()
        mean, variance, steps = self._level.unbind()
        least = torch.maximum(config.spike_deviations * variance.sqrt(), LEAST_JUMP * mean.abs())
        spike = ~bad & (steps >= WARMUP) & (loss - mean > least)
        event = ~self._halted & (bad | spike)
        place = event & (self._slots == self._count % REMEMBERED)
        self._log = torch.where(place, 2 * step + spike.long(), self._log)
        self._count += event
        left_out = bad | (spike & (config.spike != "warn"))
        ends = bad & (config.bad_number != "skip")
        ends |= spike & (config.spike in ("stop", "rollback"))
        ends |= left_out & (self._skipped >= config.most)
        self._skipped += left_out & ~(self._halted | ends)
        sound = ~(self._halted | left_out)
        self._halted |= ends
        self._follow(loss, sound)
        return sound.float()

    def _follow(self, loss: Tensor, sound: Tensor) -> None:
        """Move the level of the loss: a plain mean at first, then a moving one."""
        mean, variance, steps = self._level.unbind()
        share = (1 / (steps + 1)).clamp_min(MEMORY)
        away = loss - mean
        moved = (mean + share * away, (1 - share) * (variance + share * away * away), steps + 1)
        self._level.copy_(torch.where(sound, torch.stack(moved), self._level))

    @torch.no_grad()
    def put_back(self, sound: Tensor) -> None:
        """Undo what a bad step did to the buffers."""
        stays = sound > 0
        for live, kept in zip(self._live, self._kept, strict=True):
            torch.where(stays, live, kept, out=live)

    def events(self) -> list[Event]:
        """Return the steps that stood out since the last time: the one transfer from the device.

        Raises NonFiniteError or SpikeError if one of them ends the run, or takes it back.
        """
        counts = torch.stack([self._count, self._skipped, self._halted.long()])
        count, self.skipped, halted, *log = torch.cat([counts, self._log]).tolist()
        fresh = range(max(self._told, count - REMEMBERED), count)
        self._told = count
        found = [Event(log[n % REMEMBERED] // 2, bool(log[n % REMEMBERED] % 2)) for n in fresh]
        self.newest = found
        if halted:
            last = found[-1]
            skips = "skip" in (self.config.spike if last.spike else self.config.bad_number)
            raise last.error(f", after {self.skipped} that were left out (guard.most)" * skips)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of it."""
        return {"level": self._level, "skipped": self._skipped}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what `tensors` returned, with no event in sight."""
        self._level.copy_(tensors["level"])
        self._skipped.copy_(tensors["skipped"])
        self.skipped = int(tensors["skipped"])
        self._halted.fill_(False)
        self._count.zero_()
        self._told = 0
