"""Transfer: the table, each set's metric, choosing without looking, resuming."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor

import leanvit
from leanvit.cli import main
from leanvit.config.evaluation import TransferConfig
from leanvit.core.errors import NonFiniteError
from leanvit.data.published import Parts
from leanvit.data.transfer import TRANSFER_SETS, labels_of, open_set
from leanvit.evaluation import judging
from leanvit.evaluation.features import Described
from leanvit.evaluation.finetune import Training
from leanvit.evaluation.judging import Task, first_fifth
from leanvit.evaluation.record import read_results
from leanvit.evaluation.result import Result
from leanvit.evaluation.transfer import COLUMNS, PAPER, totals
from leanvit.weights.loading import load_backbone
from tests.distributed.by_hand import by_hand, numbered
from tests.miniatures import MINIATURES, Greys
from tests.tables import PLAIN, seen_by, write_network, write_split
from tests.tiny import write_classes

pytestmark = pytest.mark.usefixtures("one_thread")
FAST: Mapping[str, Any] = {**PLAIN, "crop": 1.0, "trial_epochs": 1, "epochs": 1, "duration": "1st"}
FOUR = ("CIFAR10", "FGVCAircraft", "HatefulMemes", "VOC2007")


def write_suite(root: Path) -> Path:
    """Write four sets, one of each metric."""
    for name in ("cifar10", "fgvcaircraft"):
        write_split(root / name)
        (root / name / "val").rename(root / name / "test")
    for number in range(4):
        (root / "fgvcaircraft/test/ants" / f"{number:03}.png").unlink()
    for part in ("train", "test"):
        write_classes(root / "hatefulmemes" / part, nice=7, nasty=6)
    MINIATURES["VOC2007"](root, Greys())
    return root


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("model") / "model.safetensors", norm=5.0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "leanvit" / "transfer"


def transfer(model: str | Path, data: Path, **options: Any) -> Result:
    options = {**FAST, **options}
    return leanvit.evaluate("transfer", model, data=str(data), options=options, quiet=True)


def ours(result: Result) -> dict[str, float]:
    return {row["set"]: row["ours"] for row in result.rows if row["set"] in TRANSFER_SETS}


def eleven_points(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """VOC2007's mean average precision, point by point."""
    found = []
    for score, label in zip(scores.T, labels.T, strict=True):
        ranked = [label[i] for i in np.argsort(-score, kind="stable") if label[i] >= 0]
        curve = [(sum(ranked[:n]), sum(ranked[:n]) / n) for n in range(1, len(ranked) + 1)]
        if not sum(ranked):
            continue
        levels = [
            max((p for hits, p in curve if 10 * hits >= level * sum(ranked)), default=0.0)
            for level in range(11)
        ]
        found.append(sum(levels) / 11)
    return 100 * sum(found) / len(found)


def expected(model: Path, parts: Parts, metric: str) -> float:
    """Return the figure of a logistic regression of strength 1, by scikit-learn throughout."""
    backbone = load_backbone(model).eval()

    def rows(*names: str) -> tuple[Any, Any]:
        sources = [s for name in names if (s := getattr(parts, name)) is not None]
        with torch.no_grad():
            found = [backbone.features(seen_by(backbone, s, crop=1.0)).pooled for s in sources]
        return torch.cat(found).numpy(), np.concatenate([labels_of(s) for s in sources])

    (learn, labels), (test, wanted) = rows("train", "val"), rows("test")
    if labels.ndim > 1:
        scores = []
        for column in labels.T:
            known = column >= 0
            one = LogisticRegression(C=1.0, max_iter=1000).fit(learn[known], column[known])
            scores.append(one.decision_function(test))
        return eleven_points(np.stack(scores, 1), wanted)
    found = LogisticRegression(C=1.0, max_iter=1000).fit(learn, labels)
    if metric == "ROC-AUC":
        return 100 * float(roc_auc_score(wanted, found.decision_function(test)))
    told = found.predict(test)
    score = balanced_accuracy_score if metric == "mean per class" else accuracy_score
    return 100 * float(score(wanted, told))


# The table


def test_every_set_has_its_own_metric(
    model: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "sweep_logistic", lambda *_, **__: 1.0)
    result = transfer(model, suite)
    assert [row["set"] for row in result.rows[:4]] == list(FOUR)
    for row in result.rows[:4]:
        entry = TRANSFER_SETS[row["set"]]
        parts = open_set(entry, suite)
        assert parts is not None and row["metric"] == entry.metric
        assert row["ours"] == pytest.approx(expected(model, parts, entry.metric), abs=1e-3)
        assert row["chosen"] == "C 1"
        assert tuple(row[name] for name in COLUMNS) == PAPER[row["set"]]
    counts = [(row["train"], row["test"]) for row in result.rows[:4]]
    assert counts == [(45, 18), (45, 14), (13, 13), (14, 7)]
    assert len({row["ours"] for row in result.rows[:4]}) == 4
    assert result.facts["probe"] == "logistic" and result.facts["sets"] == 4


def test_the_last_rows_are_of_the_same_sets_in_every_column(model: Path, suite: Path) -> None:
    result = transfer(model, suite, sets=("CIFAR10", "HatefulMemes"))
    first, second, average, wins = result.rows
    assert average["set"] == "average of 2" and wins["set"] == "wins over supervised Swin-T"
    assert average["ours"] == pytest.approx((first["ours"] + second["ours"]) / 2)
    assert average["supervised Swin-T"] == pytest.approx((94.0 + 51.2) / 2)
    assert wins["ours"] == sum(row["ours"] > row["supervised Swin-T"] for row in (first, second))
    title = "transfer by logistic, mean of 2 sets"
    assert result.headline == {title: pytest.approx(average["ours"])}
    assert wins["supervised Swin-T"] is None and wins["EsViT Swin-S"] == 2
    assert all(row.keys() == first.keys() for row in result.rows)
    assert "-" in result.lines()[-1].split()


def test_the_figures_of_the_paper_are_those_of_its_averages() -> None:
    assert len(PAPER) == 18 and list(PAPER) == list(TRANSFER_SETS)[:18]
    columns = zip(*PAPER.values(), strict=True)
    means = [sum(column) / 18 for column in columns]
    assert means == pytest.approx([77.29, 77.86, 80.86], abs=0.006)
    rows = [
        {"set": name, "ours": 90.0, **dict(zip(COLUMNS, figures, strict=True))}
        for name, figures in PAPER.items()
    ]
    (_, wins) = totals(rows)
    assert [wins[name] for name in ("ours", *COLUMNS)] == [12, None, 12, 16]
    other = {"set": "EuroSAT", "ours": 40.0, **dict.fromkeys(COLUMNS)}
    assert [row["set"] for row in totals([*rows, other])][-1] == "average of all 19"
    assert totals([*rows, other])[-1]["ours"] == pytest.approx((18 * 90 + 40) / 19)
    assert [row["set"] for row in totals([other])] == ["average of all 1"]


def test_every_other_set_is_told_how_to_get(model: Path, suite: Path) -> None:
    result = transfer(model, suite, sets=("CIFAR10", "DTD", "SUN397"))
    notes = [note for note in result.notes if "not below" in note]
    assert notes == [
        f"{name} is not below {str(suite)!r}: {TRANSFER_SETS[name].how}."
        for name in ("DTD", "SUN397")
    ]
    (other,) = [note for note in result.notes if note not in notes]
    assert other == (
        "CIFAR10: 45 images to learn from and 18 to test on, where others have 50,000 and 10,000: "
        "figures do not compare."
    )
    missing = [note.split()[0] for note in transfer(model, suite).notes if "not below" in note]
    assert missing == [name for name in TRANSFER_SETS if name not in FOUR]


def test_a_set_that_fails_is_named_and_the_others_go_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "cifar10")
    (tmp_path / "cifar10/val").rename(tmp_path / "cifar10/test")
    write_classes(tmp_path / "cifar100" / "train", a=1)
    write_classes(tmp_path / "dtd" / "train", a=2, b=2)
    write_classes(tmp_path / "dtd" / "test", a=1, b=1)
    (tmp_path / "dtd/train/a/000.png").write_bytes(b"no image")
    result = transfer(model, tmp_path)
    failed = [note for note in result.notes if "failed: " in note]
    assert list(ours(result)) == ["CIFAR10"]
    assert failed[0].startswith("CIFAR100 failed: CIFAR100 is there in part: below ")
    assert failed[1].startswith("DTD failed: 1 of 4 images cannot be read, such as 'a/000.png'")
    assert [f"leanvit: {note}" for note in failed] == capsys.readouterr().err.splitlines()
    allowed = transfer(model, tmp_path, max_unreadable=30.0)
    assert list(ours(allowed)) == ["CIFAR10", "DTD"]


def test_a_damaged_network_says_nothing_of_any_set(suite: Path, tmp_path: Path) -> None:
    model = write_network(tmp_path / "model.safetensors", norm=2e38)
    with pytest.raises(ValueError, match=r"CIFAR10 failed: features: the features of .* finite"):
        transfer(model, suite, sets=("CIFAR10",))


def test_a_fine_tuning_that_diverges_fails_by_itself(
    model: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> None:
        raise NonFiniteError("The loss is not a number.", 0)

    monkeypatch.setattr(Training, "run", diverge)
    with pytest.raises(ValueError, match=r"has a figure:\n  CIFAR10 failed: The loss is"):
        transfer(model, suite, probe="finetune", sets=("CIFAR10",))


def test_sets_are_found_however_they_are_spelled(model: Path, suite: Path) -> None:
    (row, *_) = transfer(model, suite, sets=("cifar10",)).rows
    assert row["set"] == "CIFAR10"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ("CIFAR",)}, "Unknown data set 'CIFAR'; did you mean 'CIFAR10'"),
        ({"sets": ("DTD",)}, r"has a figure:\n  DTD is not below .*DTD\(FOLDER, download"),
        ({"probe": "linear"}, "probe.*'linear'.*logistic"),
        ({"rates": ()}, r"rates is \(\); expected at least one"),
        ({"rates": (0.0,)}, r"rates is \(0\.0,\); expected above 0"),
        ({"lr": (-1.0,)}, "expected above 0"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"trial_epochs": 0}, "trial_epochs is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], message: str, model: Path, suite: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        transfer(model, suite, **options)


def test_a_folder_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    for data in (tmp_path / "none", Path("sample")):
        with pytest.raises(ValueError, match="name the folder under which the data sets lie"):
            transfer(model, data)
    with pytest.raises(ValueError, match="data is ''; name the folder"):
        leanvit.evaluate("transfer", model)


def test_the_command_prints_the_table_and_keeps_a_line(
    model: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "transfer", str(model), "--data", str(suite), "--workers", "0"]
    words += ["--results", str(tmp_path / "results.jsonl"), "--sets", "CIFAR10", "HatefulMemes"]
    assert main([*words, "--json"]) == 0
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert [row["set"] for row in found["rows"][:2]] == ["CIFAR10", "HatefulMemes"]
    assert "CIFAR10: accuracy " in error
    (line,) = read_results(tmp_path / "results.jsonl")
    assert line["rows"] == found["rows"] and line["config"]["sets"] == ["CIFAR10", "HatefulMemes"]


# Choosing


def test_the_first_fifth_of_each_class_chooses() -> None:
    target = torch.tensor([0] * 10 + [1, 2, 2] + [0] * 2 + [3] * 4)
    chosen = first_fifth(target).nonzero().flatten().tolist()
    assert chosen == [0, 1, 11, 15], "two of twelve, none of one, one of two and of four"
    with pytest.raises(ValueError, match="no class has two images"):
        first_fifth(torch.tensor([0, 1, 2]))


def task(model: Path, root: Path, name: str = "CIFAR10", **changes: Any) -> Task:
    from leanvit.evaluation.inputs import see

    entry = replace(TRANSFER_SETS[name], **changes)
    parts = open_set(entry, root)
    assert parts is not None
    config = TransferConfig(**{**PLAIN, "data": str(root)})
    network = load_backbone(model)
    return Task(entry, parts, config, model, network, see(config, 32, parts.train, True))


def test_what_chooses_is_left_out_of_what_is_learned_from(model: Path, suite: Path) -> None:
    rows, target = torch.arange(45.0)[:, None], torch.arange(45) // 15
    found = {"train": (rows, target)}
    learn, held, every = judging._learned(task(model, suite), found)
    assert held[0].flatten().tolist() == [0, 1, 2, 15, 16, 17, 30, 31, 32]
    assert sorted([*learn[0].flatten().tolist(), *held[0].flatten().tolist()]) == list(range(45))
    assert torch.equal(every[0], rows) and torch.equal(
        held[1], torch.arange(3).repeat_interleave(3)
    )
    few, same, all_of_it = judging._learned(task(model, suite, tune=10), found)
    assert len(few[0]) == len(few[1]) == 10 and torch.equal(same[0], held[0])
    assert set(few[0].flatten().tolist()) < set(learn[0].flatten().tolist())
    assert torch.equal(few[1], (few[0].flatten() // 15).long()) and len(all_of_it[0]) == 45
    official = {**found, "val": (rows[:7] + 100, target[:7])}
    learn, held, every = judging._learned(task(model, suite), official)
    assert torch.equal(learn[0], rows) and torch.equal(held[0], rows[:7] + 100)
    assert torch.equal(every[0], torch.cat([rows, rows[:7] + 100])) and len(every[1]) == 52
    assert TRANSFER_SETS["PatchCamelyon"].tune == 10_000


@pytest.mark.parametrize("probe", ["logistic", "elevater"])
def test_the_test_part_is_looked_at_once(
    probe: str, model: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    worth = Task.worth

    def counted(self: Task, scores: Tensor, labels: Tensor) -> float:
        looks.append(len(labels))
        return worth(self, scores, labels)

    monkeypatch.setattr(Task, "worth", counted)
    transfer(model, suite, sets=("CIFAR10",), probe=probe, rates=(0.1, 0.01))
    assert looks[-1] == 18 and set(looks[:-1]) == {9}
    assert len(looks) == {"logistic": 16, "elevater": 31}[probe] or looks.count(9) > 10


def test_all_weights_learn_and_the_rate_is_chosen_elsewhere(
    model: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    look = Training.look

    def counted(self: Training) -> dict[str, float]:
        told = look(self)
        if told:
            assert self.state.step == self.state.run == 3
            seen.append((len(self.learn), len(self.test)))
        return told

    monkeypatch.setattr(Training, "look", counted)
    options = {"probe": "finetune", "sets": ("FGVCAircraft",), "duration": "3st"}
    result = transfer(model, suite, **options, lr=(1e-6, 0.5))
    assert seen == [(36, 9), (36, 9), (45, 14)]
    row = result.rows[0]
    assert row["chosen"] in ("rate 1e-06", "rate 0.5") and row["metric"] == "mean per class"
    seen.clear()
    assert transfer(model, suite, **options).rows[0]["chosen"] == "the recipe's rate"
    assert seen == [(45, 14)]


def test_fine_tuning_takes_the_set_s_own_metric_and_both_parts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MINIATURES["FGVCAircraft"](tmp_path, Greys())
    seen: list[list[str]] = []

    def told(self: Training) -> None:
        seen.append([self.learn.name(i) for i in range(len(self.learn))])
        target = torch.from_numpy(self.test.targets)
        scores = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 0]), 2).float()
        self.told = Described({"": scores}, torch.arange(4), target, ())

    monkeypatch.setattr(Training, "run", told)
    result = transfer(model, tmp_path, probe="finetune")
    assert result.rows[0]["ours"] == 75.0
    assert seen[0] == [
        *(f"FGVCAircraft/rest/{n:06}" for n in range(4)),
        *(f"FGVCAircraft/val/{n:06}" for n in range(4)),
    ]


def test_several_classes_are_not_fine_tuned(model: Path, suite: Path) -> None:
    with pytest.raises(ValueError, match="VOC2007 failed: its images may have several classes"):
        transfer(model, suite, probe="finetune", sets=("VOC2007",))


# Resuming


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be trained")

    for name in ("fit_logistic", "sweep_logistic", "train_trials", "search_trials", "_tune"):
        monkeypatch.setattr(judging, name, train)


@pytest.mark.parametrize("probe", ["logistic", "elevater", "finetune"])
def test_a_finished_set_is_not_trained_again(
    probe: str, model: Path, suite: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"keep_features": True, "probe": probe, "sets": ("CIFAR10", "HatefulMemes")}
    first = transfer(model, suite, **options)
    assert len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patch:
        refuse(patch)
        assert transfer(model, suite, **options).rows == first.rows
        with pytest.raises(AssertionError, match="nothing is to be trained"):
            transfer(model, suite, **options, seed=1)
        with pytest.raises(AssertionError, match="nothing is to be trained"):
            transfer(model, suite, **options | {"keep_features": False})
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert transfer(model, suite, **options).rows == first.rows, "what is damaged is not there"


@pytest.mark.parametrize("probe", ["logistic", "finetune"])
def test_another_image_or_network_is_another_figure(
    probe: str, model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"keep_features": True, "probe": probe, "sets": ("SST2",)}
    for part in ("train", "test"):
        write_classes(tmp_path / "sst2" / part, a=4, b=4)
    transfer(model, tmp_path, **options)
    refuse(monkeypatch)
    transfer(model, tmp_path, **options)
    with monkeypatch.context() as patch:
        patch.setattr(judging, "code_digest", lambda: "other code")
        with pytest.raises(AssertionError, match="nothing is to be trained"):
            transfer(model, tmp_path, **options)
    other = write_network(tmp_path / "other.safetensors", norm=2.0)
    with pytest.raises(AssertionError, match="nothing is to be trained"):
        transfer(other, tmp_path, **options)
    images = tmp_path / "sst2" / "test" / "a"
    (images / "000.png").write_bytes((images / "001.png").read_bytes())
    with pytest.raises(AssertionError, match="nothing is to be trained"):
        transfer(model, tmp_path, **options)


def test_what_was_interrupted_goes_on_where_it_was(
    model: Path, suite: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"keep_features": True, "sets": ("CIFAR10", "HatefulMemes")}
    judge, judged = judging._logistic, list[str]()

    def interrupted(task: Task, *rest: Any) -> Any:
        judged.append(task.entry.name)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge(task, *rest)

    monkeypatch.setattr(judging, "_logistic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer(model, suite, **options)
    result = transfer(model, suite, **options)
    assert judged == ["CIFAR10", "HatefulMemes", "HatefulMemes"]
    assert result.rows == transfer(model, suite, sets=options["sets"]).rows


# Several processes


@pytest.mark.long
@pytest.mark.parametrize("probe", ["logistic", "elevater"])
def test_two_processes_find_what_one_does(
    probe: str, model: Path, suite: Path, tmp_path: Path
) -> None:
    words = ["evaluate", "transfer", str(model), "--data", str(suite), "--json", "--probe", probe]
    words += ["--device", "cpu", "--workers", "0", "--batch", "4", "--rates", "0.1"]
    words += ["--epochs", "1", "--trial-epochs", "1", "--keep-features", "false"]
    words += ["--sets", *FOUR[2:]]
    first, second = by_hand(tmp_path / "two", words, numbered(2))
    assert first.code == second.code == 0, first.error + second.error
    (one,) = by_hand(tmp_path / "one", words, [{}])
    assert json.loads(first.out)["rows"] == json.loads(one.out)["rows"]
    assert second.out == ""


# Options

CHANGES: Mapping[str, tuple[object, Mapping[str, Any]]] = {
    "image_size": (24, {}),
    "crop": (0.5, {}),
    "sets": (("HatefulMemes",), {}),
    "probe": ("elevater", {}),
    "rates": ((0.01,), {"probe": "elevater"}),
    "trial_epochs": (3, {"probe": "elevater"}),
    "epochs": (3, {"probe": "elevater"}),
    "duration": ("2st", {"probe": "finetune"}),
    "lr": ((0.5,), {"probe": "finetune"}),
    "seed": (1, {"probe": "elevater"}),
}
"""Option -> (another value, what else must be set for it to matter)."""
ELSEWHERE = {"data", "batch", "workers", "device", "max_unreadable", "results", "keep_features"}


def test_the_table_names_every_option() -> None:
    assert set(CHANGES) == {field.name for field in fields(TransferConfig)} - ELSEWHERE


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_changes_what_is_found(
    name: str, model: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores of the test part and those that choose: few images have few figures."""
    value, base = CHANGES[name]
    told: list[Any] = []
    worth: Callable[..., float] = Task.worth

    def kept(self: Task, scores: Tensor, labels: Tensor) -> float:
        told.append(scores.tolist())
        return worth(self, scores, labels)

    monkeypatch.setattr(Task, "worth", kept)
    base = {"sets": ("CIFAR10",), "rates": (0.1,), **base}

    def found(**options: Any) -> object:
        told.clear()
        return transfer(model, suite, **{**base, **options}).rows, list(told)

    first = found()
    assert found() == first
    assert found(**{name: value}) != first


def test_batches_and_workers_change_nothing(model: Path, suite: Path) -> None:
    some = {"sets": ("CIFAR10",)}
    first = transfer(model, suite, **some)
    assert transfer(model, suite, **some, batch=7, workers=1).rows == first.rows
