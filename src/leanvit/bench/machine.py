"""Where something is measured."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def device_named(name: str) -> str:
    """Return the device, auto being the best here. Raises ValueError for cuda where there is none.

    name: auto, cpu or cuda.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA device here; use cpu.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def machine(device: str) -> dict[str, Any]:
    """Return what every figure depends on: date, device and versions."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu[0],
        "units": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
