"""`leanvit replay`: do one step of a run once more, look inside, and touch nothing of the run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import leanvit
from leanvit.analysis.inside import Fault, Inside
from leanvit.analysis.pictures import view_grid
from leanvit.config import (
    DinoConfig,
    RunConfig,
    replace_options,
    resolve,
    settled,
    to_dict,
)
from leanvit.config.convert import leaves
from leanvit.config.resume import RESOLVED, Past, read_past
from leanvit.core.console import say, track, warn
from leanvit.core.distributed import require_alone
from leanvit.core.errors import DerailedError, SpikeError
from leanvit.data.batch import ViewBatch
from leanvit.data.sampler import Key
from leanvit.data.sources import Source
from leanvit.folder import DERAILED, EVENTS, VIEWS, require_apart, require_same_images
from leanvit.methods.base import Moment
from leanvit.request import open_images
from leanvit.run import Run
from leanvit.store import require_same_networks
from leanvit.train.checkpoint import CHECKPOINTS, Checkpoint, newest_checkpoint
from leanvit.train.facts import gather_facts
from leanvit.train.guard import Event
from leanvit.train.optim import clip_gradients
from leanvit.train.state import TrainState
from leanvit.weights.card import METRICS

REPORT = "replay.json"
CHANGES = (
    *("train.precision", "train.device", "train.accumulate", "data.source", "data.workers"),
    *("method.", "backbone.", "guard."),
)
"""Options, and beginnings of such, that may be others than the run's: the step is still its own."""
AFTERWARDS = "optim."
"""Beginning of those that change what the next step starts from."""
UNSEEN = ("data.source", "data.workers", "watch.images", "watch.val", "train.recompute")
"""Options that change no number of a step."""
LISTED = 10
"""Images that the text names."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the batch."""

    index: int
    """Its number in the source."""
    name: str
    """Its name in the source."""
    gradient: float
    """Norm of the loss's gradient at the pixels of all its views."""
    instead_of: str = ""
    """The unreadable image that it stood in for, and why it could not be read."""

    def __str__(self) -> str:
        stands = f"  instead of {self.instead_of}" if self.instead_of else ""
        return f"{self.gradient:<12.6g} {self.name}{stands}"


@dataclass(frozen=True, slots=True)
class Replay:
    """What one step of a run found when it was done once more."""

    run: str
    """Folder of the run."""
    step: int
    """The step, counted from 0."""
    state: str
    """Checkpoint that it was begun from; empty for the first weights of the run."""
    redone: int
    """Steps that were done again before it."""
    device: str
    """Where it was done."""
    precision: str
    """In which arithmetic."""
    recorded: str
    """What the run noted of the step: `bad number`, `spike`, or nothing."""
    found: str
    """The same of the step now."""
    same: bool
    """Whether these agree."""
    verdict: str
    """What that means, in words."""
    loss: float
    """Loss of the whole batch."""
    level: Mapping[str, float]
    """Mean and deviation of the loss before the step, and how many steps they are of."""
    terms: Mapping[str, float]
    """Parts of the loss before weighting."""
    norms: Mapping[str, float]
    """Norm of the gradient of each part of the method, before clipping."""
    fault: Fault | None
    """The first module whose output was not finite; None if there is none."""
    gradient: str
    """The first parameter whose gradient was not finite; empty if there is none."""
    blocks: Mapping[str, float]
    """Largest absolute output of each block."""
    images: Sequence[Image]
    """The batch: first what has a gradient that is not finite, then by falling gradient."""
    pictures: Sequence[str]
    """Pictures that were written."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; numbers that are not finite are the words nan, inf and -inf."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def __str__(self) -> str:
        begun = self.state or "the first weights"
        before = f", {self.redone} steps before it done again" if self.redone else ""
        lines = [
            f"step         {self.step}, from {begun}{before}; {self.precision} on {self.device}",
            f"verdict      {self.verdict}",
            f"loss         {self.loss:.9g}, level {self.level['mean']:.6g} with deviation "
            f"{self.level['deviation']:.3g} over {self.level['steps']:g} steps",
            *_rows("term", self.terms),
            *_rows("gradient", self.norms),
            f"not finite   first output: {self.fault or 'none'}",
            f"             first gradient: {self.gradient or 'none'}",
            *_rows("block", self.blocks),
            *(f"image        {image}" for image in self.images[:LISTED]),
        ]
        if len(self.images) > LISTED:
            lines.append(f"             and {len(self.images) - LISTED} more")
        return "\n".join([*lines, f"views        {', '.join(self.pictures)}"])


def replay(
    run: str | Path,
    step: int | None = None,
    *,
    since: int | None = None,
    out: str | Path = "replay",
    data: Source | None = None,
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Replay:
    """Do one step of a run once more and say what happens in it; the run's folder stays as it is.

    run: the folder of the run; step: which, by default the last one that stood out; since: a step
    to begin at, by default the step itself. The state before it is what the run left of it; where
    it left none, the newest checkpoint before, and the steps between are done again. out: folder
    for a picture of the views and for the report; data: the images of a run that was given a
    source from Python; options: changes to try, by dotted name, which hold from the first step
    that is done: `train.precision`, `train.device`, those of method, backbone and guard, and with
    an earlier `since` those of the optimiser.
    Raises ValueError if there is no such run or step, or its images are others now, and
    DerailedError if a step on the way goes wrong here.
    """
    require_alone("replay")
    trace, out = _find(Path(run), step, since), Path(out)
    config = _changed(trace, dict(options or {}))
    source = open_images(config, config.data.source if data is None else data)
    require_same_images(trace.run.record["images"], source)
    _require_elsewhere(out, trace.folder, config.data.source)
    again = Run(resolve(config, gather_facts(source)), source, out, quiet=True)
    _begin(again, trace)
    batch = _redo(again, trace, quiet)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot write to {str(out)!r}: {error.strerror}.") from error
    found = _look(again, batch, trace)
    (out / REPORT).write_text(json.dumps(found.to_dict(), indent=2) + "\n")
    return found


@dataclass(frozen=True, slots=True)
class _Trace:
    """What a run left that says how one of its steps went."""

    folder: Path
    run: Past
    step: int
    event: Event | None
    """What the run noted of the step."""
    checkpoint: Checkpoint | None
    """The state to begin from; None for the first weights."""

    @property
    def config(self) -> RunConfig:
        """What the run ran with."""
        return self.run.resolved.config

    @property
    def begun(self) -> int:
        """The step of that state."""
        return self.checkpoint.step if self.checkpoint else 0


def _find(folder: Path, step: int | None, since: int | None) -> _Trace:
    """Return what the run in a folder left of a step, of the last bad one if none is named."""
    run, events = read_past(folder), _events(folder / EVENTS)
    if step is None and not events:
        raise ValueError(f"The run in {str(folder)!r} met no bad step; --step N replays any other.")
    step = events[-1].step if step is None else step
    steps = int(run.resolved.config.train.duration.amount)
    if not 0 <= step < steps:
        raise ValueError(f"The run has the steps 0 to {steps - 1}, so none is {step}.")
    since = step if since is None else since
    if not 0 <= since <= step:
        raise ValueError(f"A replay of step {step} begins at a step from 0 to {step}, not {since}.")
    return _Trace(
        folder=folder,
        run=run,
        step=step,
        event=next((event for event in reversed(events) if event.step == step), None),
        checkpoint=_state_before(folder, step, since),
    )


def _events(path: Path) -> list[Event]:
    """Return the steps that stood out, in the order in which the run met them."""
    return [Event(row["step"], row["spike"]) for row in _lines(path)]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, none if there is none; one that was cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the run was killed while it wrote
    return found


def _state_before(folder: Path, step: int, since: int) -> Checkpoint | None:
    """Return the state to begin from: what the run left of the step itself, else a checkpoint.

    A derailed state leads to no later step, since the run went on from elsewhere.
    """
    if since == step:
        derailed = newest_checkpoint(folder / DERAILED, warn, before=step + 1)
        if derailed is not None and derailed.step == step:
            return derailed
    return newest_checkpoint(folder / CHECKPOINTS, warn, before=since + 1)


def _changed(trace: _Trace, options: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of the run with some options changed.

    Raises ValueError for one that makes another step of it, or changes nothing.
    """
    later = trace.begun < trace.step
    for name in options:
        if not name.startswith((*CHANGES, AFTERWARDS)):
            raise ValueError(
                f"{name} cannot be tried in a replay, since it makes other steps of the run's; "
                f"what can: {', '.join(CHANGES)} and, with --from, {AFTERWARDS}"
            )
        if name.startswith(AFTERWARDS) and not later:
            raise ValueError(
                f"{name} changes what follows a step, not the step; begin before step {trace.step} "
                f"with --from N."
            )
    config = replace_options(trace.config, options)
    own: dict[str, Any] = {"watch.images": 0, "watch.val": ""}  # nothing is watched
    own |= {"train.recompute": "none", "train.compile": "none"}  # nobody sees into compiled blocks
    if config.train.device != trace.config.train.device:
        own["data.rendering"] = "auto"
        if isinstance(config.method, DinoConfig) and "method.attention" not in options:
            own["method.attention"] = "auto"
    return replace_options(config, own)


def _require_elsewhere(out: Path, folder: Path, source: str) -> None:
    if out.resolve().is_relative_to(folder.resolve()) or (out / RESOLVED).exists():
        raise ValueError(f"A replay leaves runs as they are, so --out {str(out)!r} cannot be one.")
    require_apart(out, source)


def _begin(again: Run, trace: _Trace) -> None:
    """Give a run the state that the replay begins from."""
    state, checkpoint = again.state, trace.checkpoint
    if checkpoint is None:
        again.initialize()
    else:
        require_same_networks(checkpoint.record["config"], state.config, checkpoint.path)
        state.restore(checkpoint.tensors(), checkpoint.step)


def _slow_down(state: TrainState, rows: Sequence[Mapping[str, float]], factor: float) -> None:
    """Lower the learning rate where the run had gone back before it did this step for good."""
    after = next((row for row in rows if row["step"] > state.step), rows[-1] if rows else {})
    while state.rollbacks < after.get("rollbacks", 0):
        state.rollbacks += 1
        state.lr_scale *= factor


def _redo(again: Run, trace: _Trace, quiet: bool) -> ViewBatch:
    """Do the steps before the one in question again; return its batch."""
    state, first, step = again.state, again.state.step, trace.step
    rows = _lines(trace.folder / METRICS)
    if first < step and not quiet:
        say(f"Steps {first} to {step - 1} are done again first, {step - first} in all.")
    batches = again.load(first, step + 1)
    for batch in track(batches, "steps before", step + 1 - first, quiet=quiet):
        if state.step == step:
            break
        _slow_down(state, rows, trace.config.guard.lr_factor)
        at = state.begin_step()
        _learn(state, batch, at)
        state.update(at)
        try:
            state.require_sound()
        except DerailedError as error:
            raise type(error)(f"On the way to step {step}: {error}", error.step) from error
    return batch


def _learn(state: TrainState, batch: ViewBatch, at: Moment) -> None:
    parts = settled(state.config.train.accumulate)
    for micro in batch.split(parts):
        state.backward(micro, at, parts)


def _look(again: Run, batch: ViewBatch, trace: _Trace) -> Replay:
    """Do the step itself under observation, and draw its views."""
    state, config = again.state, again.config
    mean, variance, count = state.guard.tensors()["level"].tolist()
    batch = replace(batch, groups=tuple(group.requires_grad_() for group in batch.groups))
    at = state.begin_step()
    with Inside(state.method) as inside:
        _learn(state, batch, at)
    norms, _ = clip_gradients(state.parts, 0, "tensor")
    state.update(at)
    now = _event(state)
    order, images = _images(again.source, batch, again.order.keys(trace.step))
    drawn = [group.index_select(1, order.to(group.device)) for group in batch.groups]
    view_grid(drawn, config.data.mean, config.data.std, again.out / VIEWS)
    recorded, found = (_word(event) for event in (trace.event, now))
    return Replay(
        run=str(trace.folder),
        step=trace.step,
        state=str(trace.checkpoint.path) if trace.checkpoint else "",
        redone=trace.step - trace.begun,
        device=config.train.device,
        precision=config.train.precision,
        recorded=recorded,
        found=found,
        same=recorded == found,
        verdict=_verdict(recorded, found, _differences(trace, config)),
        loss=sum(float(out.total.detach() / len(inside.outputs)) for out in inside.outputs),
        level={"mean": mean, "deviation": math.sqrt(variance), "steps": count},
        terms=_means([out.terms for out in inside.outputs]),
        norms={name: float(norm) for name, norm in norms.items()},
        fault=inside.fault,
        gradient=inside.gradient,
        blocks=inside.largest,
        images=images,
        pictures=[str(again.out / VIEWS)],
    )


def _event(state: TrainState) -> Event | None:
    """Return what the guard says of the last step, whatever the run would do then."""
    try:
        return next(iter(state.guard.events()), None)
    except DerailedError as error:
        return Event(error.step, isinstance(error, SpikeError))


def _images(source: Source, batch: ViewBatch, keys: Sequence[Key]) -> tuple[Tensor, list[Image]]:
    """Return the order in which the images of a batch stand out, and what each is."""
    squares = torch.zeros(len(batch), dtype=torch.float64)
    for group in batch.groups:
        if group.grad is not None:
            squares += group.grad.double().square().sum((0, 2, 3, 4)).cpu()
    order = squares.nan_to_num(math.inf).argsort(descending=True, stable=True)
    broken = {bad.index: f"{bad.name!r} ({bad.error})" for bad in batch.unreadable}
    found = []
    for place in order.tolist():
        index, wanted = int(batch.index[place]), keys[place].index
        instead_of = "" if index == wanted else broken[wanted]
        norm = math.sqrt(squares[place])
        found.append(Image(index, source.name(index), norm, instead_of))
    return order, found


def _means(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    return {name: sum(float(row[name].detach()) for row in rows) / len(rows) for name in rows[0]}


def _word(event: Event | None) -> str:
    return "" if event is None else "spike" if event.spike else "bad number"


MEANINGS = {
    "": "an ordinary step",
    "spike": "the loss is far above its level",
    "bad number": "the loss or a gradient is not finite",
}
"""What is found of a step, in words."""


def _differences(trace: _Trace, config: RunConfig) -> list[str]:
    """Return what is other here than in the run and could change a number."""
    before, now = (dict(leaves(to_dict(each))) for each in (trace.config, config))
    apart = [name for name in before if before[name] != now[name] and name not in UNSEEN]
    versions = {"leanvit": leanvit.__version__, "torch": torch.__version__}
    recorded = trace.run.record["versions"]
    return [
        *(f"{name} is {now[name]}, not {before[name]}" for name in apart),
        *(f"{n} is {v}, not {recorded[n]}" for n, v in versions.items() if v != recorded[n]),
    ]


def _verdict(recorded: str, found: str, differences: Sequence[str]) -> str:
    if recorded == found:
        return MEANINGS[found] + (
            ", as in the run" if found else ", of which the run noted nothing"
        )
    why = "; ".join(differences) or (
        "nothing that is written down differs, so look at what is not: the number of processes or "
        "threads, the machine"
    )
    return f"{MEANINGS[found]}, but in the run {MEANINGS[recorded].replace(' is ', ' was ')}: {why}"


def _rows(title: str, values: Mapping[str, float]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"{title:<12} {name:<{width}}  {value:.6g}" for name, value in values.items()]


def _plain(value: Any) -> Any:
    """Return a value as JSON can have it: numbers that are not finite become words."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
