"""Networks as graphs that other programs run: ONNX, and torch.export.

A graph takes images, already normalised, however many, and gives their features. It has standard
operators alone, says in its metadata how to feed it, and stays on disk only if it computes what the
network computes.

Letters: B images, S their side in pixels, h and w rows and columns of regions, D channels.
"""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leanvit.backbones.base import Backbone
from leanvit.config import to_dict
from leanvit.core.errors import RunError
from leanvit.core.files import Replacing, sync
from leanvit.core.packages import missing
from leanvit.weights.compare import TOLERANCE, difference, images_for

INPUT, OUTPUTS = "images", ("pooled", "grid")
"""Names of what goes into an ONNX graph, and of what comes out."""
METADATA = "leanvit.json"
"""The file within a .pt2 that says how to feed the graph."""
OPSET = 20
"""Of ONNX: the first that has both layer norm and GELU."""
BATCHES = (1, 2, 5)
"""Numbers of images for which a graph is compared with its network."""
LARGEST = 3 * 2**29
"""Bytes of weights that an ONNX file holds itself; a protobuf ends at 2 GiB."""


class Agreement(NamedTuple):
    """How far a graph is from its network: the largest difference over the largest value."""

    pooled: float
    grid: float


class Exportable(nn.Module):
    """A copy of a backbone as a graph needs it: fp32, on the CPU, in evaluation mode.

    image_size: S; by default the configuration's. Raises ValueError if the backbone cannot take it.
    """

    def __init__(self, backbone: Backbone, image_size: int | None = None) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).cpu().float().requires_grad_(False).eval()
        self.image_size = backbone.config.image_size if image_size is None else image_size
        self.backbone.require_size(self.image_size, self.image_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled [B, D] and grid [B, h, w, D] of normalised images [B, 3, S, S]."""
        features = self.backbone.features(images)
        return features.pooled, features.grid


def graph_metadata(network: Exportable, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what a graph says of itself: text as it is, everything else as JSON.

    That is `facts`, and the mean and deviation of the input, the side of its images, the width of
    the features, the pixels between regions, what wrote it and the backbone's configuration.
    """
    backbone = network.backbone
    described = {
        **facts,
        "mean": backbone.mean,
        "std": backbone.std,
        "image_size": network.image_size,
        "feature_dim": backbone.feature_dim,
        "stride": backbone.stride,
        "producer": f"leanvit {version('leanvit')}",
        "backbone": to_dict(backbone.config),
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in described.items()}


def export_onnx(
    backbone: Backbone, path: Path, facts: Mapping[str, Any], image_size: int | None = None
) -> Agreement:
    """Write a backbone as ONNX: `images` [B, 3, S, S] -> `pooled` [B, D], `grid` [B, h, w, D].

    B is free, S is `image_size` or the configuration's, numbers are fp32. The metadata are those of
    `graph_metadata`. More than 1.5 GiB of weights lie beside the file, in `path.data`. Returns how
    far ONNX Runtime is from the network. Raises ValueError if the extra `onnx` is not installed or
    the network has no such graph, RunError, and writes nothing, if it computes something else.
    """
    _require_onnx()
    network = Exportable(backbone, image_size)
    model = _onnx_model(network, graph_metadata(network, facts))
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    write = _write_onnx if size <= LARGEST else _write_onnx_and_data
    return write(model, path, network)


def export_program(
    backbone: Backbone, path: Path, facts: Mapping[str, Any], image_size: int | None = None
) -> Agreement:
    """Write a backbone as a program of torch.export: images -> (pooled, grid), as `export_onnx`.

    `torch.export.load` reads it, where leanvit is not installed, too. The metadata are one JSON
    object in its extra file `leanvit.json`. Returns how far the program, read again, is from the
    network. Raises ValueError if path does not end in .pt2 or the network has no such graph,
    RunError, and writes nothing, if it computes something else.
    """
    if path.suffix != ".pt2":
        raise ValueError(f"torch.export reads files whose names end in .pt2, not {path.name!r}.")
    network = Exportable(backbone, image_size)
    program = _traced(network)
    program.example_inputs = None  # images, which would be stored
    extra = {METADATA: json.dumps(graph_metadata(network, facts))}
    with Replacing(path) as beside:
        with beside.open("wb") as file, _quiet():
            torch.export.save(program, file, extra_files=extra)
        sync(beside)
        return verify_program(beside, network)


def verify_onnx(path: Path, network: Exportable) -> Agreement:
    """Return how far ONNX Runtime, on the CPU, is from a network on random images.

    Raises RunError if that is more than 1e-4 for any of 1, 2 and 5 images.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        found = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return [torch.from_numpy(each) for each in found]

    return _agreement(run, network)


def verify_program(path: Path, network: Exportable) -> Agreement:
    """Return how far a program of torch.export, read from its file, is from a network.

    Raises RunError if that is more than 1e-4 for any of 1, 2 and 5 images.
    """
    with path.open("rb") as file, _quiet():
        program: Callable[[Tensor], Sequence[Tensor]] = torch.export.load(file).module()
    return _agreement(program, network)


@torch.no_grad()
def _agreement(run: Callable[[Tensor], Sequence[Tensor]], network: Exportable) -> Agreement:
    """Compare what `run` makes of images with what the network does."""
    rows: list[Tensor] = []
    for batch in BATCHES:
        images = images_for(network.image_size, batch)
        pairs = list(zip(run(images), network(images), strict=True))
        for name, (given, right) in zip(OUTPUTS, pairs, strict=True):
            if given.shape != right.shape:
                raise RunError(
                    f"The exported graph gives {name} {list(given.shape)} of {batch} images; the "
                    f"network gives {list(right.shape)}."
                )
        rows.append(torch.tensor([difference(given, right) for given, right in pairs]))
    worst = torch.stack(rows).amax(0)  # not a number, if any is
    agreement = Agreement(*worst.tolist())
    if not (worst <= TOLERANCE).all():
        raise RunError(
            f"The exported graph is not the network: pooled features differ by "
            f"{agreement.pooled:.1e} of the largest, regions by {agreement.grid:.1e}; expected at "
            f"most {TOLERANCE:g}. Keep the weights as safetensors, and report what this network is."
        )
    return agreement


def _traced(network: Exportable) -> torch.export.ExportedProgram:
    """Return the graph of a network, for any number of images, without paths of this machine."""
    images = torch.zeros(2, 3, *[network.image_size] * 2)
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(network, (images,), dynamic_shapes=(batch,), strict=False)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        instead = "Keep its weights as safetensors, and run them with the code of the network."
        raise _refusal(network, "torch.export", error, instead) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _refusal(network: Exportable, by: str, error: BaseException, instead: str) -> ValueError:
    """Return what to raise where torch cannot do it; the first cause says why."""
    while error.__cause__ is not None:
        error = error.__cause__
    config = network.backbone.config
    name, reason = getattr(config, "name", config.kind), str(error).strip().splitlines() or ["?"]
    return ValueError(
        f"{by} of torch {torch.__version__} cannot write {name} for any number of images: "
        f"{reason[0].rstrip('.')}. {instead}"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch and its exporters warn each other of, in warnings and in logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ONNX


def _require_onnx() -> None:
    found = [why for name in ("onnx", "onnxscript", "onnxruntime") if (why := missing(name))]
    if found:
        why = " and ".join(found)
        raise ValueError(f"ONNX cannot be written: {why}: pip install 'leanvit[onnx]'.")


def _onnx_model(network: Exportable, metadata: Mapping[str, str]) -> Any:
    """Return a network as a model of onnx_ir."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    program = _traced(network)
    plain = {torch.ops.aten.scaled_dot_product_attention.default: _plain_attention}
    try:
        with torch.no_grad(), _quiet():
            program = program.run_decompositions(plain)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: "batch"},),
            )
    except torch.onnx.OnnxExporterError as error:
        instead = "A program of torch.export (.pt2) may do: it holds torch's own operators."
        raise _refusal(network, "torch.onnx", error, instead) from error
    assert exported is not None
    model = exported.model
    ClearMetadataAndDocStringPass()(model)  # modules and graphs of torch, for every node
    model.metadata_props.update(metadata)
    model.producer_name, model.producer_version = metadata["producer"].split()
    return model


def _plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Write out attention over other than four dimensions, as windows of timm's Hiera and NesT.

    torch.onnx translates it over four; what else it has is left to torch.
    """
    masked = attn_mask is not None and not attn_mask.is_floating_point()
    if q.ndim == 4 or dropout_p or is_causal or enable_gqa or masked:
        return NotImplemented
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (logits if attn_mask is None else logits + attn_mask).softmax(-1) @ v


def _write_onnx(model: Any, path: Path, network: Exportable) -> Agreement:
    import onnx_ir

    with Replacing(path) as beside:
        onnx_ir.save(model, beside)
        sync(beside)
        return verify_onnx(beside, network)


def _write_onnx_and_data(model: Any, path: Path, network: Exportable) -> Agreement:
    """Write the weights beside the graph, which names their file."""
    import onnx
    import onnx_ir

    data = path.with_name(f"{path.name}.data")
    with Replacing(data) as data_beside, Replacing(path) as beside:
        onnx_ir.save(model, beside, external_data=data_beside.name)
        found = verify_onnx(beside, network)
        graph = onnx.load(beside, load_external_data=False)
        for entry in (e for tensor in graph.graph.initializer for e in tensor.external_data):
            if entry.key == "location":
                entry.value = data.name
        onnx.save(graph, beside)
        sync(data_beside)
        sync(beside)
    return found
