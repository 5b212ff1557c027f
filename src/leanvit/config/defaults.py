"""What follows from the images and the run where nobody says otherwise: options of `RunConfig.fit`.

Rules are pure functions of the configuration and of facts, one after another, so that what one
decides, and what was given, is what the next one builds on. A recipe's own values are those of
images as large as its network's nominal input, hold for larger ones, and for long runs over many of
them. docs/defaults.md has the reason of each rule and the measurement behind it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from leanvit.config.backbones import SwinConfig, ViTConfig
from leanvit.config.batch import Decisions
from leanvit.config.convert import leaves, replace_options, to_dict
from leanvit.config.facts import Facts
from leanvit.config.methods import DinoConfig
from leanvit.config.names import unknown_name
from leanvit.config.run import RunConfig

PATCHES = (16, 12, 8, 6, 4, 3, 2, 1)
"""Sides of a patch in pixels that are chosen from."""
LEAST: Mapping[str, int] = MappingProxyType({"swin": 14, "vit": 8})
"""Patches that an image is wide at least, by kind of network: four stages halve it three times."""
FINE = 4
"""Side of the smallest patches of a Swin in pixels (benchmarks/learning/choices.md)."""
WHOLE = [0.3, 1.0]
"""Share of a small image that a global crop covers."""
FEWEST = 256
"""Prototypes below which a recipe does not go, however few images there are."""
RENEWALS = 25
"""How many times a run makes its teacher anew at least: every 1 / (1 - momentum) steps."""
LOWEST = 0.97
"""Momentum below which no run, however short, was better: the teacher would be the student."""

Rule = Callable[[RunConfig, RunConfig, Facts], Decisions]
"""From the configuration as it was asked, as it is by now, and facts."""


def _patch(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    least = LEAST[config.backbone.kind]
    if facts.side // own.backbone.patch >= least:
        return {}
    smaller = [patch for patch in PATCHES if patch < own.backbone.patch]
    patch = next((patch for patch in smaller if facts.side // patch >= least), 1)
    across = facts.side // patch
    return {"backbone.patch": (patch, f"images of {facts.side} pixels are {across} patches wide")}


def _stages(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    """Leave out first stages rather than take patches below FINE, of twice the channels then."""
    backbone = config.backbone
    if not isinstance(backbone, SwinConfig) or not {*STAGES}.issubset(own.fit):
        return {}
    patch, dim, depths, heads = backbone.patch, backbone.dim, backbone.depths, backbone.heads
    while patch < FINE and len(depths) > 1:
        patch, dim, depths, heads = 2 * patch, 2 * dim, depths[1:], heads[1:]
    left = len(backbone.depths) - len(depths)
    if not left:
        return {}
    reason = (
        f"without the first {left} of {left + len(depths)} stages, for patches of {patch} pixels"
    )
    found = {"patch": patch, "dim": dim, "depths": [*depths], "heads": [*heads]}
    return {f"backbone.{name}": (value, reason) for name, value in found.items()}


def _image_size(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    patch = config.backbone.patch
    across = max(facts.side // patch, 1)
    reason = f"{across} patches of {patch} pixels, as wide as the images"
    return {"backbone.image_size": (across * patch, reason)}


def _crops(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    backbone = config.backbone
    region = backbone.patch
    if isinstance(backbone, SwinConfig):
        region *= 2 ** (len(backbone.depths) - 1)
    share = backbone.image_size / own.backbone.image_size
    if share == 1:  # the network was named, and its views with it
        return {}
    most = max(backbone.image_size // region, 1)
    reason = f"whole regions of {region} pixels, in proportion to images of {facts.side}"
    values, found = dict(leaves(to_dict(own))), Decisions()
    for name in CROPS:
        if name in values:
            given = values[name] if isinstance(values[name], list) else [values[name]]
            wide = [int(size * share / region + 0.5) for size in given]
            sizes = [min(max(regions, 1), most) * region for regions in wide]
            found[name] = (sizes if isinstance(values[name], list) else sizes[0], reason)
    return found


def _scale(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    """Cut global crops out of all of the image, not out of parts of a larger scene."""
    if not isinstance(own.method, DinoConfig) or own.method.views.global_scale[1] == 1:
        return {}
    return {"method.views.global_scale": (WHOLE, "small images show one thing, which fills them")}


def _window(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    """Take the largest window that views are made of without padding."""
    backbone, views = config.backbone, getattr(config.method, "views", None)
    size = getattr(views, "global_size", 0) or getattr(views, "size", 0)
    across = size // backbone.patch
    if not isinstance(backbone, SwinConfig) or across % backbone.window == 0:
        return {}
    fitting = [side for side in (4, 3, 2) if side <= backbone.window and across % side == 0]
    if not fitting:
        return {}
    return {"backbone.window": (fitting[0], f"views are {across} patches wide")}


def _temperature(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    """Keep the teacher as sharp as it begins, or as the peak that was given."""
    if not isinstance(own.method, DinoConfig):
        return {}
    temp = own.method.teacher_temp
    if TEMPERATURES[0] not in own.fit:
        return {} if temp.peak == temp.end else {TEMPERATURES[1]: (temp.peak, "as the peak")}
    if temp.start == temp.peak == temp.end:
        return {}
    reason = (
        "as at the start: small images, and on those of CIFAR-10 a teacher of 0.07 turned uniform"
    )
    return dict.fromkeys(TEMPERATURES, (temp.start, reason))


def _prototypes(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    """Leave no image a prototype of its own."""
    if not isinstance(own.method, DinoConfig) or own.method.head.prototypes <= facts.images:
        return {}
    count = 1 << (facts.images.bit_length() - 1)
    reason = f"a power of 2, no more than there are images, {facts.images}"
    if count < (least := min(FEWEST, own.method.head.prototypes)):
        count, reason = least, f"the fewest that are chosen, for {facts.images} images"
    if count == own.method.head.prototypes:
        return {}
    return {"method.head.prototypes": (count, reason)}


def _momentum(own: RunConfig, config: RunConfig, facts: Facts) -> Decisions:
    """Let the teacher of a short run keep up with it."""
    values, steps = dict(leaves(to_dict(own))), config.train.duration.amount
    pair = next((pair for pair in MOMENTA if {*pair}.issubset(own.fit)), None)
    if pair is None or (1 - values[pair[0]]) * steps >= RENEWALS:
        return {}
    momentum = round(1 - RENEWALS / max(steps, 1), 3)
    reason = f"a run of {steps:g} steps makes its teacher anew {RENEWALS} times"
    if momentum < LOWEST:
        momentum, reason = LOWEST, f"the lowest that is chosen, for a run of {steps:g} steps"
    if all(values[name] == momentum for name in pair):
        return {}
    return dict.fromkeys(pair, (momentum, reason))


TEMPERATURES = ("method.teacher_temp.peak", "method.teacher_temp.end")
STAGES = ("backbone.patch", "backbone.dim", "backbone.depths", "backbone.heads")
CROPS = ("method.views.global_size", "method.views.local_sizes", "method.views.size")
MOMENTA = (
    ("method.teacher_momentum.start", "method.teacher_momentum.peak"),
    ("method.momentum.start", "method.momentum.peak"),
)
SIZES: Mapping[Rule, tuple[str, ...]] = MappingProxyType(
    {
        _patch: ("backbone.patch",),
        _stages: STAGES,
        _image_size: ("backbone.image_size",),
        _crops: CROPS,
        _scale: ("method.views.global_scale",),
        _window: ("backbone.window",),
        _temperature: TEMPERATURES,
    }
)
"""Rules for images smaller than a recipe takes them, in order, and what each decides on."""
COUNTS: Mapping[Rule, tuple[str, ...]] = MappingProxyType(
    {_prototypes: ("method.head.prototypes",)}
)
"""Rules for few images."""
LENGTHS: Mapping[Rule, tuple[str, ...]] = MappingProxyType(
    {_momentum: tuple(name for pair in MOMENTA for name in pair)}
)
"""Rules for short runs, of which the steps are known."""


def follow(config: RunConfig, facts: Facts) -> Decisions:
    """Decide on every option of `fit` that follows from the images.

    Where nobody looked at the images (`Facts.side` 0), and where they are as large as the recipe
    takes them, its own sizes hold. Raises ValueError for an option that follows from nothing.
    """
    known = {
        name for rules in (SIZES, COUNTS, LENGTHS) for names in rules.values() for name in names
    }
    for name in config.fit:
        if name not in known:
            raise unknown_name("option in fit", name, known)
    small = 0 < facts.side < config.backbone.image_size
    sized = isinstance(config.backbone, SwinConfig | ViTConfig) and small
    return _decided({**(SIZES if sized else {}), **COUNTS}, config, facts)


def keep_pace(config: RunConfig, facts: Facts) -> Decisions:
    """Decide on every option of `fit` that follows from the steps of a run."""
    decided = _decided(LENGTHS, config, facts)
    return {**decided, "fit": ((), "decided")} if config.fit else {}


def _decided(rules: Mapping[Rule, tuple[str, ...]], config: RunConfig, facts: Facts) -> Decisions:
    own, decided = config, Decisions()
    for rule, names in rules.items():
        if not {*names}.isdisjoint(own.fit):
            found = {n: v for n, v in rule(own, config, facts).items() if n in own.fit}
            config = replace_options(config, {name: v for name, (v, _) in found.items()})
            decided |= found
    return decided
