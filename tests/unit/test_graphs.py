"""Networks as graphs: ONNX, and torch.export."""

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import leanvit
from leanvit.backbones.base import Backbone, Tokens
from leanvit.backbones.vit import ViT
from leanvit.config import BackboneConfig, from_dict
from leanvit.core.errors import RunError
from leanvit.weights import graphs
from leanvit.weights.graphs import Agreement, Exportable, export_onnx, export_program
from tests.tiny import CVT, FAMILIES, SWIN, SWIN_SKIP, VIL, VIT, VIT_FULL, build, noise

pytestmark = pytest.mark.usefixtures("one_thread")

FACTS = {"method": "esvit", "seed": 3}
SIDE = 28
"""Not that of the configurations: maps need padding, tables and positions another size."""

ONE = replace(VIT, depth=1)
SHORT: Mapping[str, BackboneConfig] = {
    "cvt": replace(CVT, depths=(1, 1)),
    "swin": replace(SWIN, depths=(2, 1)),
    "timm": FAMILIES["timm"],
    "timm_convolutions": FAMILIES["timm_convolutions"],
    "vil": replace(VIL, depths=(1, 1, 1)),
    "vit_full": replace(VIT_FULL, depth=1),
}
"""Every kind of block once: torch takes as long for a second one. ONE is the plain ViT."""

Export = Callable[..., Agreement]
EXPORTS: dict[str, Export] = {"x.onnx": export_onnx, "x.pt2": export_program}


def runtime(path: Path, images: Tensor) -> list[Tensor]:
    """Return what ONNX Runtime makes of images."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["pooled", "grid"], {"images": images.numpy()})
    return [torch.from_numpy(np.asarray(each)) for each in found]


def features(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return what the network makes of them."""
    with torch.no_grad():
        found = backbone.eval().features(images)
    return [found.pooled, found.grid]


def check_metadata(said: dict[str, str], backbone: Backbone, side: int) -> None:
    """Compare what a graph says of itself with the network."""
    assert said["method"] == "esvit" and said["seed"] == "3"
    assert said["producer"].startswith("leanvit ")
    assert json.loads(said["mean"]) == list(backbone.mean)
    assert json.loads(said["std"]) == list(backbone.std)
    numbers = [int(said[name]) for name in ("image_size", "feature_dim", "stride")]
    assert numbers == [side, backbone.feature_dim, backbone.stride]
    assert from_dict(BackboneConfig, json.loads(said["backbone"]), "backbone") == backbone.config


@pytest.mark.parametrize("name", EXPORTS)
def test_a_graph_is_no_weights(name: str, tmp_path: Path) -> None:
    EXPORTS[name](build(ONE), tmp_path / name, FACTS)
    with pytest.raises(ValueError, match=r"(ONNX|torch\.export).*; a graph holds no named weights"):
        leanvit.load_backbone(tmp_path / name)


@pytest.mark.parametrize("name", SHORT)
def test_onnx_runtime_computes_the_network(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """For a number of images that nobody tried, by operators that everybody has.

    The tests below take what is not here, and test_families.py the graphs of all.
    """
    backbone, path = build(SHORT[name]).train(), tmp_path / "x.onnx"
    backbone.mean = (0.1, 0.2, 0.3)
    agreement = export_onnx(backbone, path, FACTS, SIDE)
    assert backbone.training and max(agreement) < 1e-5
    images = noise(3, 3, SIDE, SIDE)
    torch.testing.assert_close(
        runtime(path, images), features(backbone, images), rtol=1e-4, atol=1e-4
    )
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", graphs.OPSET)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    check_metadata({p.key: p.value for p in model.metadata_props}, backbone, SIDE)
    (given,), outputs = model.graph.input, model.graph.output
    assert [given.name, *(out.name for out in outputs)] == ["images", "pooled", "grid"]
    for value in (given, *outputs):
        first, *others = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch" and all(d.dim_value for d in others)
    assert str(Path(leanvit.__file__).parent).encode() not in path.read_bytes()
    assert capfd.readouterr() == ("", "")


ALONE = """
import sys
from pathlib import Path
sys.modules["leanvit"] = sys.modules["timm"] = None  # importing them fails
import torch
for path in Path(sys.argv[1]).glob("*.pt2"):
    extra = {"leanvit.json": ""}
    program = torch.export.load(path, extra_files=extra)
    kinds = {n.target.namespace for n in program.graph.nodes if hasattr(n.target, "namespace")}
    found = [program.module()(images) for images in torch.load(path.with_suffix(".images"))]
    torch.save([extra["leanvit.json"], kinds, found], path.with_suffix(".found"))
"""


def test_programs_run_without_leanvit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The two whose attention is our own kernels; test_families.py compares the graphs of all."""
    skip = replace(SWIN_SKIP, depths=(2, 1))
    counts, networks = (1, 3), {"swin_skip": build(skip), "vil": build(SHORT["vil"])}
    for name, backbone in networks.items():
        side = backbone.config.image_size
        assert max(export_program(backbone, tmp_path / f"{name}.pt2", FACTS)) < 1e-5
        images = [noise(count, 3, side, side) for count in counts]
        torch.save(images, tmp_path / f"{name}.images")
    assert capfd.readouterr() == ("", "")
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    here = str(Path(leanvit.__file__).parent).encode()
    for name, backbone in networks.items():
        said, kinds, found = torch.load(tmp_path / f"{name}.found")
        assert kinds == {"aten"}
        for images, given in zip(torch.load(tmp_path / f"{name}.images"), found, strict=True):
            torch.testing.assert_close(list(given), features(backbone, images))
        check_metadata(json.loads(said), backbone, backbone.config.image_size)
        assert here not in (tmp_path / f"{name}.pt2").read_bytes()


@pytest.mark.parametrize(("name", "weight"), [("x.onnx", 0.01), ("x.pt2", float("nan"))])
def test_another_network_is_not_kept(
    name: str, weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = graphs._traced

    def wrong(network: Exportable) -> torch.export.ExportedProgram:
        other = Exportable(network.backbone, network.image_size)
        other.backbone.get_parameter("norm.weight").data[0] += weight
        return trace(other)

    monkeypatch.setattr(graphs, "_traced", wrong)
    (tmp_path / name).write_text("an older one")
    with pytest.raises(RunError, match=r"not the network: pooled features differ by (nan|.*e-0)"):
        EXPORTS[name](build(ONE), tmp_path / name, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "an older one"


def test_large_weights_lie_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, of a network whose numbers are narrower."""
    monkeypatch.setattr(graphs, "LARGEST", 0)
    path, backbone = tmp_path / "folder" / "x.onnx", build(ONE).bfloat16()
    path.parent.mkdir()
    assert max(export_onnx(backbone, path, FACTS)) < 1e-5
    assert backbone.norm.weight.dtype == torch.bfloat16
    assert {file.name for file in path.parent.iterdir()} == {"x.onnx", "x.onnx.data"}
    moved = path.parent.rename(tmp_path / "elsewhere") / path.name
    images = noise(3, 3, 32, 32)
    found, right = runtime(moved, images), features(backbone.float(), images)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    said = onnx.load(moved, load_external_data=False).metadata_props
    check_metadata({each.key: each.value for each in said}, backbone, 32)


def test_programs_are_fp32(tmp_path: Path) -> None:
    """Of the numbers that a narrow network has."""
    narrow, images = build(ONE).bfloat16(), noise(2, 3, 32, 32)
    assert max(export_program(narrow, tmp_path / "x.pt2", {})) < 1e-5
    found = list(torch.export.load(tmp_path / "x.pt2").module()(images))
    torch.testing.assert_close(found, features(narrow.float(), images), rtol=1e-4, atol=1e-4)


class Chatty(ViT):
    """A network that warns while it is traced, as many do."""

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the mean of the patches."""
        if torch.compiler.is_compiling():
            warnings.warn("tracing", stacklevel=1)
            logging.getLogger("a.library").warning("tracing")
        return super().pool(tokens)


def test_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    export_program(Chatty(ONE), tmp_path / "x.pt2", {})
    assert capfd.readouterr() == ("", "") and not caplog.records
    logging.getLogger("a.library").warning("later")
    assert [record.message for record in caplog.records] == ["later"]


class Counting(ViT):
    """A network whose features depend on how many images there are, as a number of Python."""

    def pool(self, tokens: Tokens) -> Tensor:
        """Return the mean of the patches, times the number of images."""
        return tokens.grid.mean((1, 2)) * int(tokens.grid.shape[0])


def test_mistakes_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, export in EXPORTS.items():
        with pytest.raises(
            ValueError, match=r"cannot write vit for any number of images: .*\. Keep"
        ):
            export(Counting(ONE), tmp_path / name, {})
        with pytest.raises(ValueError, match=r"\(2, 2\) pixels is smaller than one patch"):
            export(build(ONE), tmp_path / name, {}, 2)
    with pytest.raises(ValueError, match=r"names end in \.pt2, not 'x\.bin'"):
        export_program(build(ONE), tmp_path / "x.bin", {})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"onnxscript is not installed: pip .* 'leanvit\[onnx\]'"):
        export_onnx(build(ONE), tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


class Windowed(nn.Module):
    """A norm, then attention of tokens to themselves, as if each were a window."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        rows: Tensor = self.norm(x)[:, None, None, None]
        return functional.scaled_dot_product_attention(rows, rows, rows)[:, 0, 0, 0]


def test_attention_over_windows_of_five_dimensions(tmp_path: Path) -> None:
    """As timm's Hiera and NesT have it; torch.onnx knows four."""
    network = build(ONE)
    network.norm = Windowed(network.norm)
    assert max(export_onnx(network, tmp_path / "x.onnx", {})) < 1e-5


class Strange(nn.Module):
    """A function that ONNX has no operators for."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return torch.special.bessel_j0(self.norm(x))


def test_what_torch_cannot_write_as_onnx_is_said(tmp_path: Path) -> None:
    network = build(ONE)
    network.norm = Strange(network.norm)
    with pytest.raises(ValueError, match=r"torch\.onnx .* vit .*bessel_j0.* A program of"):
        export_onnx(network, tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())
    assert max(export_program(network, tmp_path / "x.pt2", {})) < 1e-5
