"""A training step that is tried in a process of its own, where too much memory harms nothing.

`python -m leanvit.train.trial` is that process: JSON in, JSON out. It is no copy of the one that
asks, since that would run a user's own script a second time.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from leanvit.config import RunConfig, from_dict, to_dict
from leanvit.core.errors import RunError
from leanvit.core.memory import extra_bytes, is_shortage, limit_to
from leanvit.core.random import generator
from leanvit.data.batch import ViewBatch
from leanvit.data.views import ViewSpec
from leanvit.methods.catalogue import build_method
from leanvit.train.state import TrainState

ENDED = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGBUS)
"""How a process ends that took more memory than there was, if it could not say so."""
WARM = 2
"""Images of a first step, after which the optimiser keeps what it keeps."""
TIMES = 2
"""Steps that count: in the second one a heap has holes, and takes up to a tenth more."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Steps to try, all alike."""

    config: RunConfig
    """A run without anything open, all parts of which train from the first step on."""
    micro: int
    """Images in a micro-batch."""
    parts: int = 1
    """Micro-batches."""
    most: int = 0
    """Bytes of the machine that it may take, where it trains on the CPU."""
    beside: int = 0
    """Bytes of a GPU that something else will take."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes that a step took."""

    peak: int
    """All that was taken at a time, beyond what the process has before it builds a network."""
    state: int
    """Of weights, buffers, gradients and what the optimiser keeps."""
    gradients: int
    """Of the gradients alone."""
    views: int
    """Of the views of an image."""
    whole: bool
    """Whether the network couples the images of a batch."""


def attempt(trial: Trial) -> Taken | None:
    """Return what a step takes; None if there is too little memory for it.

    Raises ValueError if the networks of the run cannot be built, RunError if the step fails.
    """
    words = {**asdict(trial), "config": to_dict(trial.config)}
    words["threads"] = torch.get_num_threads()
    if trial.config.train.device == "cuda":
        words["gpu"] = torch.cuda.current_device()
    done = subprocess.run(
        [sys.executable, "-m", "leanvit.train.trial"],
        input=json.dumps(words),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode in ENDED:
        return None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RunError(f"A step that was tried to see what it takes failed: {said[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "refused" in found:
        raise ValueError(found["refused"])
    return Taken(**found["taken"]) if found["taken"] else None


def noise_views(spec: ViewSpec, images: int, classes: int = 1) -> ViewBatch:
    """Return views of noise, of so many classes in turn."""
    groups = []
    for number, group in enumerate(spec.groups):
        shape = (len(group), images, 3, group[0].size, group[0].size)
        drawn = generator(0, "noise", number).standard_normal(shape, dtype="float32")
        groups.append(torch.from_numpy(drawn))
    index = torch.arange(images)
    return ViewBatch(tuple(groups), index, index % classes)


class _Steps:
    """A warm step, and those that count."""

    def __init__(self, config: RunConfig, trial: dict[str, Any]) -> None:
        self.config, self.trial = config, trial

    def __call__(self) -> None:
        config, (micro, parts) = self.config, (self.trial[name] for name in ("micro", "parts"))
        method = build_method(config.method, config.backbone, config.train.seed)
        spec = method.views()
        assert spec is not None
        self.state = TrainState(method, config, epoch_steps=10)
        beside = torch.empty(self.trial["beside"], dtype=torch.uint8, device=self.state.device)
        for images, times in ((min(WARM, micro), 1), *[(micro, parts)] * TIMES):
            self.batch = noise_views(spec, images * times).to(self.state.device)
            at = self.state.begin_step()
            for part in self.batch.split(times):
                self.state.backward(part, at, times)
            self.state.update(at)
        del beside

    def taken(self, peak: int) -> Taken:
        """Return what was taken, the most at a time being known."""
        optimizer, method = self.state.optimizer, self.state.method
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = _bytes(weight.grad for weight in weights if weight.grad is not None)
        kept = (value for each in optimizer.state.values() for value in each.values())
        tensors = chain(method.parameters(), method.buffers(), kept)
        return Taken(
            peak=peak,
            state=gradients + _bytes(value for value in tensors if isinstance(value, Tensor)),
            gradients=gradients,
            views=_bytes(self.batch.groups) // len(self.batch),
            whole=method.coupled(),
        )


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _try(words: dict[str, Any]) -> dict[str, Any]:
    """Return what the asking process wants to know."""
    config = from_dict(RunConfig, words["config"])
    device = config.train.device
    torch.set_num_threads(words["threads"])
    if device == "cuda":
        torch.cuda.set_device(words["gpu"])
        torch.empty(1, device=device)  # what a GPU needs for itself is there before
    else:
        limit_to(words["most"])
    steps = _Steps(config, words)
    try:
        peak = extra_bytes(steps, device)
    except ValueError as error:
        return {"refused": str(error)}
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        return {"taken": None}
    if device == "cuda":
        peak = torch.cuda.max_memory_reserved()  # more than is in use: it comes in blocks
    return {"taken": asdict(steps.taken(peak))}


if __name__ == "__main__":
    print(json.dumps(_try(json.load(sys.stdin))))
