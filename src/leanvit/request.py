"""From the words of a request to the whole configuration, and to the images."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from leanvit.config import (
    Facts,
    Resolved,
    RunConfig,
    compose,
    replace_options,
    resolve,
    times,
    to_dict,
)
from leanvit.config.convert import leaves
from leanvit.config.resume import Change, Past, go_on, with_free
from leanvit.data.sources import Source, open_source
from leanvit.data.subsets import draw_subset
from leanvit.folder import require_same_images
from leanvit.recipes import recipe as recipe_named
from leanvit.train.start import initial_weights


def compose_request(
    recipe: str | RunConfig,
    past: Past | None,
    data: str,
    backbone: str,
    optimizer: str,
    options: Mapping[str, Any],
) -> RunConfig:
    """Return the whole configuration that was asked for.

    past: a run that continues, whose configuration stands for no recipe. Raises ValueError for
    unknown names and values, and if nothing says what to run.
    """
    if past is not None and not recipe:
        config = past.asked  # what it took from initial weights is in it
        return compose(config, data=data, backbone=backbone, optimizer=optimizer, options=options)
    config = recipe_named(recipe) if isinstance(recipe, str) else recipe
    asked = compose(config, data=data, backbone=backbone, optimizer=optimizer, options=options)
    return _as_initialized(asked, backbone, options) if asked.init else asked


def _as_initialized(asked: RunConfig, backbone: str, options: Mapping[str, Any]) -> RunConfig:
    """Take over sizes, mean and std from the initial weights, where none were given.

    Raises ValueError if they are of another network than the one that was asked for.
    """
    weights = initial_weights(asked.init)
    found, mean, std = weights.config, weights.mean, weights.std
    asked = replace_options(asked, {"data.mean": mean, "data.std": std})
    if not backbone:
        asked = replace(asked, backbone=replace(found, drop_path=asked.backbone.drop_path))
    left = [name for name in asked.fit if not name.startswith("backbone.")]
    asked = replace(asked, fit=tuple(left))
    fixed = ("backbone.", "data.mean", "data.std")
    asked = replace_options(asked, {n: v for n, v in options.items() if n.startswith(fixed)})
    there, here = (
        {"kind": config.kind, **dict(leaves(to_dict(config)))} for config in (found, asked.backbone)
    )
    differ = [n for n in there if n not in ("drop_path", "positions") and there[n] != here.get(n)]
    differ = ["kind"] if "kind" in differ else differ
    if differ:
        named = ", ".join(f"{name} {there[name]} (run: {here.get(name)})" for name in differ)
        raise ValueError(f"The weights in {asked.init!r} belong to another network: {named}.")
    return asked


def open_images(asked: RunConfig, data: str | Source) -> Source:
    """Return the images of a run: those of the source that its fraction and imbalance leave.

    data: a source itself, or any name, since the configuration has it. Raises ValueError if nothing
    can be read there.
    """
    whole = open_source(asked.data.source) if isinstance(data, str) else data
    return draw_subset(whole, asked.data, asked.train.seed)


def require_one_way(resume: bool, autoresume: bool, overwrite: bool, allowing: bool) -> None:
    """Raise ValueError if words contradict each other on what happens to a run that is there."""
    if overwrite and (resume or autoresume):
        word = "--resume" if resume else "--autoresume"
        raise ValueError(f"{word} continues a run and --overwrite replaces it: choose one.")
    if resume and autoresume:
        raise ValueError("--autoresume begins a run that --resume would not find: choose one.")
    if allowing and not (resume or autoresume):
        raise ValueError("--allow is for a run that goes on: add --resume or --autoresume.")


def as_chosen(past: Past, asked: RunConfig, changed: Collection[str]) -> RunConfig:
    """Return what is asked with what a run measured first, so that nothing is measured again.

    That is a batch, how many steps are a time, and what follows from the images; changed: options
    that are asked anew.
    """
    was, now = (dict(leaves(to_dict(config))) for config in (past.resolved.config, asked))
    chosen = {name for name in ("train.batch", "train.accumulate") if now[name] == "auto"}
    chosen = (chosen | times(asked) | {*asked.fit}) - {*changed}
    return replace_options(asked, {**{name: was[name] for name in chosen}, "fit": ()})


def continued(
    past: Past, asked: RunConfig, changes: Sequence[Change], source: Source, facts: Facts
) -> tuple[Past, Resolved]:
    """Return what a run is asked from now on, as it is written down, and what runs.

    asked: as `as_chosen` returned it. The latter has what changes no number as it is now. Raises
    ValueError if the images are others, or if the changes contradict the rest or this machine.
    """
    require_same_images(past.record["images"], source)
    now = go_on(past, asked, changes, facts) if changes else past
    config = with_free(now.resolved.config, resolve(asked, facts).config)
    if config.train.device == "cuda" != facts.device:
        raise ValueError(
            "The run trains on cuda, and torch finds no CUDA device here; on the CPU it goes on "
            "with --train.device cpu --allow train.device."
        )
    return now, Resolved(config, now.resolved.origins)
