"""Ten published views of photographs on one core: ours beside the same views through Pillow.

    python benchmarks/views.py FOLDER

Both decode every photograph once and render the same plans; images are taken in turn, and each
figure is the median over rounds of the mean over images.
"""

import io
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as pil

from leanvit.config import MultiCropConfig
from leanvit.data.decode import to_pixels
from leanvit.data.render import render
from leanvit.data.sources import FolderSource
from leanvit.data.views import Plan, draw, multi_crop, plan

IMAGES, ROUNDS = 60, 5
ADJUST = {
    "brightness": pil.adjust_brightness,
    "contrast": pil.adjust_contrast,
    "saturation": pil.adjust_saturation,
    "hue": pil.adjust_hue,
}


def through_pillow(planned: Plan, image: Image.Image) -> torch.Tensor:
    """Return a view as the published runs made it."""
    top, left, height, width = planned.box
    view = image.crop((left, top, left + width, top + height))
    view = view.resize((planned.size, planned.size), Image.Resampling.BICUBIC)
    view = ImageOps.mirror(view) if planned.flip else view
    for name, factor in planned.jitter:
        view = ADJUST[name](view, factor)
    view = pil.to_grayscale(view, 3) if planned.gray else view
    if planned.sigma:
        view = view.filter(ImageFilter.GaussianBlur(planned.sigma))
    view = ImageOps.solarize(view, 128) if planned.solarize else view
    return pil.to_tensor(view)


def main() -> None:
    torch.set_num_threads(1)
    source, spec = FolderSource(sys.argv[1]), multi_crop(MultiCropConfig())
    seconds: dict[str, list[float]] = {"decode": [], "ours": [], "Pillow": []}
    for _ in range(ROUNDS + 1):
        spent = dict.fromkeys(seconds, 0.0)
        for index in range(0, len(source), max(len(source) // IMAGES, 1)):
            data = source[index].image
            assert isinstance(data, bytes)
            times = [time.perf_counter()]
            pixels = to_pixels(data)
            times.append(time.perf_counter())
            units = iter(draw(spec, 0, 0, index))
            views = [view for group in spec.groups for view in group]
            plans = [plan(view, next(units), *pixels.shape[1:]) for view in views]
            for planned in plans:
                render(planned, pixels)
            times.append(time.perf_counter())
            image = Image.open(io.BytesIO(data)).convert("RGB")
            for planned in plans:
                through_pillow(planned, image)
            times.append(time.perf_counter())
            for name, (start, end) in zip(spent, pairwise(times), strict=True):
                spent[name] += end - start
        count = len(range(0, len(source), max(len(source) // IMAGES, 1)))
        for name, value in spent.items():
            seconds[name].append(1e3 * value / count)
    found = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    ours = found["decode"] + found["ours"]
    print(f"decode {found['decode']:.2f} ms, ten views {found['ours']:.2f} ms an image")
    print(f"through Pillow, decoding included: {found['Pillow']:.2f} ms an image")
    print(f"images/s on one core: {1e3 / ours:.0f} and {1e3 / found['Pillow']:.0f}, ", end="")
    print(f"{found['Pillow'] / ours:.2f} times; {Path(sys.argv[1]).name}, {count} images")


if __name__ == "__main__":
    main()
