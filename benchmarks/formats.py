"""How far features are from ours in every format that `leanvit convert` writes, at full size.

    python benchmarks/formats.py [MODEL ...]

MODEL is a run or a file of weights; without one, named networks with fresh weights are written.
Every cell is the largest difference of pooled and region features over the largest feature, first
at the size that the network was built for, then at a larger one where the format takes it; in
graphs of pooled, then of region features. `-` is a network that the format does not have, for a
reason that goes to stderr. Prints a table in Markdown; benchmarks/formats.md keeps it.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import leanvit
from leanvit.bench.machine import machine
from leanvit.core.files import save_tensors
from leanvit.weights.file import header

NETWORKS = (
    "swin_tiny",
    "swin_tiny_w14",
    "swin_nano",
    "vit_small",
    "vit_tiny_h12",
    "resnet50",
    "cvt_tiny",
    "vil_2262",
)
FORMATS = {
    "timm": "",
    "torchvision": "",
    "huggingface": "",
    "esvit": ".pth",
    "dino": ".pth",
    "onnx": ".onnx",
    "export": ".pt2",
}
"""Name -> how its file ends."""


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield what a row is called, and its weights."""
    for name in sys.argv[1:]:
        yield Path(name).name, Path(name)
    for name in NETWORKS if not sys.argv[1:] else ():
        backbone = leanvit.load_backbone(name)
        path = folder / f"{name}.safetensors"
        save_tensors(backbone.state_dict(), path, header(backbone, {}))
        yield name, path


def cell(model: Path, name: str, folder: Path) -> str:
    """Return the differences of one network in one format."""
    out = folder / f"{model.stem}-{name}{FORMATS[name]}"
    try:
        found = leanvit.convert(model, out=out, options={"to": name})
    except ValueError as error:
        print(error, file=sys.stderr)
        return "-"
    return ", ".join(f"{value:.0e}" for value in found.checked.differences.values())


def main() -> None:
    print(", ".join(map(str, machine("cpu").values())) + "\n")
    print(f"| network | {' | '.join(FORMATS)} |\n|---|{'---|' * len(FORMATS)}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, path in models(folder):
            cells = [cell(path, target, folder) for target in FORMATS]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
