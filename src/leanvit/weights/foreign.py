"""Checkpoints of other codes, read strictly: every tensor is used, or known not to be needed.

Letters: D channels.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from leanvit.backbones.vit import sincos_positions
from leanvit.config import BackboneConfig, TimmConfig, ViTConfig, named_backbone
from leanvit.config.names import unknown_name
from leanvit.config.weights import WeightsConfig
from leanvit.weights.beside import require_ours
from leanvit.weights.folds import fold_vit
from leanvit.weights.layouts import LAYOUTS, Part, layouts_of, parts_of, reason_to_drop
from leanvit.weights.names import NAMINGS, join_pieces
from leanvit.weights.reading import Contents
from leanvit.weights.report import Fate, Report, Row, Weights, require_numbers, skeleton
from leanvit.weights.shapes import cvt_config, swin_config, vil_config, vit_config
from leanvit.weights.strangers import listed
from leanvit.weights.unknown import no_network, of_timm, other_family, told
from leanvit.weights.untraced import Untraced, beside, image_size, timm_name

SHOWN = 3
"""Names that a message lists."""
UNCOUNTED = "num_batches_tracked"
"""What batch norm also keeps, and old files lack."""


def understand(checkpoint: Contents, asked: WeightsConfig) -> Weights:
    """Return the backbone in a checkpoint of another code.

    Raises ValueError if it holds none, or several of which none comes first, if a tensor is
    missing, unknown or of another shape, and if what leaves no trace is not known.
    """
    reader = _Reader(checkpoint, asked)
    config = reader.config()
    expected = skeleton(config)
    state = reader.fitted(config, expected)
    require_numbers(checkpoint.path, expected, reader.read, reader.rows)
    mean, std = reader.normalization()
    report = Report(reader.layout, reader.part.place, tuple(reader.rows), tuple(reader.notes))
    return Weights(config, state, mean, std, report)


class _Reader:
    """One file on its way to a state of ours."""

    def __init__(self, checkpoint: Contents, asked: WeightsConfig) -> None:
        self.checkpoint, self.asked = checkpoint, asked
        if asked.layout != "auto" and asked.layout not in LAYOUTS:
            raise unknown_name("layout", asked.layout, LAYOUTS)
        for section in ("model_args", "pretrained_cfg"):
            if not isinstance(found := beside(checkpoint, section), dict):
                raise self.refuse(f"{section} in its config.json is {found!r}; expected an object.")
        self.names = list(checkpoint.tensors)
        self.timm = timm_name(checkpoint, asked)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.part = self._part()
        self.naming = NAMINGS[self.part.naming]
        self.layout = self._layout()
        self.origin: dict[str, list[str]] = {}
        self.read: dict[str, Tensor] = {}
        self.state = self._renamed()
        self.untraced = Untraced(checkpoint, asked, self.layout, self.part, self.state, self.notes)

    def refuse(self, text: str) -> ValueError:
        """Return the error that says what is wrong with the file."""
        return ValueError(f"{str(self.checkpoint.path)!r}: {text}")

    # Which network of the file

    def _part(self) -> Part:
        found = self._parts()
        asked = self.asked.part
        if asked != "auto":
            chosen = [p for p in found if asked.rstrip(".") in (*p.place.split("."), p.place[:-1])]
            if not chosen:
                places = ", ".join(repr(p.place.rstrip(".")) for p in found) or "none"
                raise self.refuse(f"there is no network under {asked!r}; there are: {places}.")
            found = chosen
        if not found:
            raise self.refuse(self._nothing())
        best = [part for part in found if part.rank == found[0].rank]
        if len(best) > 1:
            places = ", ".join(repr(part.place.rstrip(".")) for part in best)
            raise self.refuse(f"it holds several networks: {places}; {told('--part NAME')}.")
        kind = NAMINGS[best[0].naming].kind
        inside = [n.removeprefix(best[0].place) for n in self.names]
        if kind in ("vit", "swin") and (other := other_family(inside, kind)):
            raise self.refuse(f"its names show {other}, which no network here has; {of_timm()}.")
        return best[0]

    def _nothing(self) -> str:
        """Return why no network was found, and what to do."""
        some, given = listed(self.names, SHOWN), self.asked.network
        if instead := no_network(self.names):
            return instead
        if given and self.timm:
            known = parts_of(self.names)
            seem = (
                f"; they look like those of {known[0].naming}: leave --network out" if known else ""
            )
            usual = listed(list(self._expected()), SHOWN)
            return f"the names of {given} ({usual}) are not there, but {some}{seem}."
        other = other_family(self.names)
        why = f"which show {other}" if other else f"none of {', '.join(LAYOUTS)}"
        todo = "give a file of that network" if given else of_timm()
        return f"leanvit knows no layout with the names {some}, {why}; {todo}."

    def _parts(self) -> list[Part]:
        network = self.timm
        known = parts_of(self.names)
        if not network or (known and not self.asked.network):
            return known
        expected = self._expected()
        first, names = expected[0], set(self.names)
        places = [n.removesuffix(first) for n in self.names if f".{n}".endswith(f".{first}")]
        # the names of a stem may recur in blocks, those of a whole network do not
        whole = [place for place in places if all(f"{place}{name}" in names for name in expected)]
        return [
            Part(place, "timm") for place in sorted(whole or places, key=len)[: len(whole) or 1]
        ]

    def _expected(self) -> list[str]:
        """Return the names of timm's network that was named."""
        rest = NAMINGS["timm"].rest
        names = skeleton(self._timm_config())
        return [name.removeprefix(rest) for name in names if not name.endswith(UNCOUNTED)]

    def _timm_config(self) -> TimmConfig:
        from leanvit.backbones.timm_adapter import usual_size  # here, as timm loads slowly

        name = self.timm or "resnet50"  # the one that is known by its tensors
        size = image_size(self.checkpoint, self.asked) or usual_size(name)
        return TimmConfig(name=name, image_size=size)

    def _layout(self) -> str:
        fitting = layouts_of(self.part, self.names) or ["timm"]
        asked = self.asked.layout
        if asked == "auto":
            return fitting[0]
        if asked not in fitting:
            raise self.refuse(
                f"the names under {self.part.place!r} are not of the layout {asked!r}; they fit "
                f"{' or '.join(fitting)}."
            )
        return asked

    # From their names to ours

    def _renamed(self) -> dict[str, Tensor]:
        place, state = self.part.place, dict[str, Tensor]()
        for name in self.names:
            if not name.startswith(place):
                self.rows.append(Row(name, "dropped", why="beside the network"))
                continue
            ours = self.naming.ours(name.removeprefix(place))
            value = self.checkpoint.tensors[name]
            if ours in state and not value.equal(state[ours]):
                other = self.origin[re.sub(r"#\d", "", ours)][-1]
                raise self.refuse(
                    f"{other!r} and {name!r} are the same parameter here, but differ; remove the "
                    f"one that is not of this network."
                )
            state[ours] = self.read[name] = value
            self.origin.setdefault(re.sub(r"#\d", "", ours), []).append(name)
        state = join_pieces(state)
        if self.naming.kind == "vit":
            try:
                notes, needless = fold_vit(state, self.origin)
            except ValueError as error:
                raise self.refuse(str(error)) from error
            self.notes += notes
            self.rows += [Row(name, "dropped", why=why) for name, why in needless.items()]
        return state

    # Configuration

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation: said, beside the file, or ImageNet's."""
        try:
            return self.untraced.normalization()
        except ValueError as error:
            raise self.refuse(str(error)) from error

    def config(self) -> BackboneConfig:
        """Return the configuration that the tensors, and what lies beside them, imply."""
        shapes = {name: tuple(value.shape) for name, value in self.state.items()}
        heads, kind = self.asked.heads, self.naming.kind
        size = image_size(self.checkpoint, self.asked)
        try:
            if "architecture" not in self.checkpoint.config:  # else timm itself says what it means
                require_ours(self.checkpoint.config, kind)
            if kind == "vit":
                found: BackboneConfig = self._vit(shapes)
            elif kind == "swin":
                eps = self.untraced.norm_eps(kind)
                found = swin_config(shapes, self.untraced.swin_size(shapes), eps)
            elif kind == "cvt":
                found = cvt_config(shapes, heads)
                found = replace(found, image_size=size or found.image_size)
            elif kind == "vil":
                found = vil_config(shapes, size or 224)
            else:
                found = self._timm_config()
                self._note_resnet()
        except ValueError as error:
            raise self.refuse(str(error)) from error
        self._require_asked(found)
        return found

    def _note_resnet(self) -> None:
        """Say that a ResNet is taken for the usual one, if nothing but its tensors shows it."""
        shown = self.timm or "model_type" in self.checkpoint.config
        if not shown and self.layout in ("timm", "huggingface"):
            self.notes.append("resnet50 is assumed: names and shapes fit variants too (--network)")

    def _vit(self, shapes: Mapping[str, tuple[int, ...]]) -> ViTConfig:
        untraced = self.untraced
        config = vit_config(shapes, heads=1, norm_eps=untraced.norm_eps("vit"))
        asked = self.asked.image_size
        if asked and asked // config.patch != config.image_size // config.patch:
            raise ValueError(
                f"its positions are those of images of {config.image_size} pixels, not {asked}; "
                f"leave image_size out: the network takes images of any size."
            )
        config = untraced.as_said(replace(config, heads=untraced.heads(config)))
        fixed = sincos_positions(config.image_size // config.patch, config.dim)
        same = torch.allclose(self.state["pos_embed"].float(), fixed, rtol=0, atol=1e-5)
        return replace(config, positions="sincos") if same else config

    def _require_asked(self, found: BackboneConfig) -> None:
        """Refuse a file that holds another network than the one that was asked for."""
        shown = getattr(found, "heads", ())
        shown = shown if isinstance(shown, tuple) else (shown,)
        if self.asked.heads and shown and self.asked.heads != shown:
            raise self.refuse(f"its heads are {shown}, not {self.asked.heads} (--heads).")
        if not self.asked.network:
            return
        asked = named_backbone(self.asked.network, "network")
        if asked.kind != found.kind:
            raise self.refuse(f"it holds a {found.kind}, not {self.asked.network}.")
        names = ("heads", "dim", "dims", "depth", "depths", "patch", "window", "registers")
        both = {name: (getattr(found, name, None), getattr(asked, name, None)) for name in names}
        differ = [
            f"{n} {there} (there: {here})" for n, (there, here) in both.items() if there != here
        ]
        if differ:
            raise self.refuse(f"it is not {self.asked.network}: it has {', '.join(differ)}.")

    # Strictly

    def fitted(self, config: BackboneConfig, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of exactly the network's parameters and buffers."""
        for name in expected:
            if name.endswith(UNCOUNTED) and name not in self.state:
                self.state[name] = torch.zeros((), dtype=torch.long)  # counts nothing that matters
        missing = [name for name in expected if name not in self.state]
        if missing:
            theirs = list(self.naming.theirs({n: torch.empty(3) for n in missing[:SHOWN]}))
            place = f" under {self.part.place.rstrip('.')!r}" if self.part.place else ""
            raise self.refuse(
                f"{len(missing)} of the network's {len(expected)} tensors "
                f"{'is' if len(missing) == 1 else 'are'} missing{place}: {listed(theirs, SHOWN)}."
            )
        wrong = [n for n, like in expected.items() if self.state[n].shape != like.shape]
        if wrong:
            name = wrong[0]
            raise self.refuse(
                f"{' and '.join(self.origin.get(name, [name]))!r} is "
                f"{tuple(self.state[name].shape)}; expected {tuple(expected[name].shape)} "
                f"({len(wrong)} such)."
            )
        self._sort(expected, config)
        return {name: self.state[name] for name in expected}

    def _sort(self, expected: Mapping[str, Tensor], config: BackboneConfig) -> None:
        """Say what became of each tensor. Raises ValueError for one that nobody knows."""
        unknown, heads = [], self._heads_of_timm(config)
        for ours, origins in self.origin.items():
            for name in origins:
                inner = name.removeprefix(self.part.place)
                if ours in expected:
                    folded = self.state[ours] is not self.read[name]
                    folded = folded and not self.naming.shared
                    fate: Fate = "folded" if folded else "used" if inner == ours else "renamed"
                    self.rows.append(Row(name, fate, ours))
                    continue
                why = reason_to_drop(inner) or reason_to_drop(ours)
                why = "head" if inner in heads else why
                self.rows.append(Row(name, "dropped", why=why))
                unknown += [] if why else [name]
        if unknown:
            raise self.refuse(
                f"{len(unknown)} tensors are no part of this network, as far as leanvit knows, "
                f"such as {', '.join(map(repr, unknown[:SHOWN]))}."
            )

    def _heads_of_timm(self, config: BackboneConfig) -> frozenset[str]:
        if not isinstance(config, TimmConfig):
            return frozenset()
        from leanvit.backbones.timm_adapter import head_names  # here, as timm loads slowly

        return head_names(config)
