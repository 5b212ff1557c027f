"""An option that changes nothing is a defect: every one, changed alone, changes what a run does.

A run's fingerprint holds what it did (losses, weights, rows, checkpoints, who read the images),
never what it was asked to do.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from leanvit.backbones.catalogue import build_backbone
from leanvit.config import RunConfig, compose, replace_options, resolve, to_dict
from leanvit.config.convert import leaves
from leanvit.core.errors import RunError
from leanvit.core.files import save_tensors
from leanvit.core.random import seeded
from leanvit.data.sources import About, Sample, Source, open_source
from leanvit.data.subsets import draw_subset
from leanvit.measuring import measured_facts
from leanvit.recipes import recipe
from leanvit.run import Run
from leanvit.train.checkpoint import TENSORS
from leanvit.train.trial import Taken, Trial
from leanvit.weights.file import header
from tests.tiny import build, write_classes, write_images, write_tuned

Options = Mapping[str, Any]

TINY: Options = {
    "backbone.image_size": 32,
    "data.source": "images",
    "data.workers": 0,
    "train.duration": "4st",
    "train.batch": 4,
    "train.device": "cpu",
    "train.log_every": "1st",
    "train.save_every": "2st",
    "watch.every": "4st",
    "watch.images": 0,
    # every schedule has a start, a peak and an end that differ, at steps 0, 1 and beyond
    "optim.lr.start": 1e-4,
    "optim.lr.warmup": "1st",
    "optim.weight_decay.start": 0.01,
    "optim.weight_decay.warmup": "1st",
}
"""Runs of 4 steps on 12 images, a tenth of a second each."""

DISTILLED: Options = {
    "method.head.prototypes": 16,
    "method.head.hidden": 16,
    "method.head.bottleneck": 8,
    "method.views.global_size": 32,
    "method.views.local_sizes": (16,),
    "method.views.local_counts": (2,),
    "method.teacher_temp.end": 0.1,
    "method.teacher_temp.warmup": "1st",
    "method.teacher_momentum.start": 0.9,
    "method.teacher_momentum.warmup": "1st",
}
CONTRASTED: Options = {
    "method.views.size": 32,
    "method.hidden": 16,
    "method.output": 8,
    "method.momentum.start": 0.9,
    "method.momentum.end": 0.95,
    "method.momentum.warmup": "1st",
}
HIDDEN: Options = {"method.views.size": 32, "method.mask_patch": 8}
DECODED: Options = {
    "method.views.size": 32,
    "method.decoder.dim": 8,
    "method.decoder.heads": 2,
}
TAUGHT: Options = {
    **DECODED,
    "method.teacher": "teacher.safetensors",
    "method.hidden_layers": (0,),
    "method.teacher_hidden_layers": (0,),
}
LABELLED: Options = {
    "method.views.size": 32,
    "method.views.jitter": 0.5,
    "data.source": "classes",
}

NARROW: Options = {"backbone.patch": 4, "backbone.dim": 8}
SWIN: Options = {
    **NARROW,
    "backbone.depths": (1, 1),
    "backbone.heads": (1, 2),
    "backbone.window": 4,
}
VIT: Options = {**NARROW, "backbone.depth": 2, "backbone.heads": 2}
CVT: Options = {
    "backbone.patch": 4,
    "backbone.dims": (8, 12),
    "backbone.depths": (1, 1),
    "backbone.heads": (1, 2),
    "backbone.window": 4,
    "data.source": "classes",  # images that are looked at have the nominal size, which is
    "watch.images": 12,  # of no other use to this family
    "watch.every": "2st",
}
VIL: Options = {
    "backbone.patch": 4,
    "backbone.dims": (8, 16),
    "backbone.depths": (1, 1),
    "backbone.heads": (1, 2),
    "backbone.global_tokens": (1, 0),
    "backbone.sparse_stages": 1,
    "backbone.window": 4,
}


@dataclass(frozen=True)
class Part:
    """A recipe with parts, and the sections of it that are tried."""

    recipe: str
    backbone: str
    optimizer: str
    sizes: Options
    sections: tuple[str, ...]

    def config(self, options: Options) -> RunConfig:
        """Return the tiny run with these options."""
        config = compose(recipe(self.recipe), backbone=self.backbone, optimizer=self.optimizer)
        return replace_options(config, {**TINY, **self.sizes, **options})

    def names(self) -> set[str]:
        """Return the options of the sections."""
        every = dict(leaves(to_dict(self.config({}))))
        return {name for name in every if name.split(".")[0] in self.sections}


PARTS: Mapping[str, Part] = {
    "esvit": Part(
        "esvit",
        "swin_tiny",
        "adamw",
        {**DISTILLED, **SWIN},
        (
            "method",
            "backbone",
            "data",
            "optim",
            "train",
            "guard",
            "watch",
            "fit",
            "init",
            "init_from",
        ),
    ),
    "dino": Part("dino", "vit_tiny", "adamw", {**DISTILLED, **VIT}, ("method", "backbone")),
    "cvt": Part("dino", "cvt_tiny", "adamw", {**DISTILLED, **CVT}, ("backbone",)),
    "timm": Part("dino", "timm:test_vit", "adamw", DISTILLED, ("backbone",)),
    "vil": Part("esvit", "vil_2262", "adamw", {**DISTILLED, **VIL}, ("backbone",)),
    "sgd": Part("esvit", "swin_tiny", "sgd", {**DISTILLED, **SWIN}, ("optim",)),
    "lars": Part("esvit", "swin_tiny", "lars", {**DISTILLED, **SWIN}, ("optim",)),
    "muon": Part("dino", "vit_tiny", "muon", {**DISTILLED, **VIT}, ("optim",)),
    "mae": Part("mae", "vit_tiny", "adamw", {**DECODED, **VIT}, ("method",)),
    "dmae": Part("dmae", "vit_tiny", "adamw", {**TAUGHT, **VIT}, ("method",)),
    "d2mae": Part(
        "d2mae",
        "vit_tiny",
        "adamw",
        {**TAUGHT, **VIT, "method.decode_from": 1},
        ("method",),
    ),
    "mocov3": Part("mocov3", "vit_tiny", "adamw", {**CONTRASTED, **VIT}, ("method",)),
    "simmim": Part("simmim", "swin_tiny", "adamw", {**HIDDEN, **SWIN}, ("method",)),
    "supervised": Part("supervised", "vit_tiny", "adamw", {**LABELLED, **VIT}, ("method",)),
}


MIXED: Options = {"method.mix.views": 1}
CLIPPED: Options = {"optim.clip": 0.01}
LOOKED_AT: Options = {"data.source": "classes", "watch.images": 12, "watch.every": "2st"}
TESTED: Options = {**LOOKED_AT, "watch.val": "tested"}
TOLD: Options = {"method.teacher": "tuned"}
BROKEN: Options = {"data.source": "broken", "data.max_unreadable": 20.0}

DIVERGING: Options = {"optim.lr.peak": 1e30, "train.duration": "8st"}
"""Not one number is finite from the third step on."""
UNFIT: Options = {"fit": ()}
"""Runs of few steps have a teacher of their own where nobody says otherwise."""
JUMPING: Options = {
    **UNFIT,
    "guard.spike": "rollback",
    "guard.spike_deviations": 1e-3,
    "train.save_every": "1st",
}
"""Every loss above the mean of those before is a spike."""
UNIFORM: Options = {f"method.teacher_temp.{part}": 100.0 for part in ("start", "peak", "end")}
"""The teacher says nothing."""

CHANGES: Mapping[str, tuple[object, Options]] = {
    "method.views.global_size": (24, {}),
    "method.views.global_scale": ((0.2, 0.5), {}),
    "method.views.local_sizes": ((8,), {}),
    "method.views.local_counts": ((1,), {}),
    "method.views.local_scale": ((0.3, 0.9), {}),
    "method.views.flip": (0.0, {}),
    "method.views.jitter": (0.0, {}),
    "method.views.jitter_strength": ((0.1, 0.1, 0.1, 0.0), {}),
    "method.views.gray": (1.0, {}),
    "method.views.blur": ((0.0, 0.0, 0.0), {}),
    "method.views.solarize": (1.0, {}),
    "method.head.prototypes": (24, {}),
    "method.head.hidden": (24, {}),
    "method.head.bottleneck": (4, {}),
    "method.head.batch_norm": (True, {}),
    "method.head.train_gain": (False, {}),
    "method.mix.views": (2, {}),
    "method.mix.mixup": (0.1, {**MIXED, "method.mix.switch": 0.0}),
    "method.mix.cutmix": (0.1, {**MIXED, "method.mix.switch": 1.0}),
    "method.mix.switch": (0.0, {**MIXED, "method.mix.switch": 1.0}),
    "method.views.size": (24, {}),
    "method.views.scale": ((0.2, 0.5), {}),
    "method.views.interpolation": ("bilinear", {}),
    "method.views.randaugment": (5.0, {}),
    "method.views.randaugment_std": (0.0, {}),
    "method.views.erase": (1.0, {}),
    "method.views.repeats": (2, {}),
    "method.hidden": (24, {}),
    "method.output": (4, {}),
    "method.temperature": (0.5, {}),
    "method.momentum.start": (0.8, UNFIT),
    "method.momentum.peak": (0.95, UNFIT),
    "method.momentum.end": (0.99, {}),
    "method.momentum.warmup": ("2st", {}),
    "method.momentum.shape": ("linear", {}),
    "method.freeze_patch_embed": (False, {}),
    "method.mask_patch": (4, {}),
    "method.mask_ratio": (0.3, {}),
    "method.decoder.dim": (16, {}),
    "method.decoder.depth": (2, {}),
    "method.decoder.heads": (1, {}),
    "method.normalize": (False, {}),
    "method.teacher": ("other.safetensors", {}),
    "method.attention_layers": ((0,), {}),
    "method.teacher_attention_layers": ((0,), {}),
    "method.attention_weight": (0.5, {}),
    "method.adapt_heads": (False, {}),
    "method.hidden_layers": ((1,), {}),
    "method.teacher_hidden_layers": ((1,), {}),
    "method.hidden_weight": (0.5, {}),
    "method.decode_from": (2, {}),
    "method.loss": ("l2", {}),
    "method.classes": (3, {}),
    "method.smoothing": (0.3, {}),
    "method.average": (0.9, {}),
    "method.distillation": ("soft", TOLD),
    "method.distillation_weight": (0.1, TOLD),
    "method.distillation_temperature": (2.0, {**TOLD, "method.distillation": "soft"}),
    "method.student_temp": (0.2, {}),
    "method.teacher_temp.start": (0.03, {}),
    "method.teacher_temp.peak": (0.05, {}),
    "method.teacher_temp.end": (0.2, {}),
    "method.teacher_temp.warmup": ("2st", {}),
    "method.teacher_temp.shape": ("cosine", {}),
    "method.teacher_momentum.start": (0.8, UNFIT),
    "method.teacher_momentum.peak": (0.95, UNFIT),
    "method.teacher_momentum.end": (0.99, {}),
    "method.teacher_momentum.warmup": ("2st", {}),
    "method.teacher_momentum.shape": ("linear", {}),
    "method.targets": ("sinkhorn", {}),
    "method.center_momentum": (0.5, {}),
    "method.sinkhorn_iterations": (1, {"method.targets": "sinkhorn"}),
    "method.koleo": (0.1, {}),
    "method.token_dropout": (0.5, {}),
    "method.freeze_prototypes": ("2st", {}),
    "method.region_weight": (0.1, {}),
    "method.region_start": ("2st", {}),
    "method.matching": ("transport", {}),
    "method.region_loss": ("mse", {}),
    "method.attention": ("flash", {}),
    "backbone.image_size": (16, {}),
    "backbone.patch": (2, {}),
    "backbone.drop_path": (0.5, {}),
    "backbone.name": ("test_mambaout", {}),
    "backbone.dim": (16, {}),
    "backbone.dims": ((8, 24), {}),
    "backbone.depths": ((2, 1), {}),
    "backbone.depth": (1, {}),
    "backbone.heads": ((2, 2), {}),
    "backbone.global_tokens": ((2, 0), {}),
    "backbone.sparse_stages": (0, {}),
    "backbone.window": (2, {}),
    "backbone.skip_padding": (True, {"backbone.window": 3}),
    "backbone.neighbors": ("one", {}),
    "backbone.mlp_ratio": (2.0, {}),
    "backbone.norm_eps": (1e-3, {}),
    "backbone.pool": ("mean", {}),
    "backbone.registers": (1, {}),
    "backbone.layer_scale": (0.1, {}),
    "backbone.positions": ("sincos", {}),
    "backbone.position_bias": (True, {}),
    "data.source": ("others", {}),
    "data.fraction": (0.5, {}),
    "data.imbalance": (3.0, {"data.source": "classes"}),
    "data.workers": (1, {}),
    "data.rendering": ("device", {}),
    "data.mean": ((0.5, 0.5, 0.5), {}),
    "data.std": ((0.5, 0.5, 0.5), {}),
    "data.max_unreadable": (5.0, BROKEN),
    "optim.lr.start": (2e-4, {}),
    "optim.lr.peak": (1e-3, {}),
    "optim.lr.end": (1e-4, {}),
    "optim.lr.warmup": ("2st", {}),
    "optim.lr.shape": ("linear", {}),
    "optim.lr_rule": ("sqrt", {}),
    "optim.weight_decay.start": (0.1, {}),
    "optim.weight_decay.peak": (0.2, {}),
    "optim.weight_decay.end": (0.1, {}),
    "optim.weight_decay.warmup": ("2st", {}),
    "optim.weight_decay.shape": ("linear", {}),
    "optim.decay_all_matrices": (True, {}),
    "optim.layer_decay": (0.5, {}),
    "optim.clip": (0.01, {}),
    "optim.clip_by": ("global", CLIPPED),
    "optim.betas": ((0.8, 0.9), {}),
    "optim.momentum": (0.5, {}),
    "optim.nesterov": (True, {}),
    "optim.trust": (0.01, {}),
    "train.duration": ("5st", {}),
    "train.batch": (6, {}),
    "train.accumulate": (2, {}),
    "train.precision": ("bf16", {}),
    "train.device": ("cuda", {}),
    "train.recompute": ("full", {}),
    "train.compile": ("blocks", {}),
    "train.seed": (1, {}),
    "train.log_every": ("2st", {}),
    "train.save_every": ("1st", {}),
    "train.keep": (1, {}),
    "train.keep_every": ("2st", {"train.keep": 1}),
    "train.save_minutes": (1e-6, {}),
    "train.progressive": (0.5, {}),
    "train.progressive_scale": (0.75, {"train.progressive": 0.5}),
    "watch.every": ("1st", LOOKED_AT),
    "watch.images": (6, LOOKED_AT),
    "watch.val": ("tested", LOOKED_AT),
    "watch.k": (1, TESTED),
    "guard.bad_number": ("skip", DIVERGING),
    "guard.most": (1, {**DIVERGING, "guard.bad_number": "skip"}),
    "guard.spike": ("stop", {**JUMPING, "guard.spike": "warn"}),
    "guard.spike_deviations": (1e9, JUMPING),
    "guard.lr_factor": (0.1, JUMPING),
    "guard.collapse": ("stop", UNIFORM),
    "fit": (
        ("backbone.image_size", "method.views.global_size"),
        {"backbone.image_size": 64},
    ),
    "init": ("start.safetensors", {}),
    "init_from": ("method", {"init": "first/out"}),
}
"""Option -> (another legal value, what else must be set for it to matter)."""

PLACES = ("data.source", "watch.val", "init", "method.teacher")
"""Options that name files, which lie in the probe's folder."""

OWN_CHANGES: Mapping[tuple[str, str], object] = {
    ("supervised", "method.teacher"): "tuned",
    ("dino", "backbone.heads"): 1,
    ("mocov3", "method.views.blur"): (0.0, 0.0),
    ("mocov3", "method.views.interpolation"): "bicubic",
    ("supervised", "method.mix.views"): 0,
}
"""(part, option) -> value, where the value above does not fit."""


@dataclass
class Watched:
    """A folder of images that notes which process read it."""

    source: Source
    notes: Path

    def __post_init__(self) -> None:
        self.classes, self.targets = self.source.classes, self.source.targets

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        worker = get_worker_info()
        (self.notes / ("main" if worker is None else f"worker {worker.id}")).touch()
        return self.source[index]

    def fingerprint(self) -> str:
        """Return the folder's own."""
        return self.source.fingerprint()

    def name(self, index: int) -> str:
        """Return the image's name."""
        return self.source.name(index)

    def validation(self) -> Source | None:
        """Return what the folder set aside."""
        return self.source.validation()

    def about(self) -> About:
        """Return the folder's own."""
        return self.source.about()


def digest(path: Path) -> str:
    """Return a hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train and return all that shows from outside: numbers, files, devices, readers."""
    notes, out = folder / "notes", folder / "out"
    for place in (notes, out):
        place.mkdir(parents=True)
    source = draw_subset(open_source(config.data.source), config.data, config.train.seed)
    try:
        resolved = resolve(config, measured_facts(config, source, quiet=True))
    except ValueError as error:
        return {"refused": str(error)}
    run = Run(resolved, Watched(source, notes), out, quiet=True)
    run.initialize()
    parts: list[int] = []
    run.state.method.register_forward_pre_hook(lambda _, given: parts.append(len(given[0])))
    norms = [0]
    if config.train.compile == "none":  # a hook would lie in the graph
        learner = run.state.method.learner() or run.state.method.encoder()
        for module in learner.modules():
            if "norm" in type(module).__name__.lower():
                module.register_forward_pre_hook(lambda *_: norms.append(norms.pop() + 1))
    ended = ""
    try:
        run.train()
    except ValueError as error:
        assert "data.max_unreadable" in str(error)
    except RunError as error:
        ended = type(error).__name__
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ignored = ("images_per_s", "data_wait", "lr", "weight_decay")  # timings and settings
    saved = sorted((out / "checkpoints").glob("*"))
    return {
        "ended": ended,
        "rows": [{k: v for k, v in row.items() if k not in ignored} for row in rows],
        "checkpoints": [path.name for path in saved],
        "weights": digest(saved[-1] / TENSORS) if saved else "none",
        "micro-batches": parts,
        "norms": norms,
        "device": str(run.state.device),
        "readers": sorted(path.name for path in notes.iterdir()),
    }


Probe = Callable[[str, Options], dict[str, Any]]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    """Return a function that runs a part with some options, once for the same request."""
    folder, threads = tmp_path_factory.mktemp("options"), torch.get_num_threads()
    write_images(folder / "images", 12)
    write_images(folder / "others", 12, side=48)
    write_images(folder / "broken", 12)
    (folder / "broken" / "005.png").write_bytes(b"no image")
    write_classes(folder / "classes", cats=9, dogs=3)
    for number, name in enumerate(("cats", "dogs")):
        write_images(folder / "tested" / name, 9, seed=5 + number)
    start = build(PARTS["esvit"].config({}).backbone)
    save_tensors(start.state_dict(), folder / "start.safetensors", header(start, {}))
    first = replace_options(PARTS["esvit"].config({}), {"data.source": str(folder / "images")})
    taught = PARTS["mae"].config({}).backbone
    for number, name in enumerate(("teacher", "other")):
        with seeded(number, "teacher"):
            teacher = build_backbone(taught)
        save_tensors(teacher.state_dict(), folder / f"{name}.safetensors", header(teacher, {}))
    write_tuned(folder / "tuned", start, classes=2)
    known: dict[str, dict[str, Any]] = {}

    def run(part: str, options: Options) -> dict[str, Any]:
        key = f"{part} {sorted(options.items())}"
        if key not in known:
            config = PARTS[part].config(options)
            every = dict(leaves(to_dict(config)))
            places = {name: str(folder / every[name]) for name in PLACES if every.get(name)}
            config = replace_options(config, places)
            known[key] = fingerprint(config, folder / str(len(known)))
        return known[key]

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_finish", lambda *_: None)  # pictures take longer than these runs
        patch.setattr("leanvit.run.view_grid", lambda *_: None)
        patch.setattr("leanvit.core.compiling.BACKEND", "eager")  # without machine code
        patch.setattr("leanvit.train.guard.WARMUP", 2)  # so that tiny losses have a level
        patch.setattr("leanvit.train.guard.LEAST_JUMP", 1e-9)
        fingerprint(first, folder / "first")
        yield run
    torch.set_num_threads(threads)


CASES = [(part, name) for part, entry in PARTS.items() for name in sorted(entry.names())]


def test_the_table_names_every_option_and_no_other() -> None:
    assert set(CHANGES) == {name for _, name in CASES}
    assert set(OWN_CHANGES) <= set(CASES)


@pytest.mark.parametrize(("part", "name"), CASES, ids=[f"{p}-{n}" for p, n in CASES])
def test_an_option_changes_what_a_run_does(part: str, name: str, probe: Probe) -> None:
    value, base = CHANGES[name]
    value = OWN_CHANGES.get((part, name), value)
    assert probe(part, {**base, name: value}) != probe(part, base)


def test_an_option_without_its_companion_changes_nothing(probe: Probe) -> None:
    for name in ("method.mix.mixup", "method.mix.cutmix", "method.mix.switch"):
        assert probe("esvit", {name: 0.1}) == probe("esvit", {}), "the probe sees what is not there"


@pytest.mark.parametrize("part", PARTS)
def test_the_same_options_do_the_same(part: str, probe: Probe) -> None:
    first = probe(part, {})
    clip = PARTS[part].config({}).optim.clip
    again = probe(part, {"optim.clip": clip})  # what it is anyway, so another run of the same
    assert first["weights"] == again["weights"]
    assert first == again
    assert len(first["rows"]) == 5 and len(first["checkpoints"]) == 2


def test_accumulation_splits_the_batch_and_keeps_the_loss(probe: Probe) -> None:
    whole, split = probe("esvit", {}), probe("esvit", {"train.accumulate": 2})
    assert whole["micro-batches"] == [4] * 4
    assert split["micro-batches"] == [2] * 8
    losses = [[row["loss"] for row in run["rows"][1:]] for run in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


AUTO: Mapping[str, tuple[str, list[int]]] = {
    "train.batch": ("esvit", [8] * 4),
    "train.accumulate": ("mae", [2] * 8),
}
"""Option that may be auto and is measured for -> (a part, the micro-batches that it leads to)."""


@pytest.mark.parametrize("name", AUTO)
def test_auto_fits_a_step_into_memory(
    name: str, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four images take 50 MiB and 10 each; there is room for 85 at most, or for all."""
    mib = 2**20

    def taken(trial: Trial) -> Taken:
        peak = (50 + 10 * trial.micro) * mib
        return Taken(peak=peak, state=0, gradients=mib, views=1, whole=False)

    monkeypatch.setattr("leanvit.train.fitting.attempt", taken)
    room = 85 if name == "train.accumulate" else 1000
    monkeypatch.setattr("leanvit.train.fitting.free_bytes", lambda _: room * mib / 0.8)
    part, expected = AUTO[name]
    assert probe(part, {})["micro-batches"] == [4] * 4
    assert probe(part, {name: "auto"})["micro-batches"] == expected


def test_every_option_that_may_be_auto_is_tried_so() -> None:
    hints = {name for name in CHANGES if name.startswith("train.")}
    found = {name for name in hints if _takes_auto(name)}
    assert found == {*AUTO, "train.precision", "train.device"}


def _takes_auto(name: str) -> bool:
    try:
        replace_options(PARTS["esvit"].config({}), {name: "auto"})
    except ValueError:
        return False
    return True


def test_a_device_that_renders_sees_almost_the_same(probe: Probe) -> None:
    """And decodes in threads, any number of them."""
    host, device = probe("esvit", {}), probe("esvit", {"data.rendering": "device"})
    assert device["readers"] == ["main"]
    losses = [[row["loss"] for row in run["rows"][1:]] for run in (host, device)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0] != losses[1]
    more = probe("esvit", {"data.rendering": "device", "data.workers": 3})
    assert more == device


def test_workers_read_the_images_and_change_no_number(probe: Probe) -> None:
    alone, helped = probe("esvit", {}), probe("esvit", {"data.workers": 1})
    assert alone["readers"] == ["main"]
    assert helped["readers"] == ["worker 0"]
    assert {**helped, "readers": ["main"]} == alone
