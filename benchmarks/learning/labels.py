"""Few labels, single layers, fewer images: the questions of arXiv 2205.14443 on CIFAR-10.

    LEANVIT_TEST_DATA=FOLDER taskset -c 0 python benchmarks/learning/labels.py [STUDY ...]

Studies are `few`, `layers`, `images` and `turns`.

FOLDER holds `cifar10.tar.xz`. Networks are the small ViTs that results.py trains for ten minutes of
one core, and two of its runs once more on fewer images. A linear layer learns from 1 % and 10 %
of the classes of the training images, three draws, and another from each block; all are tested on
the test images, on which nothing was chosen. labels.md is written anew from what is done.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any
from unittest.mock import patch

import torch
from results import cifar10
from study import CIFAR10, HERE, Trial, claimed, heading, kept, knn, linear, pretrained, seen

import leanvit
from leanvit.bench.tables import markdown
from leanvit.evaluation.lowshot import ENOUGH

TABLE = HERE / "labels.md"
NAMES = ("DINO, ViT", "MoCo-v3, ViT", "MAE, ViT", "D-MAE of it, ViT")
SHOTS = ("1%", "10%")
FRACTIONS = (0.01, 0.1)
PIXELS, UNTRAINED = "raw pixels", "untrained"
CHOOSING = {"one fifth": 1, "fifths in turn": ENOUGH}
"""Images that are enough to choose a strength."""
BESIDE = {"baselines": True, "keep_features": False}


def networks() -> dict[str, Trial]:
    """Return runs of results.py by what they are called here; the first tells of untrained ones."""
    return {name.split(",")[0].split(" of ")[0]: cifar10()[name][0] for name in NAMES}


def on_fewer() -> dict[tuple[str, float], Trial]:
    """Return the runs on a share of the images, by method and share, with those on all."""
    return {
        (name, share): trial
        if share == 1
        else replace(
            trial,
            name=f"{trial.name}-{share:g}",
            options={**trial.options, "data.fraction": share},
        )
        for name, trial in networks().items()
        if name in ("DINO", "MAE")
        for share in (*FRACTIONS, 1)
    }


def few(trial: Trial) -> dict[str, dict[str, list[float]]]:
    """Return mean and deviation of what few labels give, by shots and features."""
    split, out = CIFAR10.split(), pretrained(trial, CIFAR10)
    options = {"val": str(split.test), "shots": SHOTS, "repeats": 3, "probe": "linear", **BESIDE}
    found: dict[str, dict[str, list[float]]] = {shots: {} for shots in SHOTS}
    for row in leanvit.evaluate("lowshot", out, data=str(split.train), options=options).rows:
        found[row["shots"]][row["features"]] = [row["top1"], row["deviation"]]
    return found


def layers(trial: Trial) -> dict[str, list[float]]:
    """Return what a linear layer makes of each block, the first one first, by features."""
    split, out = CIFAR10.split(), pretrained(trial, CIFAR10)
    options = {"val": str(split.test), "epochs": 30, **BESIDE}
    found: dict[str, list[float]] = {}
    for row in leanvit.evaluate("layers", out, data=str(split.bank), options=options).rows:
        found.setdefault(row["features"], []).append(row["top1"])
    return found


def images(trial: Trial) -> dict[str, Any]:
    """Return k-NN and a linear layer of a run, and the images that it has seen."""
    out, split = pretrained(trial, CIFAR10), CIFAR10.split()
    both = (split.bank, split.test)
    return {"knn": knn(out, *both), "linear": linear(out, *both), "seen": seen(out)}


def turns(trial: Trial) -> dict[str, list[float]]:
    """Return what 3 and 30 labels a class give: mean, deviation, least and highest strength."""
    split, out = CIFAR10.split(), pretrained(trial, CIFAR10)
    options = {"val": str(split.test), "shots": ("3", "30")}
    found: dict[str, list[float]] = {}
    for way, enough in CHOOSING.items():
        with patch("leanvit.evaluation.lowshot.ENOUGH", enough):
            result = leanvit.evaluate("lowshot", out, data=str(split.bank), options=options)
        for row in result.rows:
            if row["features"] in ("trained", "trained (teacher)"):
                words = row["chosen"].replace(",", "").split()
                strengths = sorted(map(float, words[1::2]))
                found[f"{row['shots']}, {way}"] = [
                    row["top1"],
                    row["deviation"],
                    strengths[0],
                    strengths[-1],
                ]
    return found


STUDIES = {"few": few, "layers": layers, "images": images, "turns": turns}


def trials(study: str) -> list[Trial]:
    """Return the runs of a study."""
    some = on_fewer() if study == "images" else networks()
    return [trial for key, trial in some.items() if study != "turns" or key in ("DINO", "MAE")]


def trained(found: Mapping[str, Any]) -> Any:
    """Return what the network gave that a run ends with: the teacher, or the only one."""
    return next(found[name] for name in ("trained (teacher)", "trained") if name in found)


def done(study: str) -> dict[str, dict[str, Any]]:
    """Return what was measured in a study, by the folder of the run."""
    places = {str(trial.folder(CIFAR10)): trial for trial in trials(study)}
    return {
        place: json.loads(file.read_text())
        for place, trial in places.items()
        if (file := trial.folder(CIFAR10) / f"{study}.json").exists()
    }


def compared(
    study: str,
    values: Callable[[dict[str, Any], Callable[[Any], Any]], list[Any]],
    beside: Sequence[str],
) -> list[tuple[str, list[Any]]]:
    """Return what the values of a study's runs are, below those of what needs no training."""
    found, rows = done(study), list[tuple[str, list[Any]]]()
    for name, trial in networks().items():
        if run := found.get(str(trial.folder(CIFAR10))):
            if not rows:
                rows += [(other, values(run, itemgetter(other))) for other in beside]
            rows.append((name, values(run, trained)))
    return rows


def few_table() -> list[str]:
    """Return accuracies with few labels in Markdown."""
    rows = [
        [name, *(_mean(each) for each in values)]
        for name, values in compared(
            "few", lambda run, which: [which(run[shots]) for shots in SHOTS], (PIXELS, UNTRAINED)
        )
    ]
    return [*markdown(["run", *(f"{shots} of the labels" for shots in SHOTS)], rows)]


def layers_table() -> list[str]:
    """Return the accuracies of single blocks in Markdown."""
    found = compared("layers", lambda run, which: which(run), (UNTRAINED,))
    rows = [[name, *map(_percent, values)] for name, values in found]
    depth = max((len(row) - 1 for row in rows), default=0)
    return [*markdown(["run", *(f"block {number + 1}" for number in range(depth))], rows)]


def images_table() -> list[str]:
    """Return what runs on fewer images reached in Markdown."""
    found, rows = done("images"), list[list[str]]()
    for (name, share), trial in on_fewer().items():
        if run := found.get(str(trial.folder(CIFAR10))):
            both = (_percent(trained(run[protocol])) for protocol in ("knn", "linear"))
            rows.append([name, f"{round(45_000 * share):,}", run["seen"], *both])
    heads = ["run", "images", "thousands of them seen", "k-NN", "linear"]
    return [*markdown(heads, rows)]


def turns_table() -> list[str]:
    """Return what strengths were chosen and how good they were in Markdown."""
    rows, found = list[list[str]](), done("turns")
    for name, trial in networks().items():
        for way, (mean, deviation, least, most) in found.get(
            str(trial.folder(CIFAR10)), {}
        ).items():
            rows.append([name, way, _mean((mean, deviation)), f"{least:.2g} to {most:.2g}"])
    return [*markdown(["run", "images a class, what chooses", "top-1", "strengths"], rows)]


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _mean(pair: Sequence[float]) -> str:
    return f"{pair[0]:.1f} ± {pair[1]:.1f}"


def write() -> None:
    """Write the tables of what is done."""
    parts = {
        "Few labels": few_table(),
        "One block at a time, a linear layer": layers_table(),
        "Fewer images, the same ten minutes": images_table(),
        "What chooses a strength": turns_table(),
    }
    lines = [
        "# Few labels, single layers, fewer images",
        "",
        f"`benchmarks/learning/labels.py`, {heading()}. CIFAR-10, a ViT of 4 blocks of 96 "
        "channels, tested on the 10,000 test images, in percent; what it says is in",
        "[results.md](../../docs/results.md#few-labels-single-layers-fewer-images).",
    ]
    for title, table in parts.items():
        if table:
            lines += ["", f"## {title}", "", *table]
    TABLE.write_text("\n".join(lines) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    CIFAR10.split()
    for study in sys.argv[1:] or STUDIES:
        for trial in trials(study):
            with claimed(trial.folder(CIFAR10)) as ours:
                if ours:
                    print(
                        study,
                        trial.name,
                        kept(pretrained(trial, CIFAR10), study, partial(STUDIES[study], trial)),
                        flush=True,
                    )
    write()


if __name__ == "__main__":
    main()
