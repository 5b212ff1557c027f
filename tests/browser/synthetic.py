"""A small report that is made up from a seed, in the form that the page expects.

Three networks: one that finds regions again, one that half does, and one that was never trained.
"""

import base64
import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from leanvit.data.sample import load_photograph, stereo_pair

Floats = NDArray[np.float64]
Report = dict[str, Any]

HOSTILE = "<img src=x onerror=window.pwned=1>&amp;.png"
"""A name that does harm where text is taken for markup."""
LAYERS: tuple[tuple[str, ...], ...] = (
    ("stage 3", "stage 4"),
    ("block 2", "block 4"),
    ("block 2", "block 4"),
)
FINE, COARSE = (10, 12), (5, 6)
"""Grids (h, w); stage 4 of the first network has half the regions a side."""
QUALITY = ((0.8, 1.0), (0.35, 0.6), (0.0, 0.0))
"""How well each layer of each network knows places, from 0 to 1."""
BLOCKS, HEADS = 4, 3
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg",
               "retina.jpg", "coins.png", "ihc.png")  # fmt: skip
SHIFT = 70
"""Pixels between the crops of the second pair."""


def make() -> Report:
    """Return the whole report."""
    pairs, truths = _pairs()
    return {
        "title": "Region matching on photographs",
        "made": "2026-11-22",
        "leanvit": "0.1.0",
        "data": "tiles of the photographs in scikit-image",
        "images": 960,
        "notes": [
            "All figures of this page are made up; they serve to test it.",
            f"One image could not be read and was left out: {HOSTILE}",
        ],
        "models": _models(),
        "curves": _curves(),
        "results": {
            "columns": ["model", "20-NN", "linear", "1 % of labels", "parameters (M)"],
            "rows": [
                ["EsViT, region matching", 78.43, 84.125, 61.0, 5.5],
                ["MAE", 52.9, 71.3, None, 5.7],
                ["random weights", 31.25, 38.0, 22.6, 5.7],
            ],
        },
        "pictures": [
            {"model": 0, "title": "Views", "text": "Two large views and four small ones of each "
             "image, as the network saw them in its first step.", "src": _strip()},
        ],
        "gallery": [
            {"name": HOSTILE if i == 1 else f"sample/val/{name}", "class": None if i == 1
             else name.split(".")[0], "src": _url(_square(name, 128))}
            for i, name in enumerate(PHOTOGRAPHS[:6])
        ],
        "pca": [_pca(model) for model in range(3)],
        "attention": _statistics(),
        "cka": [_cka(0, 1), _cka(0, 2), _cka(1, 1)],
        "rank": _rank(),
        "retrieval": _retrieval(),
        "explorer": {
            "pairs": pairs,
            "matches": [
                _matches(model, layer, pair, truths[pair])
                for pair in range(2)
                for model in range(3)
                for layer in range(2)
            ],
            "attention": [
                _attention(model, block, pair)
                for model in (1, 2)
                for block in range(0, BLOCKS, 2)
                for pair in range(2)
            ],
        },
    }  # fmt: skip


def hostile(part: Any) -> Any:
    """Return a report in which every text that may come from a file or a person is hostile."""
    if isinstance(part, dict):
        kept = ("src", "left", "right", "similarity", "values", "key", "made", "leanvit")
        return {name: value if name in kept else hostile(value) for name, value in part.items()}
    if isinstance(part, list):
        return [hostile(one) for one in part]
    return f"{part} </script><script>window.pwned=1</script>{HOSTILE} %{{x}}" if isinstance(
        part, str
    ) else part  # fmt: skip


def bare() -> Report:
    """Return a report of which all that may be missing is missing."""
    report = make()
    for name in ("notes", "curves", "pictures", "gallery", "pca", "cka", "rank"):
        report[name] = []
    for name in ("results", "attention", "retrieval"):
        report[name] = None
    report["explorer"]["attention"] = []
    for one in report["explorer"]["matches"]:
        one["truth"] = None
    return report


def _draws(*key: int) -> np.random.Generator:
    return np.random.default_rng((7, *key))


def _url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _bytes(values: Floats) -> str:
    return base64.b64encode(values.round().clip(0, 255).astype(np.uint8).tobytes()).decode()


@lru_cache
def _square(name: str, side: int) -> Image.Image:
    pixels = Image.fromarray(load_photograph(name))
    small = min(pixels.size)
    left, top = (pixels.width - small) // 2, (pixels.height - small) // 2
    return pixels.crop((left, top, left + small, top + small)).resize((side, side))


def _strip() -> str:
    sheet = Image.new("RGB", (1200, 200))
    for i in range(6):
        sheet.paste(_square(PHOTOGRAPHS[i], 196), (200 * i + 2, 2))
    return _url(sheet)


def _centers(grid: tuple[int, int]) -> Floats:
    """Return the middle [T, 2] of each region as (y, x) from 0 to 1."""
    h, w = grid
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    return np.stack([y.ravel(), x.ravel()], 1)


def _pairs() -> tuple[list[Report], list[Floats | None]]:
    """Return the pictures, and by how much of the width things move to the left, where known."""
    left, right, disparity = stereo_pair()
    size = (480, 400)
    stereo = {
        "name": "motorcycle, two cameras",
        "left": _url(Image.fromarray(left).resize(size)),
        "right": _url(Image.fromarray(right).resize(size)),
        "known": True,
    }
    photograph = Image.fromarray(load_photograph("chelsea.png")).crop((0, 0, 450, 320))
    crops = [photograph.crop((x, 0, x + 380, 316)).resize(size) for x in (0, SHIFT)]
    shifted = {
        "name": f"two crops of {HOSTILE}",
        "left": _url(crops[0]),
        "right": _url(crops[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "known": False,
    }
    small = np.asarray(disparity, dtype=np.float64) / disparity.shape[1]
    return [stereo, shifted], [small, None]


def _targets(grid: tuple[int, int], disparity: Floats | None) -> Floats:
    """Return where the middle [T, 2] of each left region lies on the right; NaN if not known."""
    points = _centers(grid)
    if disparity is None:
        return np.stack([points[:, 0], 1 - (points[:, 1] - SHIFT / 380)], 1)
    h, w = disparity.shape
    moved = points[:, 1] - disparity[(points[:, 0] * h).astype(int), (points[:, 1] * w).astype(int)]
    return np.stack([points[:, 0], np.where(np.isfinite(moved) & (moved >= 0), moved, np.nan)], 1)


def _matches(model: int, layer: int, pair: int, disparity: Floats | None) -> Report:
    grid = COARSE if (model, layer) == (0, 1) else FINE
    h, w = grid
    targets = _targets(grid, disparity)
    draws = _draws(1, model, layer, pair)
    quality = QUALITY[model][layer]
    there = np.where(np.isfinite(targets), targets, draws.random(targets.shape))
    apart = ((there[:, None] - _centers(grid)[None]) ** 2).sum(2)
    noise = draws.normal(size=(h * w, h * w)) * (0.04 + 0.5 * (1 - quality) if quality else 0.006)
    drift = draws.random(h * w)[None] * (1 - quality)
    cosine = quality * np.exp(-apart / 0.03) + 0.25 * drift + noise
    if not quality:
        cosine = 0.95 + 0.04 * drift + noise
    low, high = float(cosine.min()), float(cosine.max())
    levels = ((cosine - low) / (high - low) * 255).round()
    match, back = levels.argmax(1), levels.argmax(0)
    known = np.isfinite(targets).all(1)
    cell = np.nan_to_num(targets * [h, w], nan=-1).astype(int)
    truth = np.where(known, cell[:, 0].clip(0, h - 1) * w + cell[:, 1].clip(0, w - 1), -1)
    return {
        "model": model,
        "layer": LAYERS[model][layer],
        "pair": pair,
        "grid": [h, w],
        "similarity": _bytes(levels),
        "range": [low, high],
        "match": match.tolist(),
        "cycle": (back[match] == np.arange(h * w)).astype(int).tolist(),
        "truth": None if disparity is None else truth.tolist(),
    }


def _attention(model: int, block: int, pair: int) -> Report:
    points = _centers(FINE)
    apart = ((points[:, None] - points[None]) ** 2).sum(2)
    draws = _draws(2, model, block, pair)
    rows = []
    for head in range(HEADS):
        width = 0.01 * (1 + head) * (1 + block) if model == 1 else 4.0
        value = np.exp(-apart / width) * (0.4 + draws.random(len(points))[None])
        rows.append(value / value.max(1, keepdims=True) * 255)
    return {
        "model": model,
        "block": block,
        "pair": pair,
        "grid": list(FINE),
        "heads": HEADS,
        "values": _bytes(np.stack(rows)),
    }


def _models() -> list[Report]:
    facts = [
        [
            ["method", "esvit"],
            ["backbone", "swin, 5.5 M parameters"],
            ["trained on", "sample, 100 epochs"],
            ["views", "2 of 96 px, 4 of 48 px"],
        ],
        [["method", "mae"], ["backbone", "vit, 5.7 M parameters"], ["trained on", "sample"]],
        [["method", "none"], ["backbone", "vit, 5.7 M parameters"], ["seed", "0"]],
    ]
    names = ("EsViT, region matching", "MAE", "random weights")
    return [
        {"name": name, "trained": i < 2, "facts": facts[i]}
        for i, name in enumerate(names)
    ]  # fmt: skip


def _curves() -> list[Report]:
    steps = list(range(0, 2000, 20))
    x = np.array(steps) / 2000

    def line(name: str, start: float, end: float, model: int) -> Report:
        y = end + (start - end) * np.exp(-4 * x) + 0.02 * _draws(3, model).normal(size=len(x))
        values: list[float | None] = [round(float(one), 4) for one in y]
        values[30] = None
        return {"name": name, "x": steps, "y": values}

    loss = {"title": "Loss", "unit": ""}
    rate = {"title": "Learning rate", "unit": "per step"}
    return [
        {
            "model": 0,
            "panels": [
                {**loss, "series": [line("view", 4, 2.2, 0), line("region", 3.6, 1.8, 1)]},
                {**rate, "series": [{"name": "rate", "x": steps, "y": (1e-3 * (1 - x)).tolist()}]},
            ],
        },
        {
            "model": 1,
            "panels": [
                {**loss, "series": [line("pixels", 1.0, 0.5, 2)]},
                {**rate, "series": [{"name": "rate", "x": steps, "y": (6e-4 * (1 - x)).tolist()}]},
            ],
        },
    ]


def _pca(model: int) -> Report:
    sources = []
    for i, name in enumerate(PHOTOGRAPHS[:6]):
        image = _square(name, 128).filter(ImageFilter.GaussianBlur(5)).resize((12, 12))
        noise = _draws(4, model, i).random((12, 12, 3)) * 255
        mixed = np.asarray(image) * (1.0, 0.7, 0.15)[model] + noise * (0.0, 0.3, 0.85)[model]
        sources.append(_url(Image.fromarray(np.roll(mixed, model, 2).astype(np.uint8))))
    shares = ([0.31, 0.14, 0.09], [0.22, 0.12, 0.08], [0.55, 0.2, 0.1])[model]
    return {"model": model, "explained": shares, "foreground": 0.4 + 0.1 * model, "src": sources}


def _statistics() -> Report:
    def head(model: int, block: int, number: int) -> list[float]:
        draw = _draws(5, model, block, number).random(3)
        depth = (block + 1) / BLOCKS
        return [
            float(20 + 30 * depth * (model == 1) + 25 * (model == 2) + 8 * draw[0]),
            float(2.5 + depth + 1.6 * (model == 2) + 0.4 * draw[1]),
            float(0.4 * (1 - depth) * (model == 1) + 0.1 * draw[2]),
        ]

    return {
        "measures": [
            {"key": "distance", "title": "Distance", "unit": "pixels"},
            {"key": "entropy", "title": "Entropy", "unit": "nats"},
            {"key": "nmi", "title": "NMI", "unit": ""},
        ],
        "models": [
            {
                "model": model,
                "blocks": [[head(model, b, n) for n in range(HEADS)] for b in range(BLOCKS)],
                "uniform": [{"distance": 51.0, "entropy": 4.79}] * BLOCKS,
            }
            for model in (1, 2)
        ],
    }


def _cka(left: int, right: int) -> Report:
    layers = [[f"block {i + 1}" for i in range(count)] for count in (6, 8, 8)]
    rows, columns = len(layers[left]), len(layers[right])
    y, x = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    noise = 0.05 * _draws(6, left, right).random((rows, columns))
    values = np.exp(-((y - x) ** 2) / 0.12) * (1 if left == right else 1 - 0.6 * y) + noise
    values = values if left != right else np.maximum(np.exp(-((y - x) ** 2) / 0.12), 0)
    return {
        "left": left,
        "right": right,
        "left_layers": layers[left],
        "right_layers": layers[right],
        "values": values.round(4).tolist(),
    }


def _rank() -> list[Report]:
    ranks = []
    for model, fall in enumerate((0.02, 0.035, 0.12)):
        values = np.exp(-fall * np.arange(128)).clip(1e-6)
        shares = values / values.sum()
        effective = float(np.exp(-(shares * np.log(shares)).sum()))
        figures = {"effective rank": effective, "directions for 90 %": float(
            (np.cumsum(shares) < 0.9).sum() + 1)}  # fmt: skip
        ranks.append({"model": model, "values": values.tolist(), "figures": figures})
    return ranks


def _retrieval() -> Report:
    pictures = [
        {
            "name": f"{name} {i}" if i % 5 else f"{HOSTILE} {i}",
            "class": name.split(".")[0] if i % 7 != 6 else None,
            "src": _url(_square(name, 64)),
        }
        for i, name in enumerate(PHOTOGRAPHS * 3)
    ]
    count = len(PHOTOGRAPHS)

    def near(model: int, query: int) -> list[list[float]]:
        same = [query + count, query + 2 * count]
        others = _draws(7, model, query).permutation(count)[:4].tolist()
        order = (same + others, [others[0], *same, *others[1:]], others + same)[model][:5]
        return [[index, round(0.95 - 0.08 * k, 3)] for k, index in enumerate(order)]

    queries = [1, 2, 3]
    return {
        "pictures": pictures,
        "queries": queries,
        "models": [
            {"model": model, "neighbors": [near(model, query) for query in queries]}
            for model in range(3)
        ],
    }
