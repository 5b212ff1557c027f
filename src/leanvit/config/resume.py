"""How a run goes on: what its folder says it is, what may change, and what follows from a change.

`resolved.json` holds what was asked and what runs; both are compared, option by option, with what
is asked now. `config.json` repeats what was asked, for people and for other runs.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from leanvit.config.convert import from_dict, leaves, replace_options, to_dict, unknown_option
from leanvit.config.facts import Facts
from leanvit.config.resolve import Resolved, resolve
from leanvit.config.run import RunConfig

ASKED, RESOLVED = "config.json", "resolved.json"
"""What was asked; the same with what it was resolved to, which is written first."""
RESUMED = "resumed"
"""Where `resolved.json` keeps the changes of a run."""

FREE = (
    *("data.source", "data.workers", "data.max_unreadable"),
    *("train.keep", "train.keep_every", "train.save_minutes", "train.recompute"),
)
"""Options that change no number, so that a resumed run may have others."""

_SIZES = "the saved weights have these sizes"
_IMAGES = "it draws which images there are"
_BEGAN = "the first weights were taken when the run began"
FIXED: Mapping[str, str] = MappingProxyType(
    {
        "backbone": _SIZES,
        "method.kind": "the saved weights are of this method",
        "method.head": _SIZES,
        "method.decoder": _SIZES,
        "method.hidden": _SIZES,
        "method.output": _SIZES,
        "method.classes": _SIZES,
        "method.views.repeats": "the order of images hangs on it",
        "method.adapt_heads": "it adds weights, which are saved or not",
        "optim.kind": "what is saved of each weight is of this optimizer",
        "data.fraction": _IMAGES,
        "data.imbalance": _IMAGES,
        "train.batch": "steps and epochs count in it, and so does the order of images",
        "train.seed": "order, views and masks are drawn from it",
        "fit": "what follows from the images was decided when the run began",
        "init": _BEGAN,
        "init_from": _BEGAN,
    }
)
"""Options and sections that a run keeps, and why."""
LOOSE = ("backbone.drop_path",)
"""What may change in spite of its section."""


@dataclass(frozen=True, slots=True)
class Past:
    """A run as its folder tells it."""

    asked: RunConfig
    resolved: Resolved
    record: Mapping[str, Any]
    """All of `resolved.json`."""


@dataclass(frozen=True, slots=True)
class Change:
    """An option that is asked to be other than it was."""

    name: str
    was: Any
    ran: Any
    """What it was resolved to."""
    now: Any

    def __str__(self) -> str:
        ran = "" if self.ran == self.was else f" (ran as {self.ran!r})"
        why = fixed(self.name)
        kept = f"; it stays, since {why}" if why else ""
        return f"{self.name} was {self.was!r}{ran}, now {self.now!r}{kept}"


def fixed(name: str) -> str:
    """Return why an option may not change in a run; nothing if it may."""
    if name in LOOSE:
        return ""
    return next((why for part, why in FIXED.items() if f"{name}.".startswith(f"{part}.")), "")


def read_past(folder: Path) -> Past:
    """Read what the run in a folder is. Raises ValueError if there is none, or none that is whole.

    All of the file is read and checked, so that what a full disk left of one is never run.
    """
    path = folder / RESOLVED
    if not path.exists() and not (folder / ASKED).exists():
        raise ValueError(f"There is no run in {str(folder)!r}.")
    try:
        record = json.loads(path.read_text())
        asked, config = (from_dict(RunConfig, record[name]) for name in ("asked", "config"))
        if {"count", "fingerprint"} != set(record["images"]):
            raise ValueError("its images are not what a run writes")
        if not all(isinstance(record.get(name, {}), dict) for name in ("origins", "init")):
            raise ValueError("its origins or initial weights are not what a run writes")
        return Past(asked, Resolved(config, record["origins"]), record)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    why = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
    why = error.strerror or why if isinstance(error, OSError) else why
    return ValueError(
        f"{path} is damaged or missing ({why}): put back a copy of it, or begin another run from "
        f"these weights: --init {path.parent} and another --out."
    )


def find_changes(past: Past, asked: RunConfig) -> list[Change]:
    """Return what is asked neither as it was asked at first nor as it was resolved."""
    was, ran, now = (dict(_options(c)) for c in (past.asked, past.resolved.config, asked))
    found = [
        Change(name, was[name], ran[name], now[name])
        for name in was
        if name in now and now[name] not in (was[name], ran[name]) and name not in FREE
    ]
    given = {change.name for change in found}
    left = [name for name in was["fit"] if name not in now["fit"]]  # since it is given now
    return [change for change in found if change.name != "fit" or not given.issuperset(left)]


def _options(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """Yield every option, and of which kind the parts are."""
    for section in ("method", "backbone", "optim"):
        yield f"{section}.kind", getattr(config, section).kind
    yield from leaves(to_dict(config))


def require_allowed(past: Past, changes: Sequence[Change], allow: Collection[str]) -> None:
    """Raise ValueError, with a line for each change, unless all are allowed.

    allow: dotted names of options. One that no run may change, or that is none, is refused too.
    """
    known = dict(_options(past.asked))
    for name in allow:
        if name not in known:
            raise unknown_option(name, known)
        if why := fixed(name):
            raise ValueError(f"{name} cannot be allowed to change: {why}. Start a new run instead.")
    if all(change.name in allow for change in changes):
        return
    lines = "".join(f"\n  {change}" for change in changes)
    may = ",".join(change.name for change in changes if not fixed(change.name))
    take = f"; --allow {may} takes over what may change" if may else ""
    raise ValueError(
        f"A run resumes as it began, and this is another:{lines}\n"
        f"Ask for the same, or start a new run in another folder{take}."
    )


def go_on(past: Past, asked: RunConfig, changes: Sequence[Change], facts: Facts) -> Past:
    """Return the run with the changes: what is asked of it from here on, and what that becomes.

    Shares of the run follow a new duration, and a new peak learning rate its rule, as though the
    run had begun so; what was `auto` stays what it became.
    """
    new = {change.name: change.now for change in changes}
    kept = dict(leaves(to_dict(past.resolved.config)))
    wanted = with_free(replace_options(past.asked, new), asked)
    open_still = {n for n, v in leaves(to_dict(wanted)) if v == "auto"} | {*wanted.fit}
    became = {**{n: kept[n] for n in open_still if n not in new}, "fit": ()}
    before, then = (dict(leaves(to_dict(config))) for config in (past.asked, wanted))
    freely = [name for name in FREE if then[name] != before[name]]
    resolved = resolve(replace_options(wanted, became), facts, given=(*new, *freely))
    same = {name for name, value in leaves(to_dict(resolved.config)) if value == kept[name]}
    origins = {n: o for n, o in past.resolved.origins.items() if n in same}
    return Past(wanted, Resolved(resolved.config, {**resolved.origins, **origins}), past.record)


def differences(before: RunConfig, after: RunConfig) -> dict[str, dict[str, Any]]:
    """Return how two runs of the same kinds differ, as `resolved.json` keeps it."""
    was, now = (dict(leaves(to_dict(config))) for config in (before, after))
    return {n: {"was": was[n], "now": now[n]} for n in was if was[n] != now[n] and n not in FREE}


def with_free(config: RunConfig, current: RunConfig) -> RunConfig:
    """Return a configuration with what changes no number as it is now."""
    now = dict(leaves(to_dict(current)))
    return replace_options(config, {name: now[name] for name in FREE})
