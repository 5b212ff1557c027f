"""`leanvit bench data`: images a second on one core, and on the device, beside Pillow's views.

Letters: B images.
"""

import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms

from leanvit.bench.machine import device_named, machine
from leanvit.config import DataConfig, MultiCropConfig, replace_options
from leanvit.config.bench import BenchDataConfig
from leanvit.core import random
from leanvit.core.console import say, track
from leanvit.core.distributed import require_alone
from leanvit.data.batch import Unreadable
from leanvit.data.decode import read_image
from leanvit.data.loader import DecodedBatch, Views, decoded, load_views
from leanvit.data.sampler import Key, Order
from leanvit.data.sources import Source, at_most, open_source
from leanvit.data.views import multi_crop

PILLOW, HOST, SHARE, DECODE = "pillow", "host", "share", "decode"
LABELS = {
    PILLOW: "through Pillow",
    HOST: "ours on the CPU",
    SHARE: "CPU's share",
    DECODE: "decoding alone",
}
"""What is compared, from bytes to normalised views: torchvision's transforms on Pillow images, ours
on the CPU, and what is left for the CPU where a device renders, with decoding as a part of it."""
PROCESSES, THREADS = "processes", "threads"


def bench_data(config: BenchDataConfig, *, quiet: bool = False) -> "DataReport":
    """Measure on photographs of a source, everything in turn, on one thread where not said.

    Raises ValueError if fewer images than a batch can be read.
    """
    require_alone("bench")
    config = replace_options(config, {"device": device_named(config.device)})
    images = Images(config)
    if not quiet:
        count, rounds = len(images.keys), config.rounds
        say(f"{count} photographs: {rounds + 1} rounds on one core, then {rounds} with workers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with random.seeded(0, "bench data"):
            seconds = _in_turn(images, config, quiet)
        several = _several(images, config, quiet)
        rendering = _on_device(images, config) if config.device == "cuda" else []
    finally:
        torch.set_num_threads(threads)
    return DataReport(config, len(images.keys), seconds, several, rendering)


class Images:
    """Photographs that can be read, and the published views of them."""

    def __init__(self, config: BenchDataConfig) -> None:
        if not config.source:
            raise ValueError("Name photographs to measure on: --source FOLDER, or an archive.")
        source = at_most(open_source(config.source), config.images)
        readable = [n for n in range(len(source)) if _encoded(source, n)]
        if len(readable) < config.batch:
            raise ValueError(
                f"{config.source!r} has {len(readable)} encoded images that can be read, fewer "
                f"than the {config.batch} of a batch; name another source, or a smaller --batch."
            )
        self.source, self.data = source, DataConfig()
        self.views = Views(source, multi_crop(MultiCropConfig()), self.data, seed=0)
        self.published = published_views(self.data)
        whole = len(readable) // config.batch * config.batch
        self.keys = [Key(0, place, index) for place, index in enumerate(readable[:whole])]
        self.batches = [self.keys[at : at + config.batch] for at in range(0, whole, config.batch)]

    def pillow(self, keys: Sequence[Key]) -> None:
        """Make such views as the published runs did."""
        for key in keys:
            image = self.source[key.index].image
            assert isinstance(image, bytes)
            photo = Image.open(io.BytesIO(image)).convert("RGB")
            for make in self.published:
                make(photo)

    def host(self, keys: Sequence[Key]) -> None:
        """Make the views as a worker does."""
        self.views.batch(keys)

    def decode(self, keys: Sequence[Key]) -> None:
        """Read and decode."""
        for key in keys:
            self.views.decode(key)

    def share(self, keys: Sequence[Key]) -> DecodedBatch:
        """Decode, plan and join, as it is done for a device that renders."""
        return self.views.join(keys, [self.views.decode(key) for key in keys])


def published_views(data: DataConfig) -> list[Callable[[Image.Image], Tensor]]:
    """Return what makes each of the ten views of the official code: torchvision on Pillow images.

    torchvision draws from torch's global generator.
    """
    draw = random.generator(0, "blur of the published views")
    bicubic = transforms.InterpolationMode.BICUBIC
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
    colors = [transforms.RandomHorizontalFlip(), jitter, transforms.RandomGrayscale(0.2)]
    end = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(draw.uniform(0.1, 2.0)))

    def view(side: int, scale: tuple[float, float], *more: Any) -> Any:
        crop = transforms.RandomResizedCrop(side, scale=scale, interpolation=bicubic)
        return transforms.Compose([crop, *colors, *more, *end])

    def blurred(probability: float) -> Any:
        return transforms.RandomApply([transforms.Lambda(blur)], p=probability)

    solarized = transforms.RandomSolarize(128, p=0.2)
    first = view(224, (0.4, 1.0), blurred(1.0))
    second = view(224, (0.4, 1.0), blurred(0.1), solarized)
    return [first, second, *[view(96, (0.05, 0.4), blurred(0.5))] * 8]


Way = Callable[[Sequence[Key]], object]


def _in_turn(images: Images, config: BenchDataConfig, quiet: bool) -> dict[str, list[float]]:
    """Return the seconds an image of each way in every round; the first does not count."""
    ways: dict[str, Way] = {
        PILLOW: images.pillow,
        HOST: images.host,
        SHARE: images.share,
        DECODE: images.decode,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rounds = config.rounds + 1
    for _ in track(range(rounds), "one core", rounds, quiet=quiet):
        spent = dict.fromkeys(ways, 0.0)
        for keys in images.batches:
            for name, way in ways.items():
                start = time.perf_counter()
                way(keys)
                spent[name] += time.perf_counter() - start
        for name, found in spent.items():
            seconds[name].append(found / len(images.keys))
    return {name: found[1:] for name, found in seconds.items()}


def _several(images: Images, config: BenchDataConfig, quiet: bool) -> dict[str, list[float]]:
    """Return seconds an image of the loader with one worker and with several, in turn.

    Processes render what the step gets, threads decode what a device would render.
    """
    ways = [(kind, n) for kind in (PROCESSES, THREADS) for n in sorted({1, config.workers})]
    seconds: dict[str, list[float]] = {f"{kind} {n}": [] for kind, n in ways}
    for _ in track(range(config.rounds), "workers", config.rounds, quiet=quiet):
        for kind, count in ways:
            seconds[f"{kind} {count}"].append(_loaded(images, config.batch, kind, count))
    return seconds


def _loaded(images: Images, batch: int, kind: str, workers: int) -> float:
    """Return the seconds an image from the first batch on, when every worker has begun."""
    order, steps = Order(len(images.source), batch, 0), 3 * len(images.batches) + 1
    batches: Iterator[object]
    if kind == THREADS:
        batches = decoded(images.views, order, 0, steps, threads=workers)
    else:
        cpu = torch.device("cpu")
        batches = load_views(images.views, order, 0, steps, workers=workers, device=cpu)
    next(batches)
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    return (time.perf_counter() - start) / (count * batch)


def _on_device(images: Images, config: BenchDataConfig) -> list[float]:
    """Return the seconds an image that the device takes to receive and render decoded images."""
    device = torch.device(config.device)
    waiting = images.share(images.batches[0])
    seconds = []
    for _ in range(config.rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            waiting.to(device)
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / (10 * config.batch))
    return seconds[1:]


def _encoded(source: Source, index: int) -> bool:
    readable = not isinstance(read_image(source, index), Unreadable)
    return readable and isinstance(source[index].image, bytes)


RATIOS = {
    "speedup_host": "times the images/s a core: ours, rendered on the CPU",
    "speedup_share": "times the images/s a core: the CPU's share where a device renders",
}
"""What the ratios are, beside the same views through Pillow; each on one core."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What was measured: seconds an image of every round."""

    config: BenchDataConfig
    images: int
    """How many were read."""
    seconds: dict[str, list[float]]
    """On one core, by what was done."""
    several: dict[str, list[float]]
    """By kind and number of workers."""
    rendering: list[float]
    """On the device; none on the CPU."""

    def ratios(self) -> dict[str, float]:
        """Return how many times faster ours is."""
        middle = {name: statistics.median(found) for name, found in self.seconds.items()}
        return {
            "speedup_host": middle[PILLOW] / middle[HOST],
            "speedup_share": middle[PILLOW] / middle[SHARE],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the ratios, and everything that was measured."""
        return {
            **self.ratios(),
            "machine": self.machine(),
            "seconds": self.seconds,
            "workers": self.several,
            "device_seconds": self.rendering,
        }

    def machine(self) -> dict[str, Any]:
        """Return what the figures depend on."""
        return {
            **machine(self.config.device),
            "pillow": PIL.__version__,
            "torchvision": torchvision.__version__,
            "source": Path(self.config.source).name,
            "images": self.images,
            "batch": self.config.batch,
            "rounds": self.config.rounds,
        }

    def __str__(self) -> str:
        lines = ["  ".join(f"{name} {value}" for name, value in self.machine().items()), ""]
        lines.append("one core            images/s  ms an image, median of rounds")
        rows = {LABELS[name]: found for name, found in self.seconds.items()} | self.several
        if self.rendering:
            rows["rendered on device"] = self.rendering
        for name, found in rows.items():
            middle, low, high = statistics.median(found), min(found), max(found)
            lines.append(
                f"  {name:<18}{1 / middle:8.1f}  {1e3 * middle:7.3f}  "
                f"({1e3 * low:.3f} to {1e3 * high:.3f})"
            )
        lines += [f"  {value:7.2f}  {RATIOS[name]}" for name, value in self.ratios().items()]
        return "\n".join(lines)
