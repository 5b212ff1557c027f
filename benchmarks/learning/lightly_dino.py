"""DINO by the lightly package on a backbone of ours: the opponent of results.py.

Its transform with our sizes and scales of crops, its head, its loss and its averages, as its
example puts them together (`leanvit.bench.lightly_step`), torch's data loader, and our schedules of
rate, decay and momentum; as many steps as take so many minutes of one core. And that example with
all of its own settings, as far as it comes in the same time.
"""

import copy
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from leanvit.backbones.catalogue import build_backbone
from leanvit.bench.lightly_step import LightlyDINO
from leanvit.config import DinoConfig, MultiCropConfig, RunConfig, settled
from leanvit.core.random import seeded
from leanvit.data.batch import ViewBatch
from leanvit.data.sources import Source, open_source
from leanvit.methods.base import Moment
from leanvit.weights.file import FILE, STUDENT, facts_of_run, header, replace_file

TRIED = 20
"""Steps that tell how long one takes, after as many that do not count."""


class Views(Dataset[list[Tensor]]):
    """An image's views by lightly's transform, as it is or with our sizes and scales."""

    def __init__(self, source: Source, views: MultiCropConfig | None = None) -> None:
        from lightly.transforms.dino_transform import DINOTransform

        own: dict[str, Any] = {}
        if views:
            own = {
                "global_crop_size": views.global_size,
                "global_crop_scale": views.global_scale,
                "local_crop_size": views.local_sizes[0] if views.local_sizes else 96,
                "local_crop_scale": views.local_scale,
                "n_local_views": sum(views.local_counts),
                "gaussian_blur": views.blur,
            }
        self.source, self.transform = source, DINOTransform(**own)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[Tensor]:
        image = self.source[index].image
        assert isinstance(image, bytes)
        found = self.transform(Image.open(BytesIO(image)).convert("RGB"))
        return [view for view in found if isinstance(view, Tensor)]


def forever(loader: DataLoader[list[Tensor]]) -> Iterator[ViewBatch]:
    """Yield batches, epoch after epoch."""
    while True:
        for views in loader:
            two, rest = torch.stack(views[:2]), views[2:]
            groups = (two, torch.stack(rest)) if rest else (two,)
            nobody = torch.full(two.shape[1:2], -1)
            yield ViewBatch(groups, nobody, nobody)


def train(config: RunConfig, out: Path, seconds: float) -> tuple[int, int]:
    """Train for so many seconds of one core, write both networks, return the steps and a batch."""
    assert isinstance(config.method, DinoConfig)
    torch.manual_seed(config.train.seed)  # lightly draws from it
    with seeded(config.train.seed, "backbone"):
        backbone = build_backbone(config.backbone)
    step = LightlyDINO(backbone, config, Moment(0, 1, 0, config.train.seed), twin=False)
    loader = DataLoader(
        Views(open_source(config.data.source), config.method.views),
        batch_size=settled(config.train.batch),
        shuffle=True,
        drop_last=True,
    )
    batches, began, run = forever(loader), time.process_time(), 0
    for number, batch in enumerate(batches):
        if number == TRIED:
            began = time.process_time()
        if number == 2 * TRIED:
            each = (time.process_time() - began) / TRIED
            run = round(seconds / each)
        _set(step, config, number, run or 10_000)
        step.step(batch)
        if run and number + 1 >= run:
            break
    for file, networks in ((FILE, step.teacher), (STUDENT, step.student)):
        facts: dict[str, Any] = {**facts_of_run(config, run), "version": "lightly"}
        replace_file(out / file, networks[0].state_dict(), header(backbone, facts))
    return run, settled(config.train.batch)


def train_example(config: RunConfig, out: Path, seconds: float) -> tuple[int, int]:
    """Follow lightly's example, a ResNet-18 with views of 224 and 96 pixels, for so many seconds.

    Its first epoch of ten is all that anybody sees of it in minutes of one core.
    """
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.utils.scheduler import cosine_schedule

    torch.manual_seed(config.train.seed)
    backbone, batch, steps = build_backbone(config.backbone), 64, 0
    head = DINOProjectionHead(512, 512, 64, 2048, freeze_last_layer=1)
    student = nn.ModuleList([backbone, head])
    fresh = DINOProjectionHead(512, 512, 64, 2048)  # as theirs: the teacher's head is no copy
    teacher = nn.ModuleList([copy.deepcopy(backbone), fresh]).requires_grad_(False)
    criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.001)
    momentum = cosine_schedule(0, 10, 0.996, 1)
    source = open_source(config.data.source)
    loader = DataLoader(Views(source), batch_size=batch, shuffle=True, drop_last=True)
    began = time.process_time()
    for views in loader:
        update_momentum(student, teacher, m=momentum)
        with torch.no_grad():
            wanted = [teacher[1](teacher[0]([view])[0].pooled) for view in views[:2]]
        told = [student[1](student[0]([view])[0].pooled) for view in views]
        optimizer.zero_grad()
        criterion(wanted, told, epoch=0).backward()
        head.cancel_last_layer_gradients(current_epoch=0)
        optimizer.step()
        steps += 1
        if time.process_time() - began > seconds:
            break
    facts: dict[str, Any] = {**facts_of_run(config, steps), "version": "lightly"}
    for file, network in ((FILE, teacher[0]), (STUDENT, student[0])):
        replace_file(out / file, network.state_dict(), header(backbone, facts))
    return steps, batch


def _set(step: LightlyDINO, config: RunConfig, number: int, run: int) -> None:
    """Move rate, decay and momentum along our schedules."""
    assert isinstance(config.method, DinoConfig)
    at = Moment(number, run, 0, config.train.seed)
    for group in step.optimizer.param_groups:
        group["lr"] = at.value(config.optim.lr)
        group["weight_decay"] = at.value(config.optim.weight_decay)
    step.momentum = at.value(config.method.teacher_momentum)
