"""Images under the common corruptions of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261).

The corruptions themselves are those of the package `imagecorruptions-imaug`, at its strengths,
which are ImageNet-C's. It draws from numpy's global generator, prints, and uses threads of OpenCV;
none of that leaves this file.
"""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO

import numpy as np
import torch
from torch import Tensor

from leanvit.core.packages import missing
from leanvit.core.random import numpy_seeded

SMALLEST = 32
"""Side in pixels of the smallest image that can be corrupted."""
LIBRARIES = ("imagecorruptions-imaug", "numba", "scipy", "scikit-image")
"""What makes the corruptions, beside OpenCV, which is installed under several names."""
OWN_SEEDS = ("impulse_noise", "glass_blur")
"""Corruptions that draw from a generator of their own."""


def require_corruptions() -> None:
    """Raise ValueError unless the package of the corruptions can be used."""
    if why := missing("imagecorruptions"):
        raise ValueError(f"evaluate robust corrupts images: {why}: pip install 'leanvit[robust]'.")


@dataclass(frozen=True, slots=True)
class Corruption:
    """One corruption at several severities, 1 to 5.

    Its noise depends on the seed, the corruption, the severity and the image's number alone.
    """

    name: str
    severities: tuple[int, ...]
    seed: int

    @property
    def key(self) -> str:
        """Words that are the same only where the same becomes of an image: versions included."""
        import cv2

        versions = [cv2.__version__, *(f"{name} {version(name)}" for name in LIBRARIES)]
        return f"{self} {versions}"

    def __call__(self, pixels: Tensor, index: int) -> Tensor:
        """Return K corrupted images [K, 3, S, S], 8-bit, of one [3, S, S] in [0, 1].

        It is rounded to 8 bits first: what ImageNet-C corrupts are the crops that networks see.
        """
        import imagecorruptions

        image = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
        found = []
        for severity in self.severities:
            purpose = f"{self.name} {severity}"
            with numpy_seeded(self.seed, purpose, index) as own, _quiet_and_alone():
                seed = {"seed": own} if self.name in OWN_SEEDS else {}
                found.append(imagecorruptions.corrupt(image, severity, self.name, **seed))
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


@contextmanager
def _quiet_and_alone() -> Iterator[None]:
    """Keep what the library prints from stdout, and OpenCV from threads.

    A process that is forked from one whose OpenCV has threads would wait for them for ever.
    """
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        cv2.setNumThreads(before)
