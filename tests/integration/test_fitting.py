"""The memory of a step, measured by real steps in processes of their own, and what runs by it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import leanvit
from leanvit.cli import main
from leanvit.config import (
    CropConfig,
    Facts,
    MultiCropConfig,
    RunConfig,
    StepMemory,
    rehearsal,
    replace_options,
    resolve,
)
from leanvit.core import memory
from leanvit.core.errors import RunError
from leanvit.data.sources import open_source
from leanvit.methods.catalogue import build_method
from leanvit.train import fitting, trial
from leanvit.train.fitting import with_memory
from leanvit.train.state import TrainState
from leanvit.train.trial import Taken, Trial, attempt
from tests.integration.command import TINY, Says, refused
from tests.integration.test_methods import RUNS, config_of
from tests.tiny import SWIN, dino, esvit, mae, run_config, write_backbone, write_images

pytestmark = pytest.mark.usefixtures("undrawn")

MIB, GIB = 2**20, 2**30
FACTS = Facts(images=100, classes=3, cores=1, device="cpu", bf16=False)
SMALL = replace(
    run_config(),
    method=esvit(views=MultiCropConfig(global_size=64, local_sizes=(32,), local_counts=(2,))),
    backbone=replace(SWIN, image_size=64, dim=16),
)
"""A network whose steps take some 10 MiB an image, so that they can be seen."""
DISTILLED = {"esvit": esvit(), "dino": dino()}
AUTO = [word for word in TINY if word != "--train.batch=4"]
OPEN = {"train.batch": "auto", "train.accumulate": 1}
Fakes = Callable[..., list[Trial]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), 40)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Let trials say that a step takes 50 MiB and 10 an image, and keep what was tried."""

    def install(limit: int = GIB, free: int = GIB, most: int = 1000) -> list[Trial]:
        tried: list[Trial] = []

        def found(asked: Trial) -> Taken | None:
            tried.append(asked)
            peak = (50 + 10 * asked.micro) * MIB
            if peak > limit or asked.micro > most:
                return None
            return Taken(peak=peak, state=40 * MIB, gradients=9 * MIB, views=MIB, whole=False)

        monkeypatch.setattr(fitting, "attempt", found)
        monkeypatch.setattr(fitting, "free_bytes", lambda _: free)
        return tried

    return install


def measured(photos: Path, asked: RunConfig = SMALL, facts: Facts = FACTS) -> Facts:
    asked = replace_options(asked, {**OPEN, "data.workers": 0, "data.rendering": "host"})
    return with_memory(asked, facts, open_source(str(photos)), quiet=True)


# Trials


@pytest.mark.long
def test_a_larger_step_takes_what_was_foretold(photos: Path) -> None:
    """At most a tenth more, or a fifth in parts, whose heap has holes; 8 and 2 images foretell 32.

    It may be a fifth less: blocks of few tokens keep what those of many make again.
    """
    step = measured(photos).step
    assert step is not None and 5 * MIB < step.each < 20 * MIB
    found = attempt(Trial(rehearsal(SMALL, FACTS), 32, most=8 * GIB))
    assert found is not None
    assert 0.8 < found.peak / step.needed(32) < 1.1
    halves = attempt(Trial(rehearsal(SMALL, FACTS), 16, 2, most=8 * GIB))
    assert halves is not None
    assert 0.75 < halves.peak / step.needed(32, 2) < 1.2
    assert halves.peak < 0.9 * found.peak


def test_too_little_memory_ends_a_trial_and_nothing_else() -> None:
    config = rehearsal(SMALL, FACTS)
    assert attempt(Trial(config, 1024, most=300 * MIB)) is None  # it would take 10 GiB


@pytest.mark.parametrize("signal", ["KILL", "ABRT"])
def test_a_trial_that_is_killed_was_too_large(
    signal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = tmp_path / "python"
    dies.write_text(f"#!/bin/sh\nkill -{signal} $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(dies))
    assert attempt(Trial(SMALL, 2)) is None
    dies.write_text("#!/bin/sh\necho first >&2; echo 'OSError: no such thing' >&2; exit 1\n")
    with pytest.raises(RunError, match=r"tried to see what it takes failed: OSError: no such thi"):
        attempt(Trial(SMALL, 2))


def test_a_trial_refuses_what_the_run_would() -> None:
    odd = replace(config_of("mae"), method=mae(views=CropConfig(size=30)))
    with pytest.raises(ValueError) as said:
        build_method(odd.method, odd.backbone, 0)
    with pytest.raises(ValueError) as also:
        attempt(Trial(odd, 2, most=GIB))
    assert str(also.value) == str(said.value)


@pytest.mark.parametrize("name", [*DISTILLED, *RUNS])
def test_every_method_can_be_tried(name: str, tmp_path: Path) -> None:
    config = replace(run_config(), method=DISTILLED[name]) if name in DISTILLED else config_of(name)
    if hasattr(config.method, "teacher") and config.method.kind in ("dmae", "d2mae"):
        taught = build_method(config_of("mae").method, config.backbone, 1).encoder()
        teacher = str(write_backbone(tmp_path, taught))
        config = replace_options(config, {"method.teacher": teacher})
    config = rehearsal(config, FACTS)
    steps = trial._Steps(config, {"micro": 4, "parts": 1, "beside": 0})
    steps()
    found, weights = steps.taken(7), sum(p.numel() for p in steps.state.method.parameters())
    assert found.peak == 7 and found.whole == steps.state.method.coupled()
    assert found.views == sum(group[:, 0].numel() for group in steps.batch.groups) * 4
    learning = [p for p in steps.state.method.parameters() if p.grad is not None]
    assert found.gradients == 4 * sum(p.numel() for p in learning) > 0
    assert found.state > 4 * weights + 3 * found.gradients  # AdamW keeps two more


# What they say of larger steps


def test_two_trials_make_a_line(fake: Fakes, photos: Path) -> None:
    tried = fake()
    facts = measured(photos)
    assert [(each.micro, each.parts, each.most) for each in tried] == [(8, 1, GIB), (2, 1, GIB)]
    assert facts.memory == GIB
    assert facts.step == StepMemory(
        fixed=50 * MIB, each=10 * MIB, views=MIB, waiting=0, gradients=9 * MIB
    )


def test_a_trial_that_breaks_means_fewer_images(fake: Fakes, photos: Path) -> None:
    tried = fake(most=7)
    step = measured(photos).step
    assert [each.micro for each in tried] == [8, 2]
    assert step is not None and (step.fixed, step.each) == (40 * MIB, 15 * MIB)
    assert step.needed(2) == 70 * MIB
    fake(limit=60 * MIB)
    with pytest.raises(ValueError, match=r"^Not even a step of 2 images fits into the 1\.0 GiB"):
        measured(photos)


def test_a_chosen_step_that_breaks_means_fewer_images(fake: Fakes, photos: Path) -> None:
    """Of 1024, then 819 and 655 MiB, 4/5 are used: 72, 56 and 40 images would fit."""
    tried = fake(most=50)
    asked = replace_options(SMALL, OPEN)
    facts = fitting._tried(asked, replace(measured(photos), images=1000))
    assert [each.micro for each in tried] == [8, 2, 72, 56, 40]
    assert facts.memory == int(0.8 * int(0.8 * GIB))
    assert resolve(asked, facts).config.train.batch == 40
    fake(most=0)
    with pytest.raises(ValueError, match="Not even one image at a time fits"):
        fitting._tried(asked, facts)


def test_neighbours_share_the_memory(fake: Fakes, photos: Path) -> None:
    fake()
    shared = (replace(FACTS, world=4, neighbours=2), replace(FACTS, world=4))
    assert [measured(photos, facts=facts).memory for facts in shared] == [GIB // 2, GIB // 4]


def test_what_waits_is_counted(fake: Fakes, photos: Path) -> None:
    fake()
    source = open_source(str(photos))

    def waiting(**options: object) -> int:
        asked = replace_options(
            SMALL, {**OPEN, **{n.replace("__", "."): options[n] for n in options}}
        )
        step = with_memory(asked, FACTS, source, quiet=True).step
        assert step is not None
        return step.waiting

    assert waiting(data__workers=3, data__rendering="host") == 6 * MIB
    raw = waiting(data__workers=3, data__rendering="device") - MIB
    assert 3 * 3 * 40 * 40 <= raw <= 3 * 3 * 40 * 46


def test_numbers_measure_nothing(fake: Fakes, photos: Path) -> None:
    tried = fake()
    assert with_memory(SMALL, FACTS, open_source(str(photos))) is FACTS and tried == []


# Runs


def test_a_run_takes_what_fits_says_so_and_goes_on_as_it_was(
    photos: Path, tmp_path: Path, capsys: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "out", ["pretrain", "esvit", "--data", str(photos), *AUTO]
    words += ["--train.batch", "auto", "--optim.lr.peak", "1e-3"]
    assert main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert said.count("Trying steps of a few images") == 1
    assert "40 images, 4 steps of 16, a checkpoint every 2" in said
    assert "\nBatch 16 (so that an epoch of 40 images has 2 steps; " in said
    assert "), peak learning rate 6.25e-05 (given; 0.001 at 256 images, linear rule, b" in said
    record = json.loads((out / "resolved.json").read_text())
    assert record["asked"]["train"]["batch"] == "auto" and record["config"]["train"]["batch"] == 16
    state = "checkpoints/step-00000004/state.safetensors"
    whole = (out / state).read_bytes()

    def never(_: Trial) -> None:
        raise AssertionError("a run that goes on measured again")

    monkeypatch.setattr(fitting, "attempt", never)
    for again in ([*words, "--resume"], ["pretrain", "--resume"]):
        shutil.rmtree(out / "checkpoints" / "step-00000004")
        assert main([*again, "--out", str(out)]) == 0
        assert (out / state).read_bytes() == whole
    copied = ["pretrain", "--config", str(out / "resolved.json"), "--out", str(tmp_path / "b")]
    assert main(copied) == 0
    assert (tmp_path / "b" / state).read_bytes() == whole
    assert "cannot" not in refused(capsys, *words[:-4], "--train.batch", "8", "--out", out,
                                   "--resume", lines=4)  # fmt: skip


def test_micro_batches_where_a_batch_does_not_fit(
    fake: Fakes, photos: Path, tmp_path: Path, capsys: Says
) -> None:
    """It takes 210 MiB, and 0.8 of 200 are used: 50, 9 of gradients, 10 an image, 1 of others."""
    fake(free=200 * MIB)
    out = tmp_path / "out"
    words = ["pretrain", "esvit", "--data", str(photos), *AUTO, "--train.batch", "16"]
    assert main([*words, "--train.accumulate", "auto", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "Batch 16, in 2 parts (16 images at once take 210 MiB, more than 80 % of the " in said
    assert json.loads((out / "resolved.json").read_text())["config"]["train"]["accumulate"] == 2


def test_a_run_that_goes_on_may_be_split(
    fake: Fakes, photos: Path, tmp_path: Path, capsys: Says
) -> None:
    out = tmp_path / "out"
    words = ["pretrain", "esvit", "--data", str(photos), *AUTO, "--train.batch", "16"]
    assert main([*words, "--out", str(out)]) == 0
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    tried = fake(free=200 * MIB)
    split = ["--train.accumulate", "auto", "--allow", "train.accumulate"]
    assert main(["pretrain", "--out", str(out), "--resume", *split]) == 0
    assert len(tried) == 2
    record = json.loads((out / "resolved.json").read_text())
    assert record["config"]["train"]["accumulate"] == 2
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    assert main(["pretrain", "--out", str(out), "--resume"]) == 0
    assert len(tried) == 2, "what was chosen once is not measured again"


def test_a_check_says_the_same(fake: Fakes, photos: Path, tmp_path: Path) -> None:
    fake()
    options = {**OPEN, "data.workers": 0, "optim.lr_rule": "linear"}
    config = replace_options(run_config(), options)
    report = leanvit.check(config, data=str(photos), out=tmp_path / "check", quiet=True)
    fits = "72 would fit into 80 % of the 1.0 GiB that are free"
    assert report.batch == f"16 (so that an epoch of 40 images has 2 steps; {fits})"
    assert report.learning_rate.endswith("linear rule, batch 16)")
    assert f"\nbatch        {report.batch}\n" in str(report)


SHORT: tuple[Exception, ...] = (
    RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 0 bytes free."),
    MemoryError(),
)


@pytest.mark.parametrize("error", SHORT, ids=["cpu", "cuda", "python"])
@pytest.mark.parametrize("command", ["pretrain", "check"])
def test_too_little_memory_names_what_helps(
    command: str,
    error: Exception,
    photos: Path,
    tmp_path: Path,
    capsys: Says,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(TrainState, "backward", fails)
    words = [command, "esvit", "--data", str(photos), *TINY, "--out", str(tmp_path / "out")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "leanvit: A step takes more memory than there is (" in said
    assert "--train.accumulate auto" in said and "--train.batch auto" in said
    assert "Traceback" not in said


def test_other_failures_keep_their_words() -> None:
    with (
        pytest.raises(RuntimeError, match=r"^shapes do not match$"),
        memory.shortage_named("Take less."),
    ):
        raise RuntimeError("shapes do not match")


# What is free


def tell(folder: Path, **files: str) -> None:
    """Write what Linux tells of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_groups_of_processes_have_limits(tmp_path: Path) -> None:
    """Version 2: every group on the way down may have one; cached files can go."""
    stat = "anon 500\ninactive_file 300\nactive_file 7"
    tell(tmp_path / "job", memory__max="1000", memory__current="900", memory__stat=stat)
    tell(tmp_path / "job/step", memory__max="max", memory__current="700", memory__stat=stat)
    assert list(memory._left("0::/job/step\n", tmp_path)) == [400]
    tell(tmp_path / "job/step", memory__max="750", memory__current="700", memory__stat=stat)
    assert sorted(memory._left("0::/job/step\n", tmp_path)) == [350, 400]
    assert list(memory._left("0::/job\n", tmp_path)) == [400]


def test_older_groups_have_limits(tmp_path: Path) -> None:
    """Version 1, and a container that sees its own group at the top alone."""
    tell(
        tmp_path / "memory",
        memory__limit_in_bytes="1000",
        memory__usage_in_bytes="900",
        memory__stat="cache 400\ninactive_file 1\ntotal_inactive_file 200",
    )
    own = "9:name=systemd:/x\n4:cpu,memory:/docker/abc\n0::/\n"
    assert list(memory._left(own, tmp_path)) == [300]
    assert list(memory._left("9:name=systemd:/x\n", tmp_path)) == []


def test_no_more_is_free_than_the_machine_has() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    (total,) = (int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    assert 0 < memory.free_bytes("cpu") <= 1024 * total
