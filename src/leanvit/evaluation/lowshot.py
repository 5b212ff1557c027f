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
from torch import Tensor

from leanvit.config.duration import Duration
from leanvit.config.evaluation import ClassesConfig, FinetuneConfig, LowshotConfig
from leanvit.core import random
from leanvit.core.console import track
from leanvit.core.distributed import require_alone
from leanvit.data.sources import Source, Subset
from leanvit.evaluation.features import Described
from leanvit.evaluation.finetune import finetune
from leanvit.evaluation.inputs import Seen, prepare, ways_of
from leanvit.evaluation.knn import Bank, accuracy_of, knn_accuracy
from leanvit.evaluation.linear import LinearProbe
from leanvit.evaluation.logistic import fit_logistic, sweep_logistic
from leanvit.evaluation.probing import probe_batch, stored_batches, train_probes
from leanvit.evaluation.result import Result, headline
from leanvit.evaluation.scores import top1

STRENGTH = 1.0
"""Of a regression where there are too few images to choose one."""
ENOUGH = 1000
"""Images that choose, in all turns of a draw."""
Turn = tuple[Described, Described]
"""What learns, and what chooses meanwhile."""
Found = dict[str, Any]
"""What one draw gave one network: shots, repeat, protocol, features, images, top1, chosen."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Some images of each class, by their numbers in the source."""

    shots: str
    repeat: int
    images: NDArray[np.int64]
    """In the order of the source."""
    turns: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    """Which of them learn and which choose meanwhile, in turn; none if a class has a single one."""


def draw(source: Source, shots: str, repeat: int, *, seed: int, held_out: float) -> Draw:
    """Draw images of each class that occurs: so many, or that share, but at least one.

    Raises ValueError if a class has fewer.
    """
    drawn = []
    for target, name in enumerate(source.classes):
        members = np.flatnonzero(source.targets == target)
        if count := _count(shots, len(members), name):
            order = random.permutation(seed, "low shot", repeat, target, count=len(members))
            drawn.append(members[order[:count]])
    return Draw(shots, repeat, np.sort(np.concatenate(drawn)), tuple(_turns(drawn, held_out)))


def _turns(
    drawn: Sequence[NDArray[np.int64]], held_out: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Hold a share of each class out, and another one next time, until enough images have chosen.

    A few images alone choose by chance.
    """
    if any(len(members) == 1 for members in drawn):
        return
    held = [min(max(round(held_out * len(m)), 1), len(m) - 1) for m in drawn]
    most = min(len(members) // count for members, count in zip(drawn, held, strict=True))
    for turn in range(min(most, -(-ENOUGH // sum(held)))):
        fit, choose = [], []
        for members, count in zip(drawn, held, strict=True):
            stop = len(members) - turn * count
            choose.append(members[stop - count : stop])
            fit.append(np.delete(members, slice(stop - count, stop)))
        yield np.concatenate(fit), np.concatenate(choose)


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
        ways = ways_of(config, model, networks, config.blocks)
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
    whole = _some(stored, one.images)
    turns = [(_some(stored, fit), _some(stored, choose)) for fit, choose in one.turns]
    for way in stored.rows:
        protocol, _, name = way.partition("/")
        if config.probe == "knn":
            found, chosen = _by_neighbors(config, way, whole, testing, few=not turns)
        elif config.probe == "linear":
            found, chosen = _by_sgd(config, seen, way, turns, whole, testing, classes)
        else:
            found, chosen = _by_regression(way, turns, whole, testing, classes)
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
    turns: Sequence[Turn],
    whole: Described,
    testing: Described,
    classes: int,
) -> tuple[float, str]:
    """Return the accuracy of a linear layer, with the rate that is best over the turns."""
    rate = config.rates[len(config.rates) // 2]

    def trained(images: Described, rates: Sequence[float]) -> LinearProbe:
        own = replace(images, rows={way: images.rows[way]})
        asked, count = replace(config, rates=tuple(rates)), len(images.target)
        batches = stored_batches(asked, own, count, probe_batch(asked, count))
        return train_probes(asked, replace(seen, quiet=True), batches, own, classes, count)[way]

    if turns and len(config.rates) > 1:
        accuracy = sum(
            trained(fit, config.rates).accuracy(*choose.labelled(way))[:, 0]
            for fit, choose in turns
        )
        assert isinstance(accuracy, Tensor)
        rate = config.rates[int(accuracy.argmax())]
    found = trained(whole, [rate]).accuracy(*testing.labelled(way))
    return float(found[0, 0]), f"rate {rate:g}"


def _by_regression(
    way: str, turns: Sequence[Turn], whole: Described, testing: Described, classes: int
) -> tuple[float, str]:
    """Return the accuracy of logistic regression, with the strength that is best over the turns."""
    strength = STRENGTH
    if turns:
        both = [(fit.labelled(way), choose.labelled(way)) for fit, choose in turns]
        strength = sweep_logistic(both, top1, classes=classes)
    model = fit_logistic(*whole.labelled(way), strength=strength, classes=classes)
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
            untrained=config.baselines,
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
    few = dict.fromkeys(one.shots for one in draws if not one.turns)
    notes = []
    if len(few) < len(config.shots):
        notes.append(
            "k was chosen by leave-one-out among the drawn images."
            if config.probe == "knn"
            else f"What was chosen, {config.held_out:.0%} of the drawn images chose, of few images "
            f"each share in turn; then all of them were learned from."
        )
    fixed = {
        "knn": f"k is {config.k[0]}",
        "linear": f"the rate is {config.rates[len(config.rates) // 2]:g}",
        "lbfgs": f"the strength is {STRENGTH:g}",
    }[config.probe]
    return notes + [
        f"{shots}: a class has a single image, so nothing was chosen; {fixed}." for shots in few
    ]
