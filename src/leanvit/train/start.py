"""What a run starts from: weights that exist, in the networks of its method; the rest is fresh."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from leanvit.config import RunConfig
from leanvit.config.backbones import TIMM
from leanvit.core.console import warn
from leanvit.methods.base import Method
from leanvit.train.checkpoint import CHECKPOINTS, newest_checkpoint
from leanvit.weights.layouts import layouts_of, parts_of
from leanvit.weights.loading import open_weights
from leanvit.weights.reading import non_finite, read_checkpoint
from leanvit.weights.report import Weights
from leanvit.weights.shapes import Shapes, head_config
from leanvit.weights.strangers import listed
from leanvit.weights.whole import from_official, strip

NETWORKS = ("student", "teacher")
"""What a method, and an official checkpoint, call the networks that hold a backbone each."""
CENTERS: Mapping[str, str] = {
    "dino_loss.center": "center.value",
    "dino_loss.center_grid": "region_center.value",
}
"""Official name of a center [1, K] -> ours [K]; both are moving means of the teacher's logits."""
OPTIONAL = ("center", "region_head", "region_center")
"""Parts that an older method need not have: they can start fresh beside a trained network."""
ALWAYS_FRESH = ("optimizer", "schedules")


@dataclass(frozen=True, slots=True)
class Start:
    """Where the first weights of a run come from."""

    init: str
    """What was named."""
    layout: str
    """Key of `LAYOUTS`, or `leanvit`."""
    place: str
    """What stood before the names of the network in the file."""
    taken: Sequence[str]
    """Parts that come from there."""
    fresh: Sequence[str]
    """Parts that begin anew."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What the file holds besides, and how many tensors."""
    step: int = -1
    """Step of the run that the weights are of; -1 where that is unknown."""
    apart: bool = False
    """Whether student and teacher come from networks of their own; else from the same one."""
    notes: Sequence[str] = ()
    """What was assumed of the file."""

    def __str__(self) -> str:
        what = ("student and teacher: " if self.apart else "") + ", ".join(self.taken)
        step = f" of its step {self.step}" if self.step >= 0 else ""
        place = f" under {self.place.rstrip('.')!r}" if self.place else ""
        layout = "" if self.layout == "leanvit" else f", layout {self.layout}{place}"
        left = ", ".join(f"{why} ({count} tensors)" for why, count in self.left_out.items())
        line = f"Starts from {self.init} ({what}{step}{layout}); fresh: {', '.join(self.fresh)}"
        line += f"; left out of it: {left}." if left else "."
        return "\n".join([line, *(f"Of {self.init}: {note}." for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def initial_weights(name: str) -> Weights:
    """Return the weights that a run can start from. Raises ValueError where a name has none."""
    weights = open_weights(name)
    if weights.state is not None:
        return weights
    such = "the folder of a run or a file"
    if name.startswith(TIMM):
        from leanvit.weights.timm_weights import trained_tags  # here, as timm loads slowly

        tags = trained_tags(name.removeprefix(TIMM))
        such = " or ".join([f"{name}.{tag}" for tag in tags[:3]] or [such])
    raise ValueError(f"{name!r} names no trained weights to start from (init): name {such}.")


def start_method(method: Method, config: RunConfig) -> Start | None:
    """Give a method the weights that its run starts from; say what they are. None for none.

    Raises ValueError if they do not fit, with the method unchanged.
    """
    if not config.init:
        return None
    return _whole(method, config) if config.init_from == "method" else _backbone(method, config)


def _backbone(method: Method, config: RunConfig) -> Start:
    """Give all networks the same backbone."""
    weights = initial_weights(config.init)
    assert weights.state is not None
    started: set[int] = set()
    for network in method.backbones():
        network.load_state_dict(weights.state)
        started |= {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    report = weights.report
    dropped = Counter(row.why for row in report.rows if row.fate == "dropped")
    whole = method.state_dict(keep_vars=True)
    fresh = dict.fromkeys(_part(name) for name, value in whole.items() if id(value) not in started)
    return Start(
        config.init,
        report.layout,
        report.place,
        taken=("backbone",),
        fresh=(*fresh, *ALWAYS_FRESH),
        left_out=dict(dropped),
        step=int(weights.facts.get("step", -1)),
        notes=tuple(report.notes),
    )


@dataclass(frozen=True, slots=True)
class _Saved:
    """A method as it was kept elsewhere, under the names of ours."""

    tensors: Mapping[str, Tensor]
    layout: str
    step: int = -1


def _whole(method: Method, config: RunConfig) -> Start:
    """Give student, teacher, heads and centers what each of them was elsewhere."""
    path = Path(config.init)
    saved = _of_run(path) if path.is_dir() else _official(path)
    expected = method.state_dict()
    if broken := non_finite(saved.tensors):
        raise ValueError(
            f"{config.init!r}: an infinity or NaN stands in {listed(broken)}, so its training went "
            f"wrong; take an earlier checkpoint."
        )
    theirs, ours = (dict.fromkeys(map(_place, names)) for names in (saved.tensors, expected))
    for place in ours:
        _require_fitting(place, saved.tensors, expected, config.init)
    method.load_state_dict(expected | {n: t for n, t in saved.tensors.items() if n in expected})
    return Start(
        config.init,
        saved.layout,
        "",
        taken=tuple(dict.fromkeys(map(_part, (p for p in ours if p in theirs)))),
        fresh=(*dict.fromkeys(map(_part, (p for p in ours if p not in theirs))), *ALWAYS_FRESH),
        left_out=dict(Counter(_part(n) for n in saved.tensors if _place(n) not in ours)),
        step=saved.step,
        apart=True,
    )


def _of_run(folder: Path) -> _Saved:
    """Return the method in the newest checkpoint of a run of ours."""
    checkpoint = newest_checkpoint(folder / CHECKPOINTS, warn)
    if checkpoint is None:
        raise _alone(folder)
    return _Saved(strip(checkpoint.tensors(), "method."), "leanvit", checkpoint.step)


def _official(path: Path) -> _Saved:
    """Return the method in a checkpoint of EsViT or DINO."""
    tensors = read_checkpoint(path).tensors if path.is_file() else {}
    names = list(tensors)
    if not all(any(name.startswith(f"{network}.") for name in names) for network in NETWORKS):
        raise _alone(path)
    found = {ours: tensors[name].flatten() for name, ours in CENTERS.items() if name in tensors}
    for network in NETWORKS:
        inside = [name for name in names if name.startswith(f"{network}.")]
        state = from_official({n.removeprefix(f"{network}."): tensors[n] for n in inside})
        found |= {f"{network}.{name}": value for name, value in state.items()}
    return _Saved(found, layouts_of(parts_of(names)[0], names)[0])


def _alone(path: Path) -> ValueError:
    return ValueError(
        f"{str(path)!r} holds no student and teacher with heads, which init_from method takes: "
        f"name the folder of a run that saved a checkpoint, or a checkpoint of EsViT or DINO; or "
        f"start from a backbone alone: --init-from backbone."
    )


def _require_fitting(
    place: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], init: str
) -> None:
    """Raise ValueError if a part is there and of other sizes, or not there and indispensable."""
    theirs, ours = (
        {name: tuple(value.shape) for name, value in tensors.items() if _place(name) == place}
        for tensors in (found, expected)
    )
    if theirs == ours or (not theirs and _part(place) in OPTIONAL):
        return
    backbone = "or start from its backbone alone: --init-from backbone"
    if not theirs:
        raise ValueError(
            f"{init!r} holds no {place}, which this method needs; name another, {backbone}."
        )
    differ = _other_sizes(strip(theirs, f"{place}."), strip(ours, f"{place}."))
    if differ:
        named = ", ".join(f"{name} {there} (run: {here})" for name, (there, here) in differ.items())
        words = " ".join(
            f"--method.head.{name.replace('_', '-')} {str(there).lower()}"
            for name, (there, _) in differ.items()
        )
        raise ValueError(
            f"The {place} in {init!r} has other sizes: {named}. Give the run the same: {words}; "
            f"{backbone}."
        )
    name = next(n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n))
    raise ValueError(
        f"The {place} in {init!r} is another: {name} is {theirs.get(name, 'missing')} there and "
        f"{ours.get(name, 'missing')} in the run; {backbone}."
    )


def _other_sizes(theirs: Shapes, ours: Shapes) -> dict[str, tuple[object, object]]:
    """Return in which options two heads differ; nothing if these are no heads."""
    if not ("last_layer.weight_v" in theirs and "last_layer.weight_v" in ours):
        return {}
    both = [asdict(head_config(shapes)) for shapes in (theirs, ours)]
    return {
        name: (both[0][name], both[1][name]) for name in both[0] if both[0][name] != both[1][name]
    }


def _place(name: str) -> str:
    """Return the part that a name of a method belongs to, its network included: student.head."""
    network, _, rest = name.partition(".")
    return f"{network}.{rest.partition('.')[0]}" if network in NETWORKS else network


def _part(name: str) -> str:
    """Return the same without the network: head, center."""
    return _place(name).rpartition(".")[2]
