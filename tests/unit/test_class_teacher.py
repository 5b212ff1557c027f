"""Distillation from a teacher that tells classes: the step, the second head, who may teach."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional

from leanvit.backbones.layers import LayerNorm
from leanvit.config import BackboneConfig, MixConfig, TimmConfig
from leanvit.core.random import seeded
from leanvit.losses.classes import class_distillation
from leanvit.methods.base import Moment
from leanvit.methods.catalogue import build_method
from leanvit.methods.mixing import mix_views
from leanvit.methods.supervised import Supervised
from leanvit.methods.teacher import ClassTeacher
from tests.tiny import CLASSES, SWIN, VIT, build, noise, supervised, view_batch, write_tuned

AT = Moment(step=3, run=10, epoch=0, seed=0)
FREE_TOKEN = replace(VIT, pool="mean_norm")
STUDENTS = {"vit": FREE_TOKEN, "class token": VIT, "swin": SWIN}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = build(TimmConfig(image_size=32, name="test_resnet", drop_path=0.0))
    network.mean, network.std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    return write_tuned(tmp_path_factory.mktemp("t") / "tuned", network, classes=CLASSES)


def student(backbone: BackboneConfig, teacher: Path, **changes: Any) -> Supervised:
    found = build_method(supervised(teacher=str(teacher), **changes), backbone, 0)
    assert isinstance(found, Supervised)
    found.backbone.load_state_dict(build(backbone).state_dict())
    for seed, parameter in enumerate(found.head.parameters()):
        parameter.data = noise(*parameter.shape, seed=seed)
    return found


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("backbone", STUDENTS.values(), ids=STUDENTS)
def test_a_step_is_that_of_the_paper(backbone: BackboneConfig, kind: str, tuned: Path) -> None:
    """The teacher sees the mixed images, under its own mean and deviation."""
    mix = MixConfig(views=1)
    found = student(
        backbone,
        tuned,
        mix=mix,
        distillation=kind,
        distillation_weight=0.3,
        distillation_temperature=2.0,
    )
    batch = view_batch(4)
    out = found(batch, AT)
    (views,), _ = mix_views(batch.groups[:1], mix, AT.seed, AT.step)
    plain = build_method(supervised(mix=mix), backbone, 0)
    plain.load_state_dict(
        {name: value for name, value in found.state_dict().items() if name in plain.state_dict()}
    )
    class_loss = plain(batch, AT).total
    teacher = ClassTeacher(str(tuned), CLASSES)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (found.backbone.mean, found.backbone.std))
    pixels = views[0] * std + mean
    own = torch.tensor((0.1, 0.2, 0.3)).view(-1, 1, 1), torch.tensor((0.5, 0.6, 0.7)).view(-1, 1, 1)
    seen = (pixels - own[0]) / own[1]
    told = teacher(seen, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    features = found.backbone.features(views[0])
    read = features.pooled
    if backbone is FREE_TOKEN:
        assert features.prefix is not None and isinstance(found.head.token_norm, LayerNorm)
        read = found.head.token_norm(features.prefix[:, 0])
    assert found.head.token is not None
    logits = found.head.token(read)
    expected = imitation(logits, told, kind)
    torch.testing.assert_close(out.terms["distillation"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.terms["class"], class_loss)
    torch.testing.assert_close(out.total, 0.7 * class_loss + 0.3 * expected, rtol=1e-4, atol=1e-5)
    both = torch.stack([found.head(features.pooled), logits]).mean(0)
    torch.testing.assert_close(found.head.scores(features), both)


def imitation(logits: Tensor, told: Tensor, kind: str) -> Tensor:
    """Return the distance at temperature 2, written out."""
    if kind == "hard":
        return functional.cross_entropy(logits, told.argmax(1))
    ours, theirs = (logits / 2).softmax(1), (told / 2).softmax(1)
    return 4 * (theirs * (theirs / ours).log()).sum(1).mean()


def test_the_teacher_teaches_and_does_not_learn(tuned: Path) -> None:
    found = student(FREE_TOKEN, tuned, mix=MixConfig(views=0))
    found.train()
    assert not any("teacher" in name for name, _ in found.named_parameters())
    saved = [name for name in found.state_dict() if name.startswith("teacher")]
    assert saved == ["teacher.fingerprint"]
    batch = view_batch(4)
    first, again = found(batch, AT), found(batch, AT)
    assert first.total.equal(again.total), "its batch norms take no statistics"
    first.terms["distillation"].backward()
    assert found.head.token is not None and found.head.token.weight.grad is not None
    assert found.backbone.cls_token.grad.abs().sum() > 0  # type: ignore[union-attr, operator]


def test_another_teacher_is_noticed(tuned: Path, tmp_path: Path) -> None:
    """Even if its head alone is another."""
    state = student(VIT, tuned).state_dict()
    network = build(TimmConfig(image_size=32, name="test_resnet", drop_path=0.0))
    other = write_tuned(tmp_path / "other", network, classes=CLASSES)
    student(VIT, other).load_state_dict(state)
    from safetensors.torch import load_file, save_file

    head = load_file(other / "head.safetensors")
    save_file({**head, "bias": head["bias"] + 1}, other / "head.safetensors")
    with pytest.raises(ValueError, match="trained with another teacher"):
        student(VIT, other).load_state_dict(state)


def test_a_distilled_network_teaches_with_both_heads(tuned: Path, tmp_path: Path) -> None:
    found = student(FREE_TOKEN, tuned)
    folder = write_tuned(tmp_path / "next", found.backbone, classes=CLASSES)
    from safetensors.torch import save_file

    save_file(dict(found.head.state_dict()), folder / "head.safetensors")
    teacher, image = ClassTeacher(str(folder), CLASSES), noise(2, 3, 32, 32)
    expected = found.head.scores(found.backbone.features(image))
    backbone = found.backbone
    torch.testing.assert_close(teacher(image, backbone.mean, backbone.std), expected)


def test_timm_teaches_with_its_own_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    with seeded(0, "weights"):
        model: Any = timm.create_model("test_resnet", num_classes=CLASSES)
    usual = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    model.pretrained_cfg = {**vars(model)["pretrained_cfg"], **usual}

    def create(name: str, *, pretrained: bool) -> Any:
        assert (name, pretrained) == ("test_resnet.r160_in1k", True)
        return model

    monkeypatch.setattr(timm, "create_model", create)
    teacher, image = ClassTeacher("timm:test_resnet.r160_in1k", CLASSES), noise(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(image)
    torch.testing.assert_close(teacher(image, (0.5,) * 3, (0.25,) * 3), expected)
    with pytest.raises(ValueError, match="tells 3 classes and the images have 4"):
        ClassTeacher("timm:test_resnet.r160_in1k", 4)


def test_who_cannot_teach_is_told(tmp_path: Path, tuned: Path) -> None:
    with pytest.raises(ValueError, match="is no teacher that tells classes: name the folder"):
        ClassTeacher(str(tmp_path), CLASSES)
    with pytest.raises(ValueError, match=r"tells 3 classes and the images have 7; .*same order"):
        ClassTeacher(str(tuned), 7)


@pytest.mark.parametrize("hard", [True, False])
def test_the_distance_is_fp32_and_survives_extremes(hard: bool) -> None:
    student, teacher = 1e4 * noise(4, 3), 1e4 * noise(4, 3, seed=1)
    student.requires_grad_()
    loss = class_distillation(student, teacher, hard=hard, temperature=1.0)
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        rough = class_distillation(
            noise(4, 3).bfloat16(), noise(4, 3, seed=1), hard=hard, temperature=1.0
        )
    exact = class_distillation(noise(4, 3), noise(4, 3, seed=1), hard=hard, temperature=1.0)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.01)
    same = class_distillation(teacher, teacher, hard=hard, temperature=3.0)
    assert same.abs() < 1e-4
