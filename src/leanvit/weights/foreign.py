"""Checkpoints of other codes, read strictly: every tensor is used, or known not to be needed.

Letters: D channels.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leanvit.backbones.vit import sincos_positions
from leanvit.config import BackboneConfig, TimmConfig, ViTConfig, named_backbone
from leanvit.config.names import unknown_name
from leanvit.config.weights import WeightsConfig
from leanvit.weights.beside import require_ours
from leanvit.weights.folds import fold_vit
from leanvit.weights.layouts import LAYOUTS, Part, layouts_of, parts_of, reason_to_drop
from leanvit.weights.model_folder import EPS
from leanvit.weights.names import NAMINGS, join_pieces
from leanvit.weights.reading import Contents, read_json
from leanvit.weights.report import Fate, Report, Row, Weights, require_numbers, skeleton
from leanvit.weights.shapes import cvt_config, swin_config, vil_config, vit_config
from leanvit.weights.strangers import listed
from leanvit.weights.unknown import no_network, of_timm, other_family, told

SHOWN = 3
"""Names that a message lists."""
TWELVE_HEADS = ("mae_lite", "moco_v3")
"""Layouts whose light networks have more heads than everybody else's."""
UNCOUNTED = "num_batches_tracked"
"""What batch norm also keeps, and old files lack."""


def understand(checkpoint: Contents, asked: WeightsConfig) -> Weights:
    """Return the backbone in a checkpoint of another code.

    Raises ValueError if it holds none, or several of which none comes first, if a tensor is
    missing, unknown or of another shape, and if what leaves no trace is not known.
    """
    reader = _Reader(checkpoint, asked)
    config = reader.config()
    state = reader.fitted(config)
    require_numbers(checkpoint.path, config, reader.read, reader.rows)
    report = Report(reader.layout, reader.part.place, tuple(reader.rows), tuple(reader.notes))
    mean, std = reader.normalization()
    return Weights(config, state, mean, std, report)


class _Reader:
    """One file on its way to a state of ours."""

    def __init__(self, checkpoint: Contents, asked: WeightsConfig) -> None:
        self.checkpoint, self.asked = checkpoint, asked
        if asked.layout != "auto" and asked.layout not in LAYOUTS:
            raise unknown_name("layout", asked.layout, LAYOUTS)
        for section in ("model_args", "pretrained_cfg"):
            if not isinstance(found := self._beside(section), dict):
                raise self.refuse(f"{section} in its config.json is {found!r}; expected an object.")
        self.names = list(checkpoint.tensors)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.part = self._part()
        self.naming = NAMINGS[self.part.naming]
        self.layout = self._layout()
        self.origin: dict[str, list[str]] = {}
        self.read: dict[str, Tensor] = {}
        self.state = self._renamed()

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
        if given and self._timm_name():
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
        network = self._timm_name()
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

    def _timm_name(self) -> str:
        """Return timm's name of the network, if it was given or stands beside the file."""
        if self.asked.network:
            config = named_backbone(self.asked.network, "network")
            return config.name if isinstance(config, TimmConfig) else ""
        return str(self.checkpoint.config.get("architecture", ""))

    def _timm_config(self) -> TimmConfig:
        from leanvit.backbones.timm_adapter import usual_size  # here, as timm loads slowly

        name = self._timm_name() or "resnet50"  # the one that is known by its tensors
        if not self._timm_name() and self.layout in ("timm", "huggingface"):
            told = "model_type" in self.checkpoint.config
            assumed = "resnet50 is assumed: names and shapes fit variants too (--network)"
            self.notes += [] if told else [assumed]
        return TimmConfig(name=name, image_size=self._image_size() or usual_size(name))

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

    def config(self) -> BackboneConfig:
        """Return the configuration that the tensors, and what lies beside them, imply."""
        shapes = {name: tuple(value.shape) for name, value in self.state.items()}
        heads, kind = self.asked.heads, self.naming.kind
        try:
            if "architecture" not in self.checkpoint.config:  # else timm itself says what it means
                require_ours(self.checkpoint.config, kind)
            if kind == "vit":
                found: BackboneConfig = self._vit(shapes)
            elif kind == "swin":
                found = swin_config(shapes, self._swin_size(shapes), self._norm_eps())
            elif kind == "cvt":
                found = cvt_config(shapes, heads)
                found = replace(found, image_size=self._image_size() or found.image_size)
            elif kind == "vil":
                found = vil_config(shapes, self._image_size() or 224)
            else:
                found = self._timm_config()
        except ValueError as error:
            raise self.refuse(str(error)) from error
        self._require_asked(found)
        return found

    def _beside(self, section: str) -> Mapping[str, Any]:
        """Return a section of the config.json beside the file; empty without one."""
        return self.checkpoint.config.get(section) or {}

    def _vit(self, shapes: Mapping[str, tuple[int, ...]]) -> ViTConfig:
        config = vit_config(shapes, heads=1, norm_eps=self._norm_eps())
        asked = self.asked.image_size
        if asked and asked // config.patch != config.image_size // config.patch:
            raise ValueError(
                f"its positions are those of images of {config.image_size} pixels, not {asked}; "
                f"leave image_size out: the network takes images of any size."
            )
        config = replace(config, heads=self._heads(config))
        config = self._as_said(config)
        fixed = sincos_positions(config.image_size // config.patch, config.dim)
        same = torch.allclose(self.state["pos_embed"].float(), fixed, rtol=0, atol=1e-5)
        return replace(config, positions="sincos") if same else config

    def _as_said(self, config: ViTConfig) -> ViTConfig:
        """Take over what leaves no trace in the weights from what stands beside the file."""
        beside, args = self.checkpoint.config, self._beside("model_args")
        norm_last = args.get("fc_norm", args.get("use_fc_norm"))
        mean = args.get("global_pool") == "avg" and norm_last is False
        if config.pool == "class" and (mean or beside.get("pool") == "mean"):
            config = replace(config, pool="mean")
        first = args.get("init_values") or beside.get("layerscale_value")
        return replace(config, layer_scale=float(first)) if first and config.layer_scale else config

    def _heads(self, config: ViTConfig) -> int:
        """Return the heads of a plain ViT: shown by other tensors, said, or as published."""
        shown = self._heads_shown()
        published = LAYOUTS[self.layout].heads.get(config.dim)
        light = published and config.dim in (192, 384) and self.layout not in TWELVE_HEADS
        if light and self._positions_are_waves(config):
            published = None  # a file of MAE-Lite or MoCo-v3 without its prefixes looks like this
        said = self.asked.heads[0] if self.asked.heads else 0
        usual = f"a network of {config.dim} channels has in {self.layout}"
        for known, source in ((shown, "the file shows"), (self._guarded(published), usual)):
            if said and known and said != known:
                raise ValueError(
                    f"{source} {known} heads, not {said}: with {said} the same tensors would fit "
                    f"and give other features."
                )
        heads = said or shown or published
        if not heads:
            raise ValueError(
                f"the number of heads leaves no trace in weights, and networks of {config.dim} "
                f"channels have 12 in MAE-Lite and MoCo-v3, 3 or 6 elsewhere: {told('--heads N')}."
            )
        if config.dim % heads:
            raise ValueError(f"{heads} heads do not divide {config.dim} channels.")
        if not (said or shown):
            self.notes.append(
                f"{heads} heads, as networks of {config.dim} channels have in {self.layout}: "
                f"weights do not show it (--heads)"
            )
        return heads

    def _guarded(self, published: int | None) -> int | None:
        return published if self.layout == "mae_lite" else None

    def _heads_shown(self) -> int:
        """Return the heads that something beside the projections shows; 0 if nothing does."""
        table = self.state.get("layers.0.attn.relative_position_bias_table")
        if table is not None:
            return table.shape[1]
        for name in self.names:  # D-MAE: from the student's heads to the teacher's
            if "attn_adapter." in name:
                shape = self.checkpoint.tensors[name].shape
                return int(shape[0 if "tch_model" in self.part.place else 1])
        beside = self.checkpoint.config
        count = beside.get("num_attention_heads") or self._beside("model_args").get("num_heads")
        if isinstance(count, int):
            return count
        name = self._timm_name()
        if not name:
            return 0
        from leanvit.backbones.timm_adapter import heads_of  # timm takes a while to load

        return heads_of(name)

    def _positions_are_waves(self, config: ViTConfig) -> bool:
        """Whether positions are the fixed ones of MAE, or of MoCo-v3, which says the row first."""
        places = self.state["pos_embed"].float()
        fixed = sincos_positions(config.image_size // config.patch, config.dim)
        both = (fixed, fixed.roll(config.dim // 2, -1))
        return any(torch.allclose(places, each, rtol=0, atol=1e-3) for each in both)

    def _norm_eps(self) -> float:
        beside = self.checkpoint.config
        if EPS in beside:  # a folder that leanvit wrote
            return float(beside[EPS])
        said = beside.get("layer_norm_eps")
        if self.part.naming == "swin huggingface" and said not in (None, 1e-5):
            raise ValueError(
                f"some norms of transformers' Swin add 1e-05 to the variance and the others {said} "
                f"(layer_norm_eps), which no Swin here does."
            )
        if said is None:
            usual = LAYOUTS[self.layout].norm_eps
            said = usual.get(self.part.naming, usual.get(self.naming.kind, 1e-6))
            bare = not re.search(r"\b(teacher|student)\.", self.part.place)
            if self.part.naming == "swin" and self.layout == "esvit" and bare:
                self.notes.append(
                    "norms add 1e-06 to the variance, as in EsViT; in supervised Swins they add "
                    "1e-05, and without masks weights do not show it"
                )
        return float(said)

    def _image_size(self) -> int:
        """Return the image's side as it was said or stands beside the file; 0 if it is unknown."""
        if self.asked.image_size:
            return self.asked.image_size
        beside = self.checkpoint.config
        size = beside.get("image_size") or self._beside("model_args").get("img_size")
        size = size or self._beside("pretrained_cfg").get("input_size")
        side = size[-1] if isinstance(size, list) and size else size  # [C, H, W] or [H, W]
        return side if isinstance(side, int) else 0

    def _swin_size(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the image's side, which decides whether the windows of a stage are shifted."""
        size = self._image_size()
        mask = self.state.get("layers.0.blocks.1.attn_mask")  # [windows, T, T]
        if not size and mask is not None:
            windows, tokens, _ = mask.shape
            size = math.isqrt(windows * tokens) * shapes["patch_embed.proj.weight"][-1]
        if not size:
            size = swin_config(shapes).image_size
            self.notes.append(
                f"windows are laid out for images of {size} pixels, where the last stage is one "
                f"window, as published: weights do not show it (--image-size)"
            )
        return size

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and deviation: said, beside the file, or ImageNet's."""
        beside = self._beside("pretrained_cfg") or self.checkpoint.config
        path = self.checkpoint.path
        processor = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
        if self.layout == "huggingface" and processor.is_file():
            found = read_json(processor)
            beside = {"mean": found.get("image_mean"), "std": found.get("image_std")}
            if found.get("do_normalize") is False:  # whatever else it says
                beside = {"mean": [0.0] * 3, "std": [1.0] * 3}
        given = {name: getattr(self.asked, name) or beside.get(name) for name in ("mean", "std")}
        for name, value in given.items():
            plain = value is None or (
                isinstance(value, list | tuple)
                and len(value) in (0, 3)
                and all(isinstance(number, int | float) for number in value)
                and (name == "mean" or all(number > 0 for number in value))
            )
            if not plain:
                raise self.refuse(f"its {name} is {value!r}; expected one number a channel: 3.")
        mean, std = (tuple(given[name] or ()) for name in ("mean", "std"))
        if not (mean and std):
            self.notes.append("mean and deviation of ImageNet: the file does not say (--mean)")
        return mean or (0.485, 0.456, 0.406), std or (0.229, 0.224, 0.225)

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

    def fitted(self, config: BackboneConfig) -> dict[str, Tensor]:
        """Return the state of exactly the network's parameters and buffers."""
        expected = skeleton(config)
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
        wrong = [n for n, shape in expected.items() if tuple(self.state[n].shape) != shape]
        if wrong:
            name = wrong[0]
            raise self.refuse(
                f"{' and '.join(self.origin.get(name, [name]))!r} is "
                f"{tuple(self.state[name].shape)}; expected {expected[name]} "
                f"({len(wrong)} such)."
            )
        self._sort(expected, config)
        return {name: self.state[name] for name in expected}

    def _sort(self, expected: Mapping[str, tuple[int, ...]], config: BackboneConfig) -> None:
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
