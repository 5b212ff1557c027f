"""Pre-train a small Swin with EsViT on a folder, or on shapes drawn here: `demo.py [FOLDER]`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import leanvit

OPTIONS = {
    "backbone.image_size": 64,
    "backbone.window": 4,
    "backbone.dim": 24,
    "backbone.depths": (2, 2, 2),
    "backbone.heads": (1, 2, 4),
    "method.head.prototypes": 1024,
    "method.head.hidden": 256,
    "method.head.bottleneck": 64,
    "method.views.global_size": 64,
    "method.views.local_sizes": (32,),
    "method.views.local_counts": (4,),
    "train.batch": 32,
    "train.duration": "100st",
    "optim.lr_rule": "none",
}


def draw_shapes(folder: Path, count: int = 256) -> Path:
    """Write pictures of ellipses and boxes on gradients."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        corners = draw.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        image = Image.fromarray(corners).resize((96, 96), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for _ in range(int(draw.integers(2, 6))):
            x, y, w, h = (int(value) for value in draw.integers(4, 60, 4))
            color = tuple(int(value) for value in draw.integers(0, 256, 3))
            shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
            shape((x, y, x + w, y + h), fill=color)
        image.save(folder / f"{number:03d}.png")
    return folder


def main() -> None:
    """Draw if no folder was named, train, and say where things are."""
    named = [word for word in sys.argv[1:] if word]
    data = named[0] if named else draw_shapes(Path("runs/demo-images"))
    out = Path("runs/demo")
    try:
        file = leanvit.pretrain(
            "esvit", data=str(data), out=out, options=OPTIONS, overwrite=out.exists()
        )
    except ValueError as error:
        sys.exit(f"demo: {error}")
    print(
        f"The backbone is in {file}, its curves in {out / 'tensorboard'}. The losses compare a "
        f"student with a teacher that moves too, so they need not fall; at log(1024) = 6.93 they "
        f"would say nothing.\n"
        f"Use it in Python: leanvit.load_backbone({str(out)!r}).features(images)"
    )


if __name__ == "__main__":
    main()
