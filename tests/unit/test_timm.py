"""Names of timm, what it cannot give here, masks from outside, batch norm in a run."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import leanvit
from leanvit.backbones.base import Ask
from leanvit.backbones.catalogue import build_backbone
from leanvit.backbones.timm_adapter import DropPath, TimmNetwork
from leanvit.config import Facts, TimmConfig, compose, replace_options, resolve
from leanvit.evaluation.models import open_networks
from leanvit.methods.catalogue import build_method
from leanvit.recipes import recipe
from leanvit.train.optim import parameter_groups
from leanvit.train.state import TrainState
from tests.tiny import TIMM, TIMM_CONVOLUTIONS, build, esvit, noise, run_config, view_batch

WITH_BATCH_NORM = TimmConfig(image_size=64, name="test_resnet")

# Names


def test_a_name_of_timm_is_a_backbone() -> None:
    config = compose(recipe("esvit"), backbone="timm:test_vit")
    assert config.backbone == TimmConfig(name="test_vit")
    assert compose(recipe("esvit"), backbone="resnet50").backbone == TimmConfig(name="resnet50")
    with pytest.raises(ValueError, match=r"Unknown backbone 'test_vit'.* timm:NAME, "):
        compose(recipe("esvit"), backbone="test_vit")
    with pytest.raises(ValueError, match="name is empty; expected a network of timm"):
        compose(recipe("esvit"), backbone="timm:")


def test_a_network_of_timm_is_untrained_and_the_same_every_time() -> None:
    before = torch.get_rng_state()
    (first,) = open_networks("timm:test_mambaout", torch.device("cpu")).items()
    again = leanvit.load_backbone("timm:test_mambaout")
    assert torch.get_rng_state().equal(before)
    assert first[0] == "untrained" and not again.training
    state = again.state_dict()
    assert all(state[name].equal(value) for name, value in first[1].state_dict().items())


def test_timm_is_loaded_when_it_is_needed() -> None:
    line = "import sys, leanvit.backbones.catalogue; print('timm' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", line], text=True) == "False\n"


CANNOT = {
    "convnext_ato": r"timm [\d.]+ has no network 'convnext_ato'; did you mean 'convnext_atto' or",
    "zzz": r"timm [\d.]+ has no network 'zzz'. timm.list_models\(\) lists them.",
    "hf-hub:timm/resnet50": "has no network 'hf-hub:timm/resnet50'",
    "coat_mini": r"built for images of 224 x 224 .*: it ends in more than one map of features.",
    "pit_ti_224": "timm does not say which of its 1 tokens are the 7 x 7 regions.",
    "halonet26t": "halonet26t cannot be built for images of 224 x 224",
}


@pytest.mark.parametrize(("name", "message"), CANNOT.items(), ids=CANNOT)
def test_what_timm_cannot_give_is_said(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        leanvit.load_backbone(f"timm:{name}")


def test_trained_weights_are_no_backbone_of_a_run_but_its_start() -> None:
    message = (
        "'resnet50.a1_in1k' names trained weights of timm; .*'resnet50', .* --init timm:resnet50.a1"
    )
    with pytest.raises(ValueError, match=message):
        build_method(esvit(), TimmConfig(name="resnet50.a1_in1k"), seed=0)


def test_a_network_without_stages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of older versions of timm."""
    monkeypatch.delattr("timm.models.vision_transformer.VisionTransformer.forward_intermediates")
    with pytest.raises(ValueError, match=r"test_vit3 does not give the features of its stages\."):
        leanvit.load_backbone("timm:test_vit3")


def test_a_size_that_a_network_cannot_take_is_said() -> None:
    backbone = build(replace(TIMM_CONVOLUTIONS, name="test_convnext"))
    with pytest.raises(ValueError) as caught:
        backbone([noise(1, 3, 40, 40), noise(1, 3, 40, 24)])
    assert str(caught.value) == (
        "timm's test_convnext, built for 32 x 32 pixels (backbone.image_size), cannot take "
        "40 x 24; the smallest square that it takes is 32 x 32 (Conv2d would be left with an empty "
        "map)."
    )


def test_views_that_a_network_cannot_take_are_refused_before_a_run() -> None:
    with pytest.raises(ValueError, match=r"test_vit_relpos, built for 32 x 32 .* take 16 x 16; "):
        build_method(esvit(), TimmConfig(image_size=32, name="test_vit_relpos"), seed=0)


def test_image_size_is_what_positions_are_made_for() -> None:
    shapes = [dict(build(replace(TIMM, image_size=side)).named_parameters()) for side in (32, 64)]
    name = "network.model.pos_embed"
    assert [found[name].shape[1] for found in shapes] == [1 + 4, 1 + 16]


# Draws


def test_no_dropout_is_left() -> None:
    backbone = build(TimmConfig(image_size=32, name="test_vit_relpos"))
    found = [m.p for m in backbone.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    assert found and not any(found)


def test_a_branch_takes_its_masks_in_turn() -> None:
    branch, x = DropPath(1, 0, 0.5), noise(2, 3, 4)
    assert branch(x) is x
    drop = torch.tensor([[[True, True]] * 2, [[True, False], [False, True]]])
    branch.begin(drop)
    assert branch(x)[0].equal(2 * x[0]) and not branch(x)[0].any() and branch(x)[0].any()
    branch.begin(drop)
    assert not branch(x)[1].any() and branch(x)[1].equal(2 * x[1])


@pytest.mark.parametrize("config", [TIMM, TIMM_CONVOLUTIONS], ids=lambda config: config.name)
def test_masks_decide_and_leave_nothing_behind(config: TimmConfig) -> None:
    backbone, image = build(replace(config, drop_path=0.5)).train(), noise(4, 3, 32, 32)
    rates = backbone.drop_rates()
    assert rates == sorted(rates) and rates[0] > 0 and rates[-1] == pytest.approx(0.5)
    drop = noise(len(rates), 2, 4, seed=1) > 0

    def pooled(ask: Ask) -> torch.Tensor:
        return backbone([image], ask)[0].pooled

    plain = pooled(Ask())
    assert pooled(Ask(drop=drop)).equal(pooled(Ask(drop=drop)))
    assert not pooled(Ask(drop=drop)).equal(pooled(Ask(drop=~drop)))
    assert pooled(Ask()).equal(plain), "a pass without masks follows one with masks"
    with pytest.raises(ValueError, match=rf"expected \({len(rates)}, 2, 4\)"):
        pooled(Ask(drop=drop[1:]))


def test_stochastic_depth_is_refused_where_there_is_none() -> None:
    with pytest.raises(
        ValueError, match=r"efficientvit_m0 has no stochastic depth: set backbone.d"
    ):
        build(TimmConfig(image_size=64, name="efficientvit_m0", drop_path=0.1))
    with pytest.raises(ValueError, match=r"it drops parts of images: set backbone.drop_path to 0."):
        build(TimmConfig(name="tnt_s_patch16_224", drop_path=0.1))


# In a run


def test_weight_decay_spares_what_timm_lists() -> None:
    groups = parameter_groups(build(TIMM), decay_all_matrices=False)
    decayed, spared = (set(group["names"]) for group in groups)
    listed = {"network.model.pos_embed", "network.model.cls_token"}
    assert listed <= spared and "network.model.patch_embed.proj.weight" in decayed
    groups = parameter_groups(build(TIMM), decay_all_matrices=True)
    assert listed <= set(groups[0]["names"])


def test_batch_norm_does_not_split_a_step() -> None:
    config = replace(run_config(accumulate=2), backbone=WITH_BATCH_NORM)
    method = build_method(config.method, config.backbone, seed=0)
    with pytest.raises(ValueError, match="Batch norm couples the images of a batch, so a step"):
        TrainState(method, config, epoch_steps=5)
    split = replace(config, backbone=TIMM)
    TrainState(build_method(split.method, split.backbone, seed=0), split, epoch_steps=5)
    facts = Facts(images=100, cores=1, device="cpu", bf16=False)
    asked = replace_options(recipe("esvit"), {"train.accumulate": 2})
    resolve(asked, facts)
    with pytest.raises(ValueError, match="Batch norm in the backbone couples the images of a batc"):
        resolve(compose(asked, backbone="cvt_tiny"), facts)


def test_running_statistics_resume_exactly() -> None:
    config = replace(run_config(), backbone=WITH_BATCH_NORM)

    def fresh() -> TrainState:
        method = build_method(config.method, config.backbone, seed=0)
        return TrainState(method, config, epoch_steps=5)

    def steps(state: TrainState, *seeds: int) -> TrainState:
        for seed in seeds:
            at = state.begin_step()
            state.backward(view_batch(seed=seed), at, 1)
            state.update(at)
        return state

    whole, half = steps(fresh(), 1, 2, 3), steps(fresh(), 1, 2)
    again = fresh()
    again.restore({name: value.clone() for name, value in half.tensors().items()}, half.step)
    end, expected = steps(again, 3).tensors(), whole.tensors()
    assert any("running_var" in name for name in end)
    assert end.keys() == expected.keys() and all(end[n].equal(expected[n]) for n in end)
    encoder = whole.method.encoder()
    assert isinstance(encoder, TimmNetwork)
    moved = encoder.network.model.get_buffer("bn1.running_mean")
    assert moved.any(), "the teacher keeps its own statistics"


def test_a_grid_that_does_not_follow_the_image_is_refused() -> None:
    """Hiera adds its positions to a single patch as if it were all of them."""
    hiera = build_backbone(TimmConfig(name="hiera_tiny_224"))
    with pytest.raises(ValueError, match="7 regions a side do not lie on 1 pixels"):
        hiera.features(torch.zeros(1, 3, 1, 1))
