"""What a network is worth on one data set of official parts.

Hyper-parameters are chosen on the validation part, or, where nobody published one, on the first
fifth of each class; then all of both is learned from, and the test part is looked at once.

Letters: N images, D columns, C classes. Labels are numbers of classes [N], or where an image may
have several [N, C]: 1, 0, or -1 for left open.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanvit.backbones.base import Backbone
from leanvit.config import to_dict
from leanvit.config.evaluation import FinetuneConfig, TransferConfig
from leanvit.core import kept, random
from leanvit.core.distributed import rank
from leanvit.data.images import mark
from leanvit.data.published import Parts, TaggedSource
from leanvit.data.sources import Source, Subset
from leanvit.data.subsets import Joined
from leanvit.data.transfer import TransferSet, labels_of
from leanvit.evaluation.adapting import fit_to_tune
from leanvit.evaluation.elevater import search_trials, train_trials
from leanvit.evaluation.features import describe_network, digest
from leanvit.evaluation.finetune import Training, folder_of, run_config, settle, start
from leanvit.evaluation.inputs import Seen
from leanvit.evaluation.kept import code_digest
from leanvit.evaluation.logistic import ITERATIONS, Labelled, fit_logistic, sweep_logistic
from leanvit.evaluation.scores import SCORES
from leanvit.weights.loading import open_weights

FIFTH = 5
"""One in so many images of each class chooses, where there is no validation part."""
FEATURES = "features"
KIND, MOST = "transfer", 2**24
"""Where outcomes are kept, and how many bytes of them."""
LOOSE = ("data", "sets", "results", "keep_features", "workers", "max_unreadable")
"""Options that change nothing about a set, as long as the same images are read."""


@dataclass(frozen=True, slots=True)
class Task:
    """A data set, and the network that is to be tried on it."""

    entry: TransferSet
    parts: Parts
    config: TransferConfig
    model: str | Path
    network: Backbone
    seen: Seen

    @property
    def sources(self) -> dict[str, Source]:
        """The parts that there are, by name."""
        parts = {"train": self.parts.train, "val": self.parts.val, "test": self.parts.test}
        return {name: source for name, source in parts.items() if source is not None}

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.parts.train.classes)

    def worth(self, scores: Tensor, labels: Tensor) -> float:
        """Return what scores [N, C] are worth by the set's own metric, in percent."""
        return SCORES[self.entry.metric](scores, labels)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found of a data set."""

    score: float
    chosen: str
    """The hyper-parameters, in words."""
    notes: tuple[str, ...] = ()


def judge(task: Task) -> Outcome:
    """Return what a network is worth on a data set; what was found before is not trained again.

    An outcome is kept by the network, the options, this code, and all features, or for fine-tuning
    all images, as they are now: they are read, so it is never stale. Raises ValueError if the
    images or their features do not allow it, and NonFiniteError for a training that diverged.
    """
    if task.config.probe == "finetune":
        if isinstance(task.parts.train, TaggedSource):
            raise ValueError(
                "its images may have several classes, which fine-tuning does not learn; use "
                "another probe."
            )
        place = _place(task, _marks(task))
        return _kept(place) or _keep(place, _finetune(task))
    found = {name: _describe(task, name) for name in task.sources}
    place = _place(task, b"".join(map(_bytes, found.values())))
    method = _elevater if task.config.probe == "elevater" else _logistic
    return _kept(place) or _keep(place, method(task, *_learned(task, found), found["test"]))


def _describe(task: Task, part: str) -> Labelled:
    """Return features [N, D] of the images of a part that can be read, and their labels."""
    source = task.sources[part]
    way = {FEATURES: describe_network(task.network)}
    found = task.seen.describe(source, f"{task.entry.name}, {part}", way)
    labels = torch.from_numpy(labels_of(source)[found.index.numpy()])
    return found.rows[FEATURES], labels


def _learned(task: Task, found: Mapping[str, Labelled]) -> tuple[Labelled, Labelled, Labelled]:
    """Return what choosing learns from, what it is judged by, and all of both."""
    if "val" in found:
        learn, held = found["train"], found["val"]
        every = (torch.cat([learn[0], held[0]]), torch.cat([learn[1], held[1]]))
    else:
        every = found["train"]
        choosing = first_fifth(every[1])
        learn, held = _where(every, ~choosing), _where(every, choosing)
    most = task.entry.tune
    if most and len(learn[0]) > most:
        order = random.permutation(0, "transfer", count=len(learn[0]))[:most]
        some = torch.from_numpy(np.sort(order))
        learn = learn[0][some], learn[1][some]
    return learn, held, every


def first_fifth(target: Tensor) -> Tensor:
    """Return which images [N] are in the first fifth of their class; no class is there whole.

    Raises ValueError if no class has two images.
    """
    chosen = torch.zeros(len(target), dtype=torch.bool)
    for number in target.unique().tolist():
        members = (target == number).nonzero().flatten()
        chosen[members[: min(max(len(members) // FIFTH, 1), len(members) - 1)]] = True
    if not chosen.any():
        raise ValueError("no class has two images, so there is nothing to choose on.")
    return chosen


def _where(labelled: Labelled, chosen: Tensor) -> Labelled:
    return labelled[0][chosen], labelled[1][chosen]


def _logistic(
    task: Task, learn: Labelled, held: Labelled, every: Labelled, test: Labelled
) -> Outcome:
    """CLIP's protocol: L-BFGS, and a search for the strength."""
    strength = sweep_logistic([(learn, held)], task.worth, classes=task.classes)
    found = fit_logistic(*every, strength=strength, classes=task.classes)
    late = () if found.converged else (f"L-BFGS had not ended after {ITERATIONS} iterations.",)
    return Outcome(task.worth(found.scores(test[0]), test[1]), f"C {strength:.2g}", late)


def _elevater(
    task: Task, learn: Labelled, held: Labelled, every: Labelled, test: Labelled
) -> Outcome:
    """ELEVATER's protocol: SGD on normed features, and a search for its rate and decay."""
    config, text = task.config, f"{task.entry.name}, linear layer"
    trial = search_trials(
        config.rates,
        learn,
        held,
        task.worth,
        classes=task.classes,
        epochs=config.trial_epochs,
        seed=config.seed,
        text=text,
        quiet=task.seen.quiet,
    )
    found = train_trials(
        [trial],
        every,
        classes=task.classes,
        epochs=config.epochs,
        seed=config.seed,
        text=text,
        quiet=task.seen.quiet,
    )
    if not found.finite()[0]:
        raise ValueError(f"the linear layer diverged ({trial}); try lower rates (--rates).")
    return Outcome(task.worth(found.scores(test[0]), test[1]), str(trial))


def _finetune(task: Task) -> Outcome:
    """The lightweight study's protocol: all weights, by the recipe `transfer`."""
    train, val, test = task.parts.train, task.parts.val, task.parts.test
    rates = task.config.lr
    rate = rates[0] if rates else None
    if len(rates) > 1:
        if val is None:
            choosing = first_fifth(torch.from_numpy(train.targets)).numpy()
            learn, held = _split(train, choosing)
        else:
            learn, held = train, val
        found = {rate: task.worth(*_tune(task, rate, learn, held)) for rate in rates}
        rate = max(rates, key=lambda rate: found[rate])
    every = train if val is None else Joined([train, val])
    score = task.worth(*_tune(task, rate, every, test))
    return Outcome(score, "the recipe's rate" if rate is None else f"rate {rate:g}")


def _split(source: Source, choosing: NDArray[np.bool_]) -> tuple[Source, Source]:
    """Return the images that are not marked, and those that are."""
    rest, chosen = (np.flatnonzero(side).tolist() for side in (~choosing, choosing))
    return Subset(source, rest), Subset(source, chosen)


def _tune(task: Task, rate: float | None, learn: Source, test: Source) -> tuple[Tensor, Tensor]:
    """Return the scores [N, C] of the images to test on after training, and their classes [N]."""
    asked = task.config
    config = FinetuneConfig(
        data=asked.data,
        batch=asked.batch,
        max_unreadable=asked.max_unreadable,
        recipe="transfer",
        duration=asked.duration,
        device=asked.device,
        lr="auto" if rate is None else rate,
        seeds=(asked.seed,),
    )
    config = settle(config, len(learn))
    assert config.drop_path != "auto"
    weights = fit_to_tune(open_weights(task.model), drop_path=config.drop_path)
    run = run_config(config, task.seen, weights, learn, asked.seed)
    folder = folder_of(config, run, task.model, learn)
    method = start(run, weights.state)
    training = Training(task.seen, run, method, learn, test, folder, once=True)
    training.run()
    assert training.told is not None
    return training.told.rows[""], training.told.target


def _place(task: Task, content: bytes) -> Path | None:
    """Return where the outcome is kept, if it may be and all that it depends on is known."""
    if not task.config.keep_features or not content:
        return None
    asked = {name: value for name, value in to_dict(task.config).items() if name not in LOOSE}
    how = json.dumps([asked, task.seen.size, task.seen.crop], sort_keys=True)
    words = [code_digest(), digest(task.network), how, task.entry.name]
    return kept.place_of(KIND, [*words, hashlib.sha256(content).hexdigest()])


def _bytes(labelled: Labelled) -> bytes:
    """Return a digest of features and labels."""
    found = hashlib.sha256()
    for tensor in labelled:
        found.update(f"{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return found.digest()


def _marks(task: Task) -> bytes:
    """Return the marks of all images and their classes; nothing if one cannot be read."""
    found = b""
    for source in task.sources.values():
        try:
            marks = hashlib.sha256(b"".join(mark(source[i].image) for i in range(len(source))))
        except (OSError, ValueError, SyntaxError):  # what Pillow raises, too
            return b""
        found += marks.digest() + source.fingerprint().encode() + source.targets.tobytes()
    return found


def _kept(place: Path | None) -> Outcome | None:
    """Return an outcome that was found before."""
    arrays = None if place is None else kept.load(place)
    if place is None or arrays is None:
        return None
    kept.touch(place)
    facts = json.loads(arrays[0].tobytes())
    return Outcome(facts["score"], facts["chosen"], tuple(facts["notes"]))


def _keep(place: Path | None, outcome: Outcome) -> Outcome:
    """Keep an outcome, if there is a place for it; return it."""
    if place is not None and rank() == 0:
        kept.write(place, [np.frombuffer(json.dumps(asdict(outcome)).encode(), dtype=np.uint8)])
        kept.prune(KIND, MOST)
    return outcome
