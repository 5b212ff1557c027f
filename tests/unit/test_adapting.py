"""What fine-tuning changes of a network, and what it leaves exactly as it was."""

from dataclasses import replace

import pytest
import torch

from leanvit.backbones.base import Ask, Backbone
from leanvit.config import BackboneConfig, TimmConfig, ViTConfig
from leanvit.evaluation.adapting import fit_to_tune, keep_first
from leanvit.weights.report import Report, Weights
from leanvit.weights.report import build as build_weights
from tests.tiny import CVT, FAMILIES, SWIN, VIT, VIT_FULL, build, noise

PLAIN = {
    "class": VIT,
    "mean": replace(VIT, pool="mean", positions="sincos"),
    "full": VIT_FULL,
}


def weights_of(backbone: Backbone) -> Weights:
    report = Report("leanvit", "", ())
    return Weights(backbone.config, backbone.state_dict(), (0.1,) * 3, (0.2,) * 3, report)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
@torch.no_grad()
def test_the_view_feature_is_the_norm_of_the_mean(config: ViTConfig, bias: bool) -> None:
    """Nothing else moves: the blocks' outputs are the same, bit for bit, a zero bias included."""
    before = build(config).eval()
    tuned = fit_to_tune(weights_of(before), drop_path=0.1, position_bias=bias)
    after = build_weights(tuned)
    image, ask = noise(2, 3, config.image_size, config.image_size), Ask(hidden=(0, -1))
    (old,), (new,) = before([image], ask), after([image], ask)
    for one, other in zip(old.hidden, new.hidden, strict=True):
        torch.testing.assert_close(other.grid, one.grid, rtol=1e-6, atol=1e-6)
    expected = before.norm(old.hidden[-1].grid.mean((1, 2)))
    torch.testing.assert_close(new.pooled, expected, rtol=1e-5, atol=1e-5)
    assert isinstance(tuned.config, ViTConfig)
    assert tuned.config.positions == "learned" and tuned.config.drop_path == 0.1
    assert "pos_embed" in dict(after.named_parameters())
    assert tuned.config.position_bias == (bias or config.position_bias)
    assert after.mean == (0.1,) * 3
    assert tuned.state is not None and tuned.state["fc_norm.weight"].std() > 0
    again = fit_to_tune(tuned, drop_path=0.1)
    assert again.state is not None and again.state.keys() == tuned.state.keys()


OTHERS = {name: FAMILIES[name] for name in FAMILIES if not name.startswith("vit")}


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
@torch.no_grad()
def test_other_families_stay_as_they_are(config: BackboneConfig) -> None:
    before = build(config).eval()
    after = build_weights(fit_to_tune(weights_of(before), drop_path=0.0))
    image = noise(1, 3, 32, 32)
    assert after.features(image).pooled.equal(before.features(image).pooled)


def test_a_bias_is_added_to_plain_vits_alone() -> None:
    for config in (SWIN, CVT):
        with pytest.raises(ValueError, match=f"of the family {config.kind}; set it to false"):
            fit_to_tune(weights_of(build(config)), drop_path=0.0, position_bias=True)


def test_fresh_weights_get_the_shape_alone() -> None:
    fresh = replace(weights_of(build(VIT)), state=None)
    tuned = fit_to_tune(fresh, drop_path=0.0, position_bias=True)
    assert tuned.state is None and tuned.config.position_bias  # type: ignore[attr-defined]
    assert build_weights(tuned).features(noise(1, 3, 32, 32)).pooled.isfinite().all()


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_the_first_blocks_are_kept(blocks: int) -> None:
    trained, fresh = build(VIT), build(VIT)
    for value in fresh.state_dict().values():
        value.add_(1.0)
    found = keep_first(trained.state_dict(), fresh, blocks)
    old, new = trained.state_dict(), fresh.state_dict()
    taken = {name for name, value in found.items() if value.equal(old[name])}
    assert all(found[name].equal(new[name]) for name in found if name not in taken)
    inside = tuple(f"layers.{block}." for block in range(blocks))
    embedding = ("cls_token", "pos_embed", "patch_embed.")
    expected = {name for name in old if name.startswith(embedding + inside)}
    assert taken == (set(old) if blocks == 3 else expected)


def test_statistics_go_with_their_layer() -> None:
    config = TimmConfig(image_size=64, name="test_resnet", drop_path=0.0)
    trained, fresh = build(config), build(config)
    for value in trained.state_dict().values():
        value.add_(1)
    found = keep_first(trained.state_dict(), fresh, 1)
    depths = dict(fresh.param_layers())
    seen = set()
    for name, value in found.items():
        if name.endswith("running_var"):
            kept = depths[f"{name.rpartition('.')[0]}.weight"] <= 1
            assert value.equal((trained if kept else fresh).state_dict()[name]), name
            seen.add(kept)
    assert seen == {True, False}


def test_more_blocks_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="keep_blocks is 4, and the network has 3 blocks"):
        keep_first(build(VIT).state_dict(), build(VIT), 4)
