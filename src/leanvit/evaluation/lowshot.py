"""Low-shot classification: what a backbone makes of few images of each class.

Every draw is a pure function of seed, repeat and the number of images of each class; of one repeat,
fewer images are among those of more. What must be chosen is chosen within a draw.

Letters: N images, D columns of a description.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leanvit.config.duration import Duration
from leanvit.config.evaluation import ClassesConfig, FinetuneConfig, LowshotConfig
from leanvit.core import random
from leanvit.core.console import track
from leanvit.core.distributed import require_alone
from leanvit.data.sources import Source, Subset
from leanvit.evaluation.features import Described, describe_network
from leanvit.evaluation.finetune import finetune
from leanvit.evaluation.inputs import Seen, prepare, protocols_of
from leanvit.evaluation.knn import Bank, accuracy_of, knn_accuracy
from leanvit.evaluation.linear import LinearProbe
from leanvit.evaluation.logistic import fit_logistic, sweep_logistic
from leanvit.evaluation.probing import probe_batch, stored_batches, train_probes
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.scores import top1

STRENGTH = 1.0
"""Of a regression where there are too few images to choose one."""
Found = dict[str, Any]
"""What one draw gave one network: shots, repeat, protocol, features, images, top1, chosen."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Some images of each class, by their numbers in the source."""

    shots: str
    repeat: int
    fit: NDArray[np.int64]
    """What learns while something is chosen."""
    choose: NDArray[np.int64]
    """What chooses; nothing if a class has a single image."""

    @property
    def images(self) -> NDArray[np.int64]:
        """All of them, in the order of the source."""
        return np.sort(np.concatenate([self.fit, self.choose]))


def draw(source: Source, shots: str, repeat: int, *, seed: int, held_out: float) -> Draw:
    """Draw images of each class that occurs: so many, or that share, but at least one.

    Raises ValueError if a class has fewer.
    """
    every = [np.flatnonzero(source.targets == target) for target in range(len(source.classes))]
    counts = [_count(shots, len(members), source.classes[c]) for c, members in enumerate(every)]
    few = 1 in counts
    fit, choose = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for target, (members, count) in enumerate(zip(every, counts, strict=True)):
        order = random.permutation(seed, "low shot", repeat, target, count=len(members))[:count]
        held = 0 if few or not count else min(max(round(held_out * count), 1), count - 1)
        fit.append(members[order[: count - held]])
        choose.append(members[order[count - held :]])
    return Draw(shots, repeat, np.concatenate(fit), np.concatenate(choose))


def _count(shots: str, members: int, name: str) -> int:
    if not members:
        return 0
    if shots.endswith("%"):
        return max(round(float(shots[:-1]) / 100 * members), 1)
    if int(shots) > members:
        raise ValueError(
            f"shots {shots}: class {name!r} has {members} images to learn from; name no more."
        )
    return int(shots)


def lowshot(
    config: LowshotConfig, model: str | Path, learn: Source, test: Source, *, quiet: bool = False
) -> Result:
    """Learn from few images, several times; return mean and deviation of top-1 accuracy.

    The facts hold every draw. Raises ValueError for a mistake in the request.
    """
    draws = [
        draw(learn, shots, repeat, seed=config.seed, held_out=config.held_out)
        for shots in config.shots
        for repeat in range(config.repeats)
    ]
    if config.probe == "finetune":
        require_alone("evaluate lowshot with the probe finetune")
        found, facts = _tuned(config, model, learn, test, draws, quiet)
    else:
        seen, networks = prepare(config, model, learn, quiet)
        ways = {
            f"{protocol}/{name}": describe_network(network, protocol, config.blocks)
            for protocol in protocols_of(config)
            for name, network in networks.items()
        }
        union = np.unique(np.concatenate([one.images for one in draws]))
        stored = seen.describe(Subset(learn, union.tolist()), "images to learn from", ways)
        stored = replace(stored, index=torch.from_numpy(union)[stored.index])
        testing = seen.describe(test, "images to test on", ways)
        found = [
            row
            for one in track(draws, "draws", len(draws), quiet=quiet)
            for row in _probed(config, seen, one, stored, testing, len(learn.classes))
        ]
        facts = {"image_size": seen.size, "crop": seen.crop}
    rows = _over_draws(found)
    titles: dict[str, float] = {}
    for shots in config.shots:
        own = [row for row in rows if row["shots"] == shots]
        titles |= headline(own, f"low-shot {config.probe}, {shots}", "top1")
    facts = {"probe": config.probe, "repeats": config.repeats, **facts, "draws": found}
    return Result("lowshot", facts, rows, _how(config, draws), headline=titles)


def _probed(
    config: LowshotConfig,
    seen: Seen,
    one: Draw,
    stored: Described,
    testing: Described,
    classes: int,
) -> Iterator[Found]:
    """Yield what a draw gives each network."""
    fit, choose, whole = (_some(stored, part) for part in (one.fit, one.choose, one.images))
    for way in stored.rows:
        protocol, _, name = way.partition("/")
        if config.probe == "knn":
            found, chosen = _by_neighbors(config, way, whole, testing, few=not len(one.choose))
        elif config.probe == "linear":
            found, chosen = _by_sgd(config, seen, way, (fit, choose, whole), testing, classes)
        else:
            found, chosen = _by_regression(way, (fit, choose, whole), testing, classes)
        yield {
            "shots": one.shots,
            "repeat": one.repeat,
            "protocol": protocol,
            "features": name,
            "images": len(whole.target),
            "top1": found,
            "chosen": chosen,
        }


def _some(stored: Described, images: NDArray[np.int64]) -> Described:
    """Return the rows of some images, without those that could not be read."""
    place = torch.from_numpy(np.flatnonzero(np.isin(stored.index.numpy(), images)))
    rows = {way: values[place] for way, values in stored.rows.items()}
    return Described(rows, stored.index[place], stored.target[place], ())


def _by_neighbors(
    config: LowshotConfig, way: str, drawn: Described, testing: Described, *, few: bool
) -> tuple[float, str]:
    """Return the accuracy of k-NN, with the k that is best on each drawn image by the others."""
    rows, target = drawn.labelled(way)
    k = config.k[0]
    if not few and len(config.k) > 1:
        bank = Bank(rows, target, leave_one_out=True)
        found = accuracy_of(bank, rows, target, ks=config.k, temperature=config.temperature)
        k = max(config.k, key=lambda k: found[k][0])
    both = (rows, target, *testing.labelled(way))
    return knn_accuracy(*both, ks=(k,), temperature=config.temperature)[k][0], f"k {k}"


def _by_sgd(
    config: LowshotConfig,
    seen: Seen,
    way: str,
    parts: tuple[Described, Described, Described],
    testing: Described,
    classes: int,
) -> tuple[float, str]:
    """Return the accuracy of a linear layer, with the best rate on what chooses."""
    fit, choose, whole = parts
    rate = config.rates[len(config.rates) // 2]

    def trained(images: Described, rates: Sequence[float]) -> LinearProbe:
        own = replace(images, rows={way: images.rows[way]})
        asked, count = replace(config, rates=tuple(rates)), len(images.target)
        batches = stored_batches(asked, own, count, probe_batch(asked, count))
        return train_probes(asked, replace(seen, quiet=True), batches, own, classes, count)[way]

    if len(choose.target) and len(config.rates) > 1:
        accuracy = trained(fit, config.rates).accuracy(*choose.labelled(way))
        rate = config.rates[int(accuracy[:, 0].argmax())]
    found = trained(whole, [rate]).accuracy(*testing.labelled(way))
    return float(found[0, 0]), f"rate {rate:g}"


def _by_regression(
    way: str, parts: tuple[Described, Described, Described], testing: Described, classes: int
) -> tuple[float, str]:
    """Return the accuracy of logistic regression, with the best strength on what chooses."""
    fit, choose, whole = (part.labelled(way) for part in parts)
    strength = STRENGTH
    if len(choose[1]):
        strength = sweep_logistic(fit, choose, top1, classes=classes)
    model = fit_logistic(*whole, strength=strength, classes=classes)
    rows, target = testing.labelled(way)
    return top1(model.scores(rows), target), f"strength {strength:.2g}"


def _tuned(
    config: LowshotConfig,
    model: str | Path,
    learn: Source,
    test: Source,
    draws: Sequence[Draw],
    quiet: bool,
) -> tuple[list[Found], dict[str, Any]]:
    """Return what all weights make of each draw, and facts."""
    common = {field.name: getattr(config, field.name) for field in fields(ClassesConfig)}
    found: list[Found] = []
    facts: Mapping[str, Any] = {}
    for one in draws:
        tuning = FinetuneConfig(
            **common,
            recipe=config.recipe,
            duration=config.duration,
            every=Duration(100, "%"),
            seeds=(config.seed + one.repeat,),
        )
        result = finetune(tuning, model, Subset(learn, one.images.tolist()), test, quiet=quiet)
        facts = result.facts
        found += [
            {
                "shots": one.shots,
                "repeat": one.repeat,
                "protocol": "color",
                "features": row["network"],
                "images": len(one.images),
                "top1": row["top1"],
                "chosen": config.recipe,
            }
            for row in result.rows
        ]
    return found, {name: facts[name] for name in ("image_size", "crop")}


def _over_draws(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return a row for each number of images and network: mean and deviation over the draws."""
    groups: dict[tuple[str, str, str], list[Found]] = {}
    for one in found:
        groups.setdefault((one["protocol"], one["features"], one["shots"]), []).append(one)
    return [
        {
            "protocol": protocol,
            "features": features,
            "shots": shots,
            "images": round(mean(one["images"] for one in own)),
            "top1": mean(one["top1"] for one in own),
            "deviation": stdev(one["top1"] for one in own) if len(own) > 1 else "-",
            "chosen": ", ".join(dict.fromkeys(one["chosen"] for one in own)),
        }
        for (protocol, features, shots), own in groups.items()
    ]


def _how(config: LowshotConfig, draws: Sequence[Draw]) -> list[str]:
    """Return how things were chosen, in words."""
    if config.probe == "finetune":
        return [f"Nothing was chosen: every draw was trained by the recipe {config.recipe}."]
    few = dict.fromkeys(one.shots for one in draws if not len(one.choose))
    notes = []
    if len(few) < len(config.shots):
        notes.append(
            "k was chosen by leave-one-out among the drawn images."
            if config.probe == "knn"
            else f"What was chosen, {config.held_out:.0%} of the drawn images chose; then all of "
            f"them were learned from."
        )
    fixed = {
        "knn": f"k is {config.k[0]}",
        "linear": f"the rate is {config.rates[len(config.rates) // 2]:g}",
        "lbfgs": f"the strength is {STRENGTH:g}",
    }[config.probe]
    return notes + [
        f"{shots}: a class has a single image, so nothing was chosen; {fixed}." for shots in few
    ]
