"""Strict conversion between configurations and plain JSON values.

A section whose type is a choice (backbone, method, optimiser) carries its `kind`. Unknown keys,
wrong types and unknown kinds are errors that name the place and the nearest known name.
"""

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin

from leanvit.config.backbones import (
    BackboneConfig,
    CvTConfig,
    SwinConfig,
    TimmConfig,
    ViLConfig,
    ViTConfig,
    named_backbone,
)
from leanvit.config.dense import DetectorConfig, SegmenterConfig
from leanvit.config.duration import Duration
from leanvit.config.methods import (
    D2maeConfig,
    DinoConfig,
    DmaeConfig,
    EsViTConfig,
    MaeConfig,
    MethodConfig,
    MocoV3Config,
    SimMIMConfig,
    SupervisedConfig,
)
from leanvit.config.names import look_up, unknown_name
from leanvit.config.run import (
    AdamWConfig,
    LARSConfig,
    MuonConfig,
    OptimConfig,
    RunConfig,
    SGDConfig,
)

T = TypeVar("T")

KINDS: Mapping[type, Mapping[str, type]] = MappingProxyType(
    {
        BackboneConfig: MappingProxyType(
            {
                "cvt": CvTConfig,
                "swin": SwinConfig,
                "timm": TimmConfig,
                "vil": ViLConfig,
                "vit": ViTConfig,
            }
        ),
        MethodConfig: MappingProxyType(
            {
                "d2mae": D2maeConfig,
                "detector": DetectorConfig,
                "dino": DinoConfig,
                "dmae": DmaeConfig,
                "esvit": EsViTConfig,
                "mae": MaeConfig,
                "mocov3": MocoV3Config,
                "segmenter": SegmenterConfig,
                "simmim": SimMIMConfig,
                "supervised": SupervisedConfig,
            }
        ),
        OptimConfig: MappingProxyType(
            {"adamw": AdamWConfig, "sgd": SGDConfig, "lars": LARSConfig, "muon": MuonConfig}
        ),
    }
)
"""The types that a section may have, by the section's declared type and the `kind` in JSON."""


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dicts, lists, words and numbers."""
    plain: dict[str, Any] = {"kind": config.kind} if hasattr(config, "kind") else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Duration):
            value = str(value)
        elif dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        plain[field.name] = value
    return plain


def from_dict(cls: type[T], plain: Mapping[str, Any], place: str = "") -> T:
    """Build `cls` from what `to_dict` returned; missing keys take their defaults.

    Raises ValueError for an unknown key, a wrong type or a value that the type refuses.
    """
    if not isinstance(plain, Mapping):
        raise _wrong(place, plain, "a section with keys")
    plain = dict(plain)
    if cls in KINDS:
        if "kind" not in plain:
            raise ValueError(f"{place} needs a kind: one of {', '.join(KINDS[cls])}.")
        named = plain.pop("kind")
        word = named if isinstance(named, str) else _SHORT.repr(named)
        cls = look_up(f"kind of {place}", word, KINDS[cls])
    else:
        kind = getattr(cls, "kind", None)
        if kind is not None and plain.pop("kind", kind) != kind:
            raise ValueError(f"{place or 'this section'} is of kind {kind!r}.")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{place}." if place else ""
    for key in plain:
        if key not in known:
            raise unknown_name("option", prefix + key, [prefix + name for name in known])
    missing = [name for name in known if name not in plain and _required(known[name])]
    if missing:
        raise ValueError(f"{prefix}{missing[0]} is missing.")
    values = {key: _decode(hints[key], value, prefix + key) for key, value in plain.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}" if place else str(error)) from error


_SHORT = reprlib.Repr()
"""Spells a value of any size and depth."""
_SHORT.maxlist = _SHORT.maxdict = 20
_SHORT.maxstring = 200


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _wrong(place: str, value: object, expected: str) -> ValueError:
    shown = repr(value) if isinstance(value, str) else _SHORT.repr(value)
    return ValueError(f"{place or 'The configuration'} is {shown}; expected {expected}.")


def _decode(hint: Any, value: Any, place: str) -> Any:
    """Return `value` as the type `hint`; nothing is rounded, cut or guessed."""
    origin = get_origin(hint)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise _wrong(place, value, "one of " + ", ".join(map(repr, get_args(hint))))
    if origin in (typing.Union, types.UnionType):
        return _decode_auto(get_args(hint), value, place)
    if origin is tuple:
        return _decode_tuple(get_args(hint), value, place)
    if hint is Duration:
        if not isinstance(value, str):
            raise _wrong(place, value, "a duration such as '10ep'")
        try:
            return Duration.parse(value)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, place)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise _wrong(place, value, "a number that a float can hold") from error
    if type(value) is hint:
        return value
    raise _wrong(place, value, {"int": "a whole number", "float": "a number", "str": "a word",
                                "bool": "true or false"}[hint.__name__])  # fmt: skip


def _decode_auto(options: tuple[Any, ...], value: Any, place: str) -> Any:
    """The one union that options use: a plain type or the word "auto"."""
    if value == "auto":
        return value
    plain = next(option for option in options if get_origin(option) is not Literal)
    try:
        return _decode(plain, value, place)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}, or 'auto'.") from error


def _decode_tuple(items: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(place, value, "a list")
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise _wrong(place, value, f"{len(items)} values")
    return tuple(_decode(hint, entry, place) for hint, entry in zip(items, value, strict=True))


def leaves(plain: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every option of a `to_dict` result as (dotted name, value).

    The recipe of a run, which says where its values came from, is none.
    """
    run = "method" in plain and not place
    for key, value in plain.items():
        name = f"{place}.{key}" if place else key
        if isinstance(value, Mapping):
            yield from leaves(value, name)
        elif key != "kind" and not (run and key == "recipe"):
            yield name, value


def replace_options(config: T, options: Mapping[str, Any]) -> T:
    """Return the configuration with some options changed, named by dotted paths.

    Example: `replace_options(run, {"train.batch": 64, "optim.lr.peak": 1e-3})`. Raises ValueError
    for unknown names (with the nearest one) and values that do not fit.
    """
    plain = to_dict(config)
    known = dict(leaves(plain))
    for name, value in options.items():
        if name not in known:
            raise unknown_option(name, known)
        *path, last = name.split(".")
        section = plain
        for key in path:
            section = section[key]
        if isinstance(value, tuple):
            value = list(value)
        section[last] = str(value) if isinstance(value, Duration) else value
    return from_dict(type(config), plain)


def compose(
    config: RunConfig,
    *,
    data: str = "",
    backbone: str = "",
    optimizer: str = "",
    options: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return a recipe's configuration with named parts and single options replaced.

    A new optimiser keeps the options that all optimisers share. What is given follows from nothing
    else (`fit`). Raises ValueError for unknown names.
    """
    changes = dict(options or {})
    if backbone:
        config = dataclasses.replace(config, backbone=named_backbone(backbone))
    if optimizer:
        kind = look_up("optimizer", optimizer, KINDS[OptimConfig])
    if optimizer and kind is not type(config.optim):
        shared = {
            field.name: getattr(config.optim, field.name)
            for field in dataclasses.fields(OptimConfig)
        }
        config = dataclasses.replace(config, optim=kind(**shared))
    if data:
        changes["data.source"] = data
    config = replace_options(config, changes)
    given = (*changes, *(["backbone"] if backbone else []))
    left = [n for n in config.fit if not any(f"{n}.".startswith(f"{g}.") for g in given)]
    return dataclasses.replace(config, fit=tuple(left))


def unknown_option(name: str, known: Mapping[str, Any]) -> ValueError:
    """Return the error for an unknown option: it names those of the section that was meant."""
    inside = [option for option in known if option.startswith(f"{name}.")]
    if inside:
        return ValueError(f"{name!r} is a section; its options are {', '.join(inside)}.")
    section = name.rpartition(".")[0]
    sections = sorted({option.rpartition(".")[0] for option in known} - {""})
    if sections and section not in sections:
        last = {option.rpartition(".")[2]: option for option in known}
        near = [last[word] for word in get_close_matches(name, last, n=1, cutoff=0.6)]
        if section or not near:
            near = get_close_matches(name, known, n=1, cutoff=0.6) or near
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return ValueError(f"Unknown option {name!r}{hint} Sections: {', '.join(sections)}.")
    siblings = [option for option in known if option.rpartition(".")[0] == section]
    return unknown_name("option", name, siblings)


def load_config(path: Path) -> RunConfig:
    """Read the `config.json` or `resolved.json` of a run. Raises ValueError where it is neither."""
    plain = read_json(path)
    if isinstance(plain, dict) and "origins" in plain and "config" in plain:
        plain = plain["config"]
    return from_dict(RunConfig, plain)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises ValueError if it holds none or cannot be read."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # also for numbers and nesting without end
        raise ValueError(f"{path} is not JSON: {error}.") from error
    except OSError as error:
        raise ValueError(f"Cannot read the configuration {path}: {error.strerror}.") from error
