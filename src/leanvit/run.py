"""The composition of a run: configuration -> method, data, loop, observers."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import leanvit
from leanvit.backbones.weights import FILE, header
from leanvit.config import (
    Facts,
    Resolved,
    RunConfig,
    compose,
    from_dict,
    load_config,
    resolve,
    save_config,
    to_dict,
)
from leanvit.config.convert import leaves
from leanvit.core.distributed import world_size
from leanvit.data.loader import Views, load_views
from leanvit.data.sampler import Order
from leanvit.data.sources import Source, open_source
from leanvit.methods.catalogue import build_method
from leanvit.recipes import recipe as recipe_named
from leanvit.train.checkpoint import Replacing, newest_checkpoint, save_checkpoint, save_tensors
from leanvit.train.loop import train
from leanvit.train.metrics import JsonLines, Observer, TensorBoard, Terminal
from leanvit.train.state import TrainState

CHECKPOINTS = "checkpoints"


def pretrain(
    recipe: str | RunConfig,
    *,
    out: str | Path,
    data: str = "",
    backbone: str = "",
    optimizer: str = "",
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Pre-train a backbone on a folder of images; return the path of its file.

    recipe: a name of `leanvit.recipes.RECIPES`, or a whole configuration; data: the folder;
    out: where everything is written; backbone, optimizer: names that replace the recipe's;
    options: single values by dotted name, such as {"train.batch": 32}; resume: continue the run
    in `out`; overwrite: remove what is in `out` first; quiet: print nothing.
    Raises ValueError for a mistake in the request, NonFiniteError for a diverged run and
    CheckpointError for a disk that refuses.
    """
    if resume and overwrite:
        raise ValueError("--resume continues a run and --overwrite replaces it: choose one.")
    config = recipe_named(recipe) if isinstance(recipe, str) else recipe
    asked = compose(config, data=data, backbone=backbone, optimizer=optimizer, options=options)
    source = open_source(asked.data.source)
    out = Path(out)
    if resume:
        run = Run(_resumed(asked, out, len(source)), source, out, quiet=quiet)
    else:
        chosen = {"data.source": data, "backbone": backbone, "optim": optimizer}
        named = [name for name, value in chosen.items() if value]
        resolved = resolve(asked, gather_facts(source), given=(*named, *(options or ())))
        _require_free(out, overwrite, Path(asked.data.source))
        run = Run(resolved, source, out, quiet=quiet)  # what cannot be built fails before a write
        _start(run, asked, len(source))
    run.train()
    return out / FILE


def gather_facts(source: Source) -> Facts:
    """Find out once what the rules of `resolve` need to know.

    Raises ValueError under a launcher of several processes, which this version cannot join.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "This version trains in one process, but WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']}: start it without torchrun."
        )
    cuda = torch.cuda.is_available()
    return Facts(
        images=len(source),
        cores=len(os.sched_getaffinity(0)),
        device="cuda" if cuda else "cpu",
        bf16=cuda and torch.cuda.is_bf16_supported(),
        world=world_size(),
    )


def _require_free(out: Path, overwrite: bool, source: Path) -> None:
    """Raise ValueError if something is in the folder that may not be removed."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {str(out)!r} is a file; name a folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"The folder {str(out)!r} is not empty: continue the run in it with --resume, "
            f"replace it with --overwrite, or name another --out."
        )
    if not (out / "config.json").exists():
        raise ValueError(
            f"The folder {str(out)!r} holds no run of leanvit, so --overwrite leaves it alone."
        )
    if source.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"The images lie in {str(out)!r}, which --overwrite would remove; name another --out."
        )


def _start(run: "Run", asked: RunConfig, images: int) -> None:
    """Empty the run's folder and write down what was asked and what will run."""
    if run.out.exists():
        shutil.rmtree(run.out)
    run.out.mkdir(parents=True)
    save_config(asked, run.out / "config.json")
    record = {**run.resolved.to_dict(), "images": images}
    (run.out / "resolved.json").write_text(json.dumps(record, indent=2) + "\n")


def _resumed(asked: RunConfig, out: Path, images: int) -> Resolved:
    """Return what the run in `out` was resolved to, if the same is asked for now."""
    if not (out / "resolved.json").exists():
        raise ValueError(f"There is no run to resume in {str(out)!r}.")
    before = dict(leaves(to_dict(load_config(out / "config.json"))))
    now = dict(leaves(to_dict(asked)))
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"A run resumes as it began, but {'; '.join(changed)}. Ask for the same, or start a "
            f"new run in another folder."
        )
    record = json.loads((out / "resolved.json").read_text())
    if record["images"] != images:
        raise ValueError(
            f"The run began with {record['images']} images and there are {images} now, so their "
            f"order cannot be continued."
        )
    return Resolved(from_dict(RunConfig, record["config"]), record["origins"])


@dataclass
class Run:
    """A resolved run and the folder it lives in."""

    resolved: Resolved
    source: Source
    out: Path
    quiet: bool = False

    def __post_init__(self) -> None:
        config = self.config = self.resolved.config
        self.order = Order(len(self.source), config.train.batch, config.train.seed)
        method = build_method(config.method, config.backbone, config.train.seed)
        self.state = TrainState(method, config, epoch_steps=self.order.epoch_steps)
        self.views = method.views()

    def train(self) -> None:
        """Train from the newest checkpoint, or from the start, to the end."""
        self._restore()
        state, config = self.state, self.config
        assert self.views is not None
        views = Views(self.source, self.views, config.data, config.train.seed)
        assert config.data.workers != "auto"
        batches = load_views(
            views,
            self.order,
            state.step,
            state.run,
            workers=config.data.workers,
            device=state.device,
        )
        train(state, batches, save=self.save, observers=self._observers())

    def _restore(self) -> None:
        checkpoint = newest_checkpoint(self.out / CHECKPOINTS, self._say)
        if checkpoint is None:
            return
        require_same_networks(checkpoint.record["config"], self.config, checkpoint.path)
        self.state.restore(checkpoint.tensors(), checkpoint.step)
        self._say(f"Continuing at step {checkpoint.step} from {checkpoint.path}.")

    def save(self) -> None:
        """Write a checkpoint, and the backbone as it is now beside it."""
        state, config = self.state, self.config
        save_checkpoint(
            self.out / CHECKPOINTS, state.step, state.tensors(), to_dict(config), config.train.keep
        )
        encoder = state.method.encoder()
        facts = {
            "method": config.method.kind,
            "recipe": config.recipe,
            "step": state.step,
            "mean": config.data.mean,
            "std": config.data.std,
            "version": leanvit.__version__,
        }
        with Replacing(self.out / FILE) as beside:
            save_tensors(encoder.state_dict(), beside, header(encoder, facts))

    def _observers(self) -> list[Observer]:
        observers: list[Observer] = [
            JsonLines(self.out / "metrics.jsonl", after=self.state.step),
            TensorBoard(self.out / "tensorboard", after=self.state.step),
        ]
        return observers if self.quiet else [*observers, Terminal(self.state.run)]

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def require_same_networks(saved: Mapping[str, Any], config: RunConfig, path: Path) -> None:
    """Raise ValueError, in one sentence, if a checkpoint holds other networks than the run."""
    before = dict(leaves({part: saved[part] for part in ("backbone", "method")}))
    plain = to_dict(config)
    now = dict(leaves({part: plain[part] for part in ("backbone", "method")}))
    kinds = [(part, saved[part]["kind"], plain[part]["kind"]) for part in ("backbone", "method")]
    differ = [f"{part} {old} (run: {new})" for part, old, new in kinds if old != new]
    differ += [
        f"{name} {before[name]} (run: {now[name]})"
        for name in before
        if name in now and before[name] != now[name] and not differ
    ]
    if differ:
        raise ValueError(f"The checkpoint {path} holds another network: {', '.join(differ)}.")
