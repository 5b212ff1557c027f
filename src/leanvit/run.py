"""The composition of a run: configuration -> method, data, loop, observers."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
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
    replace_options,
    resolve,
    save_config,
    to_dict,
)
from leanvit.config.convert import leaves
from leanvit.core.distributed import world_size
from leanvit.data.batch import ViewBatch
from leanvit.data.loader import Views, load_views
from leanvit.data.sampler import Order
from leanvit.data.sources import Source, open_source
from leanvit.methods.catalogue import build_method
from leanvit.recipes import recipe as recipe_named
from leanvit.train.checkpoint import (
    Replacing,
    newest_checkpoint,
    refusals_named,
    save_checkpoint,
    save_tensors,
)
from leanvit.train.loop import train
from leanvit.train.metrics import JsonLines, Observer, TensorBoard, Terminal
from leanvit.train.state import TrainState

ASKED, RESOLVED = "config.json", "resolved.json"
METRICS, CURVES, CHECKPOINTS = "metrics.jsonl", "tensorboard", "checkpoints"
UNREADABLE = "unreadable.jsonl"
WRITTEN = (ASKED, RESOLVED, METRICS, CURVES, CHECKPOINTS, UNREADABLE, FILE)
"""All that a run writes, and all that --overwrite removes."""
FREE = ("data.source", "data.workers", "train.keep")
"""Options that change no number, so that a resumed run may have others."""


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
    chosen = {"data.source": data, "backbone": backbone, "optim": optimizer}
    named = [name for name, value in chosen.items() if value]
    resolved = resolve(asked, gather_facts(source), given=(*named, *(options or ())))
    out = Path(out)
    if resume:
        run = Run(_resumed(asked, resolved, out, source), source, out, quiet=quiet)
    else:
        _require_free(out, overwrite, Path(asked.data.source))
        run = Run(resolved, source, out, quiet=quiet)  # what cannot be built fails before a write
        _start(run, asked)
    run.train(resume=resume)
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
        bf16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        world=world_size(),
    )


def _require_free(out: Path, overwrite: bool, source: Path) -> None:
    """Raise ValueError if the folder holds what must not be touched or mixed with results."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {str(out)!r} is a file; name a folder.")
    images, results = source.resolve(), out.resolve()
    if images.is_relative_to(results) or results.is_relative_to(images):
        raise ValueError(
            f"The images in {str(source)!r} and the results in {str(out)!r} would lie in one "
            f"another; name an --out beside the images."
        )
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        saved = (out / CHECKPOINTS).exists() or not (out / RESOLVED).exists()
        raise ValueError(
            f"The folder {str(out)!r} is not empty: continue the run in it with --resume, "
            f"replace it with --overwrite{'' if saved else ' (it saved nothing yet)'}, or name "
            f"another --out."
        )
    if not (out / RESOLVED).exists():
        raise ValueError(
            f"The folder {str(out)!r} holds no run of leanvit, so --overwrite leaves it alone."
        )


def _start(run: "Run", asked: RunConfig) -> None:
    """Remove an old run's files, and only those; write down what was asked and what will run."""
    out = run.out
    try:
        for name in WRITTEN:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        save_config(asked, out / ASKED)
        images = {"count": len(run.source), "fingerprint": run.source.fingerprint()}
        versions = {"leanvit": leanvit.__version__, "torch": torch.__version__}
        started = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"started": started, "versions": versions, "images": images}
        record |= run.resolved.to_dict()
        (out / RESOLVED).write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"Cannot write to {str(out)!r}: {error.strerror}.") from error


def _resumed(asked: RunConfig, resolved: Resolved, out: Path, source: Source) -> Resolved:
    """Return what the run in `out` was resolved to, if the same is asked for now.

    What changes no number (`FREE`) may change and is taken from now.
    """
    if not (out / RESOLVED).exists():
        raise ValueError(f"There is no run to resume in {str(out)!r}.")
    before = dict(leaves(to_dict(load_config(out / ASKED))))
    now = dict(leaves(to_dict(asked)))
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in FREE
    ]
    if changed:
        raise ValueError(
            f"A run resumes as it began, but {'; '.join(changed)}. Ask for the same, or start a "
            f"new run in another folder."
        )
    try:
        record = json.loads((out / RESOLVED).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{out / RESOLVED} is damaged: {error}.") from error
    count = record["images"]["count"]
    if record["images"] != {"count": len(source), "fingerprint": source.fingerprint()}:
        what = f"{len(source)} now" if count != len(source) else "the same number of others now"
        raise ValueError(
            f"The run began with {count} images and there are {what}, so their order cannot be "
            f"continued."
        )
    current = dict(leaves(to_dict(resolved.config)))
    config = from_dict(RunConfig, record["config"])
    free = {name: current[name] for name in FREE}
    return Resolved(replace_options(config, free), record["origins"])


@dataclass
class Run:
    """A resolved run and the folder it lives in."""

    resolved: Resolved
    source: Source
    out: Path
    quiet: bool = False

    saved: int = field(default=0, init=False)
    """Step of the newest checkpoint of this run."""

    def __post_init__(self) -> None:
        config = self.config = self.resolved.config
        self.order = Order(len(self.source), config.train.batch, config.train.seed)
        method = build_method(config.method, config.backbone, config.train.seed)
        self.state = TrainState(method, config, epoch_steps=self.order.epoch_steps)
        self.views = method.views()

    def train(self, *, resume: bool = False) -> None:
        """Train from the newest checkpoint, if the run is resumed and has one, to the end."""
        if resume:
            self._restore()
        state, config = self.state, self.config
        every = config.train.save_every.amount
        self._say(
            f"{len(self.source)} images, {state.run} steps of {config.train.batch}, a checkpoint "
            f"every {every:g}; {config.train.precision} on {config.train.device}."
        )
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
        noted = self._noting_unreadable(batches)
        try:
            train(state, noted, save=self.save, observers=self._observers())
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(
                f"interrupted at step {state.step}; --resume continues from step {self.saved}"
            ) from error

    def _restore(self) -> None:
        checkpoint = newest_checkpoint(self.out / CHECKPOINTS, _warn)
        if checkpoint is None:
            self._say("The run saved nothing yet, so it begins again at step 0.")
            return
        require_same_networks(checkpoint.record["config"], self.config, checkpoint.path)
        self.state.restore(checkpoint.tensors(), checkpoint.step)
        self.saved = checkpoint.step
        self._say(f"Continuing at step {checkpoint.step} from {checkpoint.path}.")

    def save(self) -> None:
        """Write the backbone as it is now, then a checkpoint: none without its backbone."""
        state, config = self.state, self.config
        encoder = state.method.encoder()
        facts = {
            "method": config.method.kind,
            "recipe": config.recipe,
            "step": state.step,
            "mean": config.data.mean,
            "std": config.data.std,
            "version": leanvit.__version__,
        }
        with refusals_named(self.out / FILE), Replacing(self.out / FILE) as beside:
            save_tensors(encoder.state_dict(), beside, header(encoder, facts))
        save_checkpoint(
            self.out / CHECKPOINTS, state.step, state.tensors(), to_dict(config), config.train.keep
        )
        self.saved = state.step

    def _noting_unreadable(self, batches: Iterable[ViewBatch]) -> Iterator[ViewBatch]:
        """Pass batches on; write down, and say once, which images had to be replaced."""
        path = self.out / UNREADABLE
        for batch in batches:
            for entry in batch.unreadable:
                if not path.exists():
                    _warn(
                        f"The image {entry.name!r} cannot be read ({entry.error}); another one "
                        f"stands in. All such images are listed in {path}."
                    )
                with path.open("a") as file:
                    file.write(json.dumps(asdict(entry)) + "\n")
            yield batch

    def _observers(self) -> list[Observer]:
        observers: list[Observer] = [
            JsonLines(self.out / METRICS, after=self.state.step),
            TensorBoard(self.out / CURVES, after=self.state.step),
        ]
        return (
            observers
            if self.quiet
            else [*observers, Terminal(self.state.run, self.config.train.batch)]
        )

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def _warn(text: str) -> None:
    """Say what a person must know even of a quiet run."""
    print(f"leanvit: {text}", file=sys.stderr, flush=True)


def require_same_networks(saved: Mapping[str, Any], config: RunConfig, path: Path) -> None:
    """Raise ValueError, in one sentence, if a checkpoint holds other networks than the run."""

    def sizes(plain: Mapping[str, Any]) -> dict[str, Any]:
        parts = {"backbone": plain["backbone"], "method.head": plain["method"]["head"]}
        kinds = {"backbone": plain["backbone"]["kind"], "method": plain["method"]["kind"]}
        return kinds | dict(leaves(parts))

    before, now = sizes(saved), sizes(to_dict(config))
    differ = [name for name in before if name in now and before[name] != now[name]]
    differ = [name for name in differ if name in ("backbone", "method")] or differ
    if differ:
        named = ", ".join(f"{name} {before[name]} (run: {now[name]})" for name in differ)
        raise ValueError(f"The checkpoint {path} holds another network: {named}.")
