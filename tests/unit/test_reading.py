"""Any checkpoint file of a known kind is read whole, as plain tensors under plain names."""

import argparse
import collections
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leanvit.weights.reading import non_finite, read_checkpoint, unwrap
from tests.checkpoints import (
    WEIGHTS,
    refusal,
    repacked,
    same,
    save_legacy,
    write_sharded,
)

# What official codes write


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return network, optimizer


def test_an_esvit_file_is_read(save: Callable[[object, Path], None], tmp_path: Path) -> None:
    network, optimizer = trained()
    state = network.state_dict()
    file = {
        "student": {f"module.{name}": value for name, value in state.items()},
        "teacher": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 300,
        "args": argparse.Namespace(arch="swin_tiny", scale=(0.05, 0.4), lr=5e-4, cfg=None, n=[]),
        "dino_loss": {"center": torch.ones(1, 5), "center_grid": torch.zeros(1, 5)},
        "fp16_scaler": torch.GradScaler("cpu").state_dict(),
    }
    save(file, tmp_path / "checkpoint.pth")
    found = read_checkpoint(tmp_path / "checkpoint.pth")
    for name, value in state.items():
        for part in ("student", "teacher"):
            assert torch.equal(found.tensors[f"{part}.{name}"], value)
    moments = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(found.tensors["optimizer.state.0.exp_avg"], moments)
    assert torch.equal(found.tensors["dino_loss.center"], torch.ones(1, 5))
    assert len(found.tensors) == 4 + 4 + 3 * 4 + 2
    expected: dict[str, object] = {
        "epoch": 300,
        "args.arch": "swin_tiny",
        "args.scale": (0.05, 0.4),
        "args.lr": 5e-4,
    }
    expected |= {"args.cfg": None, "args.n": (), "fp16_scaler.scale": 65536.0}
    expected |= {"optimizer.param_groups.0.params": (0, 1, 2, 3)}
    assert expected.items() <= found.values.items()
    assert found.metadata == {} and found.config == {}


def test_a_mae_lite_file_is_read(save: Callable[[object, Path], None], tmp_path: Path) -> None:
    network, optimizer = trained()
    file = {
        "start_epoch": 400,
        "model": {f"module.model.{name}": value for name, value in network.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scheduler": {"gammas": collections.defaultdict(list, {"a": [1, 2]})},
        "best_top1": np.float64(76.5),
        "best_top5": np.float32(93.25),
        "best_top1_epoch": np.int64(299),
        "resumed": np.bool_(True),
        "order": np.arange(6, dtype=">i4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "device": torch.device("cpu"),
    }
    save(file, tmp_path / "last.pth.tar")
    found = read_checkpoint(tmp_path / "last.pth.tar")
    assert torch.equal(found.tensors["model.model.0.weight"], network.state_dict()["0.weight"])
    assert torch.equal(found.tensors["order"], torch.arange(6, dtype=torch.int32).reshape(2, 3))
    assert torch.equal(found.tensors["columns"], torch.arange(6.0).reshape(2, 3))
    expected: dict[str, object] = {
        "start_epoch": 400,
        "best_top1": 76.5,
        "best_top5": 93.25,
        "best_top1_epoch": 299,
    }
    expected |= {"resumed": True, "scheduler.gammas.a": (1, 2), "device": "cpu"}
    assert expected.items() <= found.values.items()
    assert type(found.values["best_top1"]) is float and type(found.values["resumed"]) is bool


def test_numpy_one_and_two_are_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "best": np.float64(0.5)}, tmp_path / "two")
    names = (b"numpy._core.mult", b"numpy.core.mult")
    one = repacked(tmp_path / "two", tmp_path / "one", replace=names)
    assert read_checkpoint(one).values == read_checkpoint(tmp_path / "two").values == {"best": 0.5}


def test_an_object_of_numpy_stays_closed(
    save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    objects = np.array([{}, "a"], dtype=object)
    tree = {"w": torch.ones(1), "odd": objects, "word": np.str_("a"), (1, 2): torch.ones(2)}
    save(tree, tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth")
    assert torch.equal(found.tensors["w"], torch.ones(1)) and set(found.tensors) == {"w", "odd"}
    assert found.values == {}  # and no key is made up for what has no name
    with pytest.raises(ValueError, match="'odd' is an array of objects"):
        found.tensors["odd"]


# Kinds of files


def write_kinds(folder: Path) -> dict[str, Path]:
    """Write the same weights in each way; return where."""
    places = {name: folder / f"{name}.any" for name in ("zip", "legacy", "safetensors", "numpy")}
    torch.save(WEIGHTS, places["zip"])
    save_legacy(WEIGHTS, places["legacy"])
    save_file(WEIGHTS, places["safetensors"])
    with places["numpy"].open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            **{n: value.numpy().astype(">f4") for n, value in WEIGHTS.items()},
        )
    for name in ("timm", "bin", "shards", "bins"):
        places[name] = folder / name
        places[name].mkdir()
    save_file(WEIGHTS, places["timm"] / "model.safetensors")
    torch.save(WEIGHTS, places["bin"] / "pytorch_model.bin")
    write_sharded(places["shards"], "model.safetensors", save_file)
    write_sharded(places["bins"], "pytorch_model.bin", torch.save)
    return places


def test_every_kind_holds_the_same_weights(tmp_path: Path) -> None:
    for path in write_kinds(tmp_path).values():
        same(read_checkpoint(path), WEIGHTS)
    same(read_checkpoint(tmp_path / "bins" / "pytorch_model.bin.index.json"), WEIGHTS)


def test_what_lies_beside_the_weights_is_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = read_checkpoint(path)
        assert found.config == {"model_type": "swin"} and found.metadata == {"format": "pt"}
    save_file(WEIGHTS, tmp_path / "mine.safetensors")
    assert read_checkpoint(tmp_path / "mine.safetensors").config == {}  # it may be another's
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json' is damaged .* no JSON"):
        read_checkpoint(tmp_path)


def test_weights_of_the_safer_kind_come_first(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    same(read_checkpoint(tmp_path), WEIGHTS)


# Tensors


def test_floats_become_float32_and_integers_stay(
    save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    values = torch.tensor([[1.5, -2.0, 3.0], [0.0, 4.0, 5.0]])
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    tree = {str(dtype): values.to(dtype) for dtype in dtypes}
    tree |= {str(dtype): values.abs().to(dtype) for dtype in whole}
    tree |= {"turned": values.t(), "part": values[1:, 1:], "tied": values, "none": values[:0]}
    tree |= {
        "parameter": nn.Parameter(values),
        "negative": torch.complex(values, values).conj().imag,
    }
    save(tree, tmp_path / "x")
    expected = {name: value.detach().resolve_neg() for name, value in tree.items()}
    expected |= {str(dtype): values for dtype in dtypes}
    found = read_checkpoint(tmp_path / "x")
    same(found, expected)
    for tensor in found.tensors.values():
        assert tensor.is_contiguous() and not tensor.requires_grad and type(tensor) is Tensor


ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "without data": lambda: torch.ones(3, device="meta"),
    "of type complex64": lambda: torch.ones(2, dtype=torch.complex64),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_tensors_are_refused_when_they_are_asked_for(
    what: str, save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    save({"odd": ODD[what](), "w": torch.ones(1)}, tmp_path / "x")
    found = read_checkpoint(tmp_path / "x")
    assert torch.equal(found.tensors["w"], torch.ones(1)) and "odd" in found.tensors
    with pytest.raises(ValueError, match=f"'odd' is {what}"):
        found.tensors["odd"]


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning")
def test_quantized_tensors_are_named(save: Callable[[object, Path], None], tmp_path: Path) -> None:
    save({"odd": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "x")
    with pytest.raises(ValueError, match="quantized"):
        read_checkpoint(tmp_path / "x").tensors["odd"]


def test_a_file_is_not_read_before_its_tensors_are(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4096), "moments": torch.ones(4096)}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    found = read_checkpoint(tmp_path / "x").tensors
    with (tmp_path / "x").open("r+b") as file:
        file.seek(data.index(struct.pack("<64f", *[1.0] * 64)))
        file.write(struct.pack("<f", 7.0))
    assert found["w"][0] == 7.0


def test_a_tensor_may_be_changed_and_its_file_stays(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "x")
    (tmp_path / "x").chmod(0o400)
    before = (tmp_path / "x").read_bytes()
    read_checkpoint(tmp_path / "x").tensors["proj.bias"].fill_(9.0)
    assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("without", [(), (".format_version", ".storage_alignment")])
def test_a_file_that_was_packed_anew_is_read(
    without: tuple[str, ...], compress: int, tmp_path: Path
) -> None:
    torch.save(WEIGHTS, tmp_path / "x")
    file = repacked(tmp_path / "x", tmp_path / "y", without=without, compress=compress)
    found = read_checkpoint(file)
    same(found, WEIGHTS)
    assert all(tensor.data_ptr() % 4 == 0 for tensor in found.tensors.values())


def test_a_file_of_another_byte_order_is_read(tmp_path: Path) -> None:
    swapped = {n: torch.from_numpy(value.numpy().byteswap()) for n, value in WEIGHTS.items()}
    torch.save(swapped, tmp_path / "x")
    file = repacked(tmp_path / "x", tmp_path / "y", "byteorder", (b"little", b"big"))
    same(read_checkpoint(file), WEIGHTS)


def test_what_is_not_finite_is_listed(tmp_path: Path) -> None:
    tree = {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2), "n": torch.ones(1).int()}
    torch.save({**tree, "c": torch.tensor([float("-inf")]).half()}, tmp_path / "x")
    assert non_finite(read_checkpoint(tmp_path / "x").tensors) == ("a", "c")


# Names


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("module.blocks.0.weight", "blocks.0.weight"),
        ("_orig_mod.module.x", "x"),
        ("model._forward_module._orig_mod.x", "model.x"),
        ("blocks.0._checkpoint_wrapped_module.mlp.fc1.bias", "blocks.0.mlp.fc1.bias"),
        ("teacher._fsdp_wrapped_module.head.module.x", "teacher.head.x"),
        ("modules.x_module.module_list", "modules.x_module.module_list"),
        ("module", "module"),
    ],
)
def test_wrappers_are_removed_from_names(name: str, bare: str) -> None:
    assert unwrap(name) == bare == unwrap(bare)


def test_one_name_is_one_tensor(tmp_path: Path) -> None:
    save_file({"module.x": torch.ones(2), "x": torch.ones(2)}, tmp_path / "same")
    same(read_checkpoint(tmp_path / "same"), {"x": torch.ones(2)})
    save_file({"module.x": torch.ones(2), "x": torch.zeros(2)}, tmp_path / "x")
    words = refusal(tmp_path / "x")
    assert "'module.x'" in words and "'x'" in words and "differ" in words
    torch.save({"a.b": torch.ones(2), "a": {"b": torch.ones(3)}}, tmp_path / "y")
    assert "differ" in refusal(tmp_path / "y")


@pytest.mark.parametrize("part", ["_flat_param", "flat_param_0", "_fsdp_wrapped_module.flat_param"])
def test_flat_parameters_are_refused(part: str, tmp_path: Path) -> None:
    save_file({f"model.{part}": torch.ones(2)}, tmp_path / "x")
    assert "FSDP" in refusal(tmp_path / "x")


# Folders


def test_folders_without_weights_are_named(tmp_path: Path) -> None:
    assert "it is empty" in refusal(tmp_path)
    for name in ("b.pth", "a.txt", "model.onnx"):
        (tmp_path / name).touch()
    assert "it holds 'a.txt', 'b.pth', 'model.onnx'" in refusal(tmp_path)
    (tmp_path / "__0_0.distcp").touch()
    assert "torch.distributed.checkpoint.format_utils dcp_to_torch" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"w": "../x.safetensors"}, "outside of its folder"),
        ({"w": "/tmp/x.safetensors"}, "outside of its folder"),
        ({"w": "a\\..\\x"}, "outside of its folder"),
        ({"w": ".."}, "outside of its folder"),
        ({"w": ""}, "outside of its folder"),
        ({"w": "part", "v": "b", "u": "c"}, "missing: 'b', 'c'"),
        ({"w": "part", "v": "part"}, "no shard has: 'v'"),
        ({"w": "model.safetensors.index.json"}, "an index of shards instead of one"),
        ({"w": 3}, "no index of shards"),
        (None, "no index of shards"),
    ],
)
def test_shards_lie_in_their_folder(places: object, expected: str, tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "part")
    save_file({"w": torch.ones(1)}, tmp_path.parent / "x.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=expected):
        read_checkpoint(tmp_path)


def test_shards_may_be_links(tmp_path: Path) -> None:
    """As they are in the cache of Hugging Face."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "folder").mkdir()
    write_sharded(tmp_path / "blobs", "model.safetensors", save_file)
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "folder" / file.name).symlink_to(file)
    same(read_checkpoint(tmp_path / "folder"), WEIGHTS)
