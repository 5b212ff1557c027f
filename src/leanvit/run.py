"""The composition of a run: configuration -> method, data, loop, observers."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from signal import SIGINT

import torch

from leanvit.analysis.pictures import loss_curves, view_grid
from leanvit.config import (
    MuonConfig,
    Resolved,
    settled,
)
from leanvit.config.cheaper import small_side, small_steps
from leanvit.core.console import say, warn
from leanvit.core.distributed import (
    all_max,
    expect_step,
    rank,
    while_others_wait,
    world_size,
)
from leanvit.core.errors import (
    CollapseError,
    DerailedError,
    NonFiniteError,
    RunError,
    SpikeError,
    Stopped,
)
from leanvit.core.files import Replacing, refusals_named, spared, write_synced
from leanvit.core.memory import shortage_named
from leanvit.data.batch import ViewBatch
from leanvit.data.loader import Views, load_views
from leanvit.data.sampler import Order
from leanvit.data.sources import Source
from leanvit.data.subsets import Drawn
from leanvit.data.views import ViewSpec
from leanvit.folder import (
    CURVES,
    EVENTS,
    LOSSES,
    PICTURES,
    SUMMARY,
    UNREADABLE,
    VIEWS,
)
from leanvit.looks import Looks
from leanvit.methods.base import Method
from leanvit.methods.catalogue import build_method, require_sizes
from leanvit.store import Store, require_same_networks
from leanvit.train.alarm import CollapseAlarm
from leanvit.train.guard import Event
from leanvit.train.loop import train
from leanvit.train.metrics import JsonLines, Observer, TensorBoard
from leanvit.train.optim import block_matrices
from leanvit.train.signals import Requests, unharmed_by_saving
from leanvit.train.start import Start, start_method
from leanvit.train.state import TrainState
from leanvit.train.terminal import Terminal
from leanvit.unreadable import UnreadableList
from leanvit.weights.card import METRICS
from leanvit.weights.file import FILE, STUDENT

LESS_MEMORY = (
    "--train.accumulate auto splits a step into as few parts as fit, where the method allows it, "
    "also of a run that goes on (--resume --allow train.accumulate); --train.batch auto begins one "
    "with the most images that fit."
)
"""What to do where a step takes too much."""
NO_MATRICES = (
    "Muon is for the matrices of linear layers, and this backbone has none in its blocks, so that "
    "all weights take AdamW's steps: --optimizer adamw says the same."
)
"""What is said of networks of convolutions."""


@dataclass
class Run:
    """A resolved run and the folder it lives in."""

    resolved: Resolved
    source: Source
    out: Path
    quiet: bool = False

    start: Start | None = field(default=None, init=False)
    """What its first weights are, unless all are fresh."""

    def __post_init__(self) -> None:
        config = self.config = self.resolved.config
        self.first = rank() == 0
        method = build_method(config.method, config.backbone, config.train.seed)
        self.views = method.views()
        self.advice = [*self.resolved.advice]
        """What is likely to keep the run from learning, a sentence each."""
        if isinstance(config.optim, MuonConfig) and not block_matrices(method):
            self.advice.append(NO_MATRICES)
        self.turn = small_steps(config)
        """The first step of which views are whole."""
        self.small = self._small_views(method)
        """Those before it; the same where all are."""
        self.order = Order(
            len(self.source),
            settled(config.train.batch),
            config.train.seed,
            rank(),
            world_size(),
            1 if self.views is None else self.views.repeats,
        )
        self.state = TrainState(method, config, epoch_steps=self.order.epoch_steps)
        both = {FILE: method.encoder(), STUDENT: method.learner()}
        self.networks = {file: network for file, network in both.items() if network is not None}
        for network in self.networks.values():
            network.mean, network.std = config.data.mean, config.data.std
        self.looks = Looks(method, self.source, config, self.out, workers=self.workers)
        self.alarm = CollapseAlarm(warn)
        self.store = Store(self.out, config, self.networks)
        self.unreadable = UnreadableList(
            self.out / UNREADABLE, len(self.source), config.data.max_unreadable
        )
        self.collapsed: dict[str, str] = {}

    def _small_views(self, method: Method) -> ViewSpec | None:
        """Return the views of the first steps. Raises ValueError if the network takes none such."""
        if self.views is None or not self.turn:
            return self.views
        small = self.views.resized(partial(small_side, config=self.config))
        try:
            require_sizes(method, small)
        except ValueError as error:
            raise ValueError(f"train.progressive begins with small views. {error}") from error
        return small

    def initialize(self) -> None:
        """Give the networks the weights that the run starts from, if it names any, and say so."""
        self.start = start_method(self.state.method, self.config)
        if self.start is not None:
            self._say(str(self.start))

    def restore(self) -> None:
        """Take up the newest checkpoint; without one, begin again.

        Raises ValueError if what is saved does not fit the run.
        """
        checkpoint, state = self.store.newest(), self.state
        if checkpoint is None:
            self._say("The run saved nothing yet, so it begins again at step 0.")
            self.initialize()
            return
        if checkpoint.step > state.run:
            raise ValueError(
                f"The run is at step {checkpoint.step}, beyond a train.duration of {state.run} "
                f"steps."
            )
        require_same_networks(checkpoint.record["config"], self.config, checkpoint.path)
        state.restore(checkpoint.tensors(), checkpoint.step)
        self._say(f"Continuing at step {checkpoint.step} from {checkpoint.path}.")

    @unharmed_by_saving()
    def train(self) -> None:
        """Train to the end from wherever the run stands."""
        state, config = self.state, self.config
        if state.step == state.run:  # no save is to come, should a backbone be gone
            self.store.save(state)
        began, first = time.perf_counter(), state.step
        every, world = config.train.save_every.amount, world_size()
        shared = f" shared by {world} processes" if world > 1 else ""
        if isinstance(self.source, Drawn):
            self._say(f"Trains on {self.source.about().what}.")
        self._say(
            f"{len(self.source)} images, {state.run} steps of {config.train.batch}{shared}, a "
            f"checkpoint every {every:g}; {config.train.precision} on {config.train.device}. "
            f"Everything is written to {self.out}."
        )
        if self.turn and self.small is not None and self.views is not None:
            sides = [
                " and ".join(str(group[0].size) for group in spec.groups)
                for spec in (self.small, self.views)
            ]
            then = f", then {sides[1]}" if self.turn < state.run else ""
            self._say(f"Views have {sides[0]} pixels a side for {self.turn} steps{then}.")
        for text in self.resolved.spoken_fit():
            self._say(f"Chosen: {text}.")
        for text in self.advice:
            self._say(f"Note: {text}")
        if "(" in (batch := self.resolved.spoken_batch()):
            self._say(f"Batch {batch}, peak learning rate {self.resolved.spoken_rate()}.")
        try:
            with shortage_named(LESS_MEMORY), Requests(config.train.save_minutes) as requests:
                while not self._trained(requests):
                    pass
        except (Stopped, KeyboardInterrupt) as stop:
            text = f"stopped at step {state.step}; --resume continues from step {self.store.saved}."
            if isinstance(stop, Stopped) and stop.signal != SIGINT:
                raise Stopped(f"{stop}: {text}", stop.signal) from stop
            raise KeyboardInterrupt(text) from stop
        finally:
            state.leave()
        if self.first:
            with refusals_named(self.out):
                self._finish(state.step - first, time.perf_counter() - began)

    def _trained(self, requests: Requests) -> bool:
        """Train to the end; return whether it was reached, and the run did not go back instead."""
        ended = False

        def save() -> None:
            while_others_wait(partial(self.store.save, self.state), _nothing)
            requests.saved()

        try:
            train(
                self.state,
                self._batches(),
                save=save,
                watch=lambda: while_others_wait(self.looks.look, dict),
                observers=self._observers(),
                asked=requests.due,
                heed=self._heed,
            )
            ended = True
        except DerailedError as error:
            self._go_back(error)
        finally:
            self.store.settle(strict=ended)
        return ended

    @property
    def workers(self) -> int:
        """Processes that read images."""
        assert self.config.data.workers != "auto"
        return self.config.data.workers

    def load_as(self, spec: ViewSpec | None, start: int, end: int) -> Iterator[ViewBatch]:
        """Yield the batches of steps start..end - 1 in such views, wherever the run stands."""
        assert spec is not None
        data = self.config.data
        views = Views(self.source, spec, data, self.config.train.seed)
        load = partial(load_views, workers=self.workers, rendering=data.rendering)
        return load(views, self.order, start, end, device=self.state.device)

    def load(self, start: int, end: int) -> Iterator[ViewBatch]:
        """Yield the batches of steps start..end - 1: small views to the turn, then whole ones."""
        if start < self.turn:
            yield from self.load_as(self.small, start, min(end, self.turn))
        if end > self.turn:
            yield from self.load_as(self.views, max(start, self.turn), end)

    def _loaded(self) -> Iterator[ViewBatch]:
        """Yield what is to come; images that are gone all at once end a run, not the request."""
        state = self.state
        try:
            yield from self.load(state.step, state.run)
        except ValueError as error:
            if state.step == 0:
                raise
            self.store.settle()  # so that the newest save is told of
            raise RunError(
                f"{error}. {self.store} --resume continues once they are back."
            ) from error

    def _batches(self) -> Iterator[ViewBatch]:
        state = self.state
        for number, batch in enumerate(self.unreadable.noting(self._loaded())):
            expect_step(first=number == 0 or state.step == self.turn)
            if number == 0 and state.step == 0 and self.first:
                data = self.config.data
                with spared(self.out / VIEWS):
                    view_grid(batch.groups, data.mean, data.std, self.out / VIEWS)
            yield batch

    def _go_back(self, error: DerailedError) -> None:
        """Return to a checkpoint before a derailed step, with a lower rate, if the run is told to.

        Raises the error that derailed it where it is not, where there is no such checkpoint, or
        once it went back often enough.
        """
        guard, state, kind = self.config.guard, self.state, type(error)
        while_others_wait(partial(self._keep_derailed, error), _nothing)
        policy = {NonFiniteError: guard.bad_number, SpikeError: guard.spike}
        if policy.get(kind, guard.collapse) != "rollback":
            raise kind(f"{error} {self.store}", error.step) from error
        if state.rollbacks >= guard.most:
            went = f"The run went back {state.rollbacks} times, as often as guard.most allows."
            raise kind(f"{error} {went}", error.step) from error
        # that of the very step would only meet the same loss again
        checkpoint = self.store.newest(before=error.step)
        if checkpoint is None:
            raise kind(
                f"{error} No checkpoint is older, to go back to: begin again with a lower rate.",
                error.step,
            ) from error
        back, scale = state.rollbacks + 1, state.lr_scale * guard.lr_factor
        state.restore(checkpoint.tensors(), checkpoint.step)
        state.rollbacks, state.lr_scale = back, scale
        self.collapsed |= self.alarm.told
        self.alarm = CollapseAlarm(warn)
        if self.first:
            warn(
                f"{error} The run goes back to step {state.step}, with {scale:g} times its "
                f"learning rate."
            )

    def _keep_derailed(self, error: DerailedError) -> None:
        """Let the disk have all that can be learned from a run that derailed."""
        self.store.settle()
        if not isinstance(error, CollapseError):
            for event in self.state.guard.newest:
                self._note(event)
            self.store.keep_derailed(self.state)

    def _heed(self, events: Sequence[Event]) -> None:
        """Write down the steps that stood out; end, or take back, a run that collapsed."""
        policy = self.config.guard
        for event in events if self.first else ():
            left_out = policy.spike == "skip" or not event.spike
            then = "was left out" if left_out else "is part of the run like any other"
            warn(f"{event}, which {then}. Such steps are listed in {self.out / EVENTS}.")
            self._note(event)
        if policy.collapse == "warn":
            return
        collapsed = torch.tensor(int(bool(self.alarm.told)), device=self.state.device)
        if all_max(collapsed).item():
            meaning = "; ".join(self.alarm.told.values()) or "the first process has said how"
            raise CollapseError(
                f"The run collapsed by step {self.state.step}: {meaning}.", self.state.step
            )

    def _note(self, event: Event) -> None:
        """Write down a step that stood out, with the images of all processes."""
        keys = replace(self.order, rank=0, world=1).keys(event.step)
        self.store.note(event, [key.index for key in keys])

    def _observers(self) -> list[Observer]:
        if not self.first:
            return []
        step = self.state.step
        after = step if step else -1
        rows = JsonLines(self.out / METRICS, after=after)
        self.store.ahead = rows.sync
        shown = [] if self.quiet else [Terminal(self.state.run, step)]
        return [rows, TensorBoard(self.out / CURVES, after=after), *shown, self.alarm]

    def _finish(self, steps: int, seconds: float) -> None:
        """Draw what the run did and learned, and sum it up."""
        rows = [json.loads(line) for line in (self.out / METRICS).read_text().splitlines()]
        if rows:  # none where a run had its last step, and somebody removed its rows
            with spared(self.out / LOSSES):
                loss_curves(rows, self.out / LOSSES)
        found = self.looks.draw_matches()
        shown = [change for change in map(partial(_change, rows), CHANGES) if change]
        if shown:
            self._say(f"From the first look to the last: {'; '.join(shown)}.")
        summary = {
            "backbone": str(self.out / FILE),
            "init": self.start.to_dict() if self.start else None,
            "images": len(self.source),
            "steps": self.state.step,
            "processes": world_size(),
            "seconds": seconds,
            "images_per_s": steps * settled(self.config.train.batch) / seconds,
            **self.state.passes.row(),
            "unreadable": len(self.unreadable),
            "first": rows[0] if rows else {},
            "last": rows[-1] if rows else {},
            "collapse": self.collapsed | self.alarm.told,
            "correct_matches": found,
            "pictures": [str(self.out / name) for name in PICTURES if (self.out / name).exists()],
        }
        with Replacing(self.out / SUMMARY) as beside:
            write_synced(beside, (json.dumps(summary, indent=2) + "\n").encode())

    def _say(self, text: str) -> None:
        if self.first and not self.quiet:
            say(text)


def _nothing() -> None:
    """Leave it to the first process."""


CHANGES = {
    "knn": "k-NN {:.1f} -> {:.1f} %",
    "effective_rank": "effective rank {:.1f} -> {:.1f}",
    "correct_matches": "regions matched rightly {:.0f} -> {:.0f} %",
}
"""What is said of a metric at the end of a run."""


def _change(rows: Sequence[Mapping[str, float]], name: str) -> str:
    """Return how a metric went over a run, in words; nothing if it was seen less than twice."""
    seen = [row[name] for row in rows if name in row]
    return CHANGES[name].format(seen[0], seen[-1]) if len(seen) > 1 else ""
