"""`leanvit check`: read every image, draw the views, do some real steps; say what a run takes."""

import json
import resource
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from leanvit.analysis.pictures import view_grid
from leanvit.config import DinoConfig, RunConfig, ViTConfig, resolve, settled
from leanvit.config.resume import RESOLVED
from leanvit.core.console import track
from leanvit.core.distributed import require_alone
from leanvit.core.workers import calmly, serve_parent
from leanvit.data.batch import Unreadable, ViewBatch
from leanvit.data.decode import read_image
from leanvit.data.sources import Source
from leanvit.folder import UNREADABLE, VIEWS, require_apart
from leanvit.measuring import measured_facts, seconds_a_step
from leanvit.request import compose_request, open_images
from leanvit.run import Run
from leanvit.train.terminal import spoken

LONG = 48 * 3600
"""Seconds of a run for which another way is offered."""
REPORT = "check.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    source: str
    """What the images lie in, and where their classes come from."""
    images: int
    """Images in the source."""
    unreadable: Sequence[Unreadable]
    """Those that cannot be read."""
    classes: Mapping[str, int]
    """Images of each class; empty without classes."""
    sides: Mapping[str, float]
    """Smallest, middle and largest of the images' shorter sides, in pixels."""
    memory_gib: float
    """Most memory that the training process held: of the GPU, or of the machine."""
    seconds_a_step: float
    """Mean of the measured steps, waiting for data included."""
    images_per_s: float
    """Images a second."""
    seconds_an_epoch: float
    """One pass over the images."""
    seconds_in_all: float
    """The whole run."""
    steps: int
    """Steps of the whole run."""
    device: str
    """Where it was measured."""
    batch: str
    """Images of a step, its micro-batches if there are several, and what decided on them."""
    learning_rate: str
    """Its highest value, and what that follows from."""
    chosen: Sequence[str]
    """Options that the images and the machine decided on, and why."""
    start: str
    """What the first weights are; empty where all are fresh."""
    would_stop: bool
    """Whether the run would stop, since too many images cannot be read."""
    problems: Sequence[str]
    """What would stop or hurt the run."""
    pictures: Sequence[str]
    """Pictures that were written."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return asdict(self)

    def __str__(self) -> str:
        low, middle, high = self.sides.values()
        lines = [
            f"images       {self.images}, {len(self.unreadable)} of them unreadable",
            f"source       {self.source}",
            f"short side   {low:.0f} to {high:.0f} pixels, {middle:.0f} in the middle",
        ]
        if self.classes:
            counts = self.classes.values()
            lines.append(
                f"classes      {len(counts)}, of {min(counts)} to {max(counts)} images each"
            )
        lines += [
            f"memory       {self.memory_gib:.1f} GiB on {self.device}",
            f"speed        {self.images_per_s:.1f} images/s, {self.seconds_a_step:.2f} s a step",
            f"epoch        {spoken(self.seconds_an_epoch)}",
            f"whole run    {spoken(self.seconds_in_all)} for {self.steps} steps",
            f"batch        {self.batch}",
            f"rate         {self.learning_rate}",
            f"views        {', '.join(self.pictures)}",
        ]
        lines += [f"chosen       {text}" for text in self.chosen]
        lines += [f"weights      {text}" for text in self.start.splitlines()]
        lines += [f"unreadable   {bad.name!r}: {bad.error}" for bad in self.unreadable[:10]]
        if len(self.unreadable) > 10:
            lines.append(f"             and {len(self.unreadable) - 10} more")
        return "\n".join([*lines, *(f"problem      {text}" for text in self.problems)])


def check(
    recipe: str | RunConfig,
    *,
    out: str | Path = "check",
    data: str | Source = "",
    backbone: str = "",
    optimizer: str = "",
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Report:
    """Read every image, do a few steps of the run that `pretrain` would do; say what it takes.

    The arguments are those of `pretrain`. out: folder for a picture of the views, for the report
    and for a list of unreadable images; its other files stay. No weights are written.
    Raises ValueError for a mistake in the request.
    """
    folder, name = Path(out), data if isinstance(data, str) else ""
    asked = compose_request(recipe, None, name, backbone, optimizer, dict(options or {}))
    source = open_images(asked, data)
    _require_no_run(folder, asked.data.source)
    resolved = resolve(asked, measured_facts(asked, source, quiet=quiet))
    run = Run(resolved, source, folder, quiet=True)
    run.initialize()
    _make(folder)
    sides, unreadable = _scan(source, run.workers, quiet)
    if not sides:
        raise ValueError(f"None of the {len(source)} images can be read; {unreadable[0].error}.")
    seconds, memory = _measure(run, folder)
    found = _problems(run, sides, unreadable) + _too_long(seconds * run.state.run)
    report = Report(
        source=_spoken_source(source),
        images=len(source),
        unreadable=unreadable,
        classes=_counted(source),
        sides={"smallest": min(sides), "middle": statistics.median(sides), "largest": max(sides)},
        memory_gib=memory,
        **_times(run, seconds),
        device=resolved.config.train.device,
        batch=resolved.spoken_batch(),
        learning_rate=resolved.spoken_rate(),
        chosen=resolved.spoken_fit(),
        start=str(run.start or ""),
        would_stop=_too_many(run, unreadable),
        problems=[*source.about().notes, *run.advice, *found],
        pictures=[str(folder / VIEWS)],
    )
    _write(report, folder)
    return report


def _write(report: Report, folder: Path) -> None:
    (folder / REPORT).write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    listed = "".join(json.dumps(asdict(bad)) + "\n" for bad in report.unreadable)
    (folder / UNREADABLE).write_text(listed)


def _spoken_source(source: Source) -> str:
    about = source.about()
    return f"{about.what}; classes from {about.labels}" if about.labels else about.what


def _counted(source: Source) -> dict[str, int]:
    counts = Counter(source.targets.tolist())
    return {name: counts[target] for target, name in enumerate(source.classes)}


def _require_no_run(folder: Path, source: str) -> None:
    require_alone("check")
    require_apart(folder, source)
    if (folder / RESOLVED).exists():
        raise ValueError(f"The folder {str(folder)!r} holds a run; name another --out.")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot write to {str(folder)!r}: {error.strerror}.") from error


class _Sides(Dataset[int | Unreadable]):
    """The shorter side of every image, or why there is none."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> int | Unreadable:
        found = read_image(self.source, index)
        return found if isinstance(found, Unreadable) else min(found[0].shape[1:])


def _scan(source: Source, workers: int, quiet: bool) -> tuple[list[int], list[Unreadable]]:
    """Decode every image; return shorter sides, and what cannot be read."""
    loader = DataLoader(
        _Sides(source),
        batch_size=16,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),
        worker_init_fn=serve_parent,
    )
    sides: list[int] = []
    unreadable: list[Unreadable] = []
    for found in track(calmly(loader), "reading images", -(-len(source) // 16), quiet=quiet):
        sides += [entry for entry in found if not isinstance(entry, Unreadable)]
        unreadable += [entry for entry in found if isinstance(entry, Unreadable)]
    return sides, unreadable


def _measure(run: Run, folder: Path) -> tuple[float, float]:
    """Do some steps; return the seconds of one and the most memory held, in GiB."""
    state, data, drawn = run.state, run.config.data, False

    def look(batch: ViewBatch) -> None:
        nonlocal drawn
        state.require_sound()
        if not drawn:
            view_grid(batch.groups, data.mean, data.std, folder / VIEWS)
        drawn = True

    seconds = seconds_a_step(run, look)
    if state.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(state.device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seconds, memory / 2**30


def _times(run: Run, seconds: float) -> dict[str, Any]:
    """Return what a report says of time, from the seconds of a step."""
    return {
        "seconds_a_step": seconds,
        "images_per_s": settled(run.config.train.batch) / seconds,
        "seconds_an_epoch": seconds * run.order.epoch_steps,
        "seconds_in_all": seconds * run.state.run,
        "steps": run.state.run,
    }


def _too_long(seconds: float) -> list[str]:
    """Return what to do about a run that takes days."""
    if seconds < LONG:
        return []
    return [
        f"The whole run takes {spoken(seconds)} here; --budget 2h, say, makes one of two hours, "
        f"and a smaller network (a recipe that ends in _laptop, or --backbone) sees more images in "
        f"the same time."
    ]


def _too_many(run: Run, unreadable: Sequence[Unreadable]) -> bool:
    return 100 * len(unreadable) / len(run.source) > run.config.data.max_unreadable


def _problems(run: Run, sides: Sequence[int], unreadable: Sequence[Unreadable]) -> list[str]:
    """Return what would stop or hurt the run, a sentence each."""
    config, images = run.config, len(run.source)
    found = []
    if _too_many(run, unreadable):
        found.append(
            f"{100 * len(unreadable) / images:.1f} % of the images cannot be read, so the run "
            f"would stop: more than the {config.data.max_unreadable:g} % of data.max_unreadable."
        )
    assert run.views is not None
    size = max(view.size for group in run.views.groups for view in group)
    option = "global_size" if isinstance(config.method, DinoConfig) else "size"
    small = sum(side < size for side in sides)
    if small > len(sides) / 2:
        found.append(
            f"{small} images are smaller than the largest view of {size} pixels and would be "
            f"enlarged; smaller views (method.views.{option}) cost less and lose nothing."
        )
    odd = sorted({view.size for group in run.views.groups for view in group})
    odd = [side for side in odd if side % config.backbone.patch]
    if odd and isinstance(config.backbone, ViTConfig):
        found.append(
            f"Views of {' and '.join(map(str, odd))} pixels are not made of whole patches of "
            f"{config.backbone.patch}: a ViT does not see what is left over at their right and "
            f"lower edge. Make them a multiple of {config.backbone.patch} (method.views)."
        )
    if idle := run.state.sharing.idle:
        found.append(
            f"The loss does not reach {len(idle)} of the trained tensors, which stay as they "
            f"begin: {', '.join(idle)}."
        )
    if run.state.run < 100:
        found.append(f"{run.state.run} steps are too few to learn anything; train longer.")
    return found
