"""`leanvit pretrain`: from a request to a run, begun or continued."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from leanvit.config import RunConfig, resolve
from leanvit.config.resume import Past, find_changes, read_past, require_allowed
from leanvit.core.console import say
from leanvit.core.distributed import first_alone, joined, launched, rank, wait_for_all
from leanvit.data.sources import Source
from leanvit.folder import (
    Claim,
    finished,
    holds_run,
    mend,
    record_changes,
    require_free,
    start_folder,
    started_from,
)
from leanvit.measuring import measured_facts
from leanvit.request import as_chosen, compose_request, continued, open_images, require_one_way
from leanvit.run import Run
from leanvit.weights.file import FILE


def pretrain(
    recipe: str | RunConfig = "",
    *,
    out: str | Path,
    data: str | Source = "",
    backbone: str = "",
    optimizer: str = "",
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    autoresume: bool = False,
    allow: Collection[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Pre-train a backbone on images; return the path of its file.

    recipe: a name of `leanvit.recipes.RECIPES`, or a whole configuration; with resume, nothing
    means the run's own; data: a folder or another name of docs/data.md, or a source such as
    `leanvit.data.named.ArraySource`, which a resumed run must be given again; out: where
    everything is written; backbone, optimizer: names that replace the recipe's; options: single
    values by dotted name, such as {"train.batch": 32}; resume: continue the run in `out`;
    autoresume: continue it if there is one, else begin it; allow: options that may differ from
    those that a continued run began with; overwrite: remove what is in `out` first; quiet: print
    nothing but warnings. A finished run is left as it is.
    Under torchrun its processes train together, each on its share of every batch.
    Raises ValueError for a mistake in the request, NonFiniteError for a diverged run and
    CheckpointError for a disk that refuses.
    """
    require_one_way(resume, autoresume, overwrite, bool(allow))
    out, options = Path(out), dict(options or {})
    past = read_past(out) if resume or (autoresume and holds_run(out)) else None
    name = data if isinstance(data, str) else ""
    asked = compose_request(recipe, past, name, backbone, optimizer, options)
    if past:
        return _continue(past, asked, data, allow, out, quiet)
    source = open_images(asked, data)
    chosen = {"data.source": name, "backbone": backbone, "optim": optimizer}
    named = [name for name, value in chosen.items() if value]
    if launched() == 1:  # before anything is measured; of several processes one would be left alone
        _require_free(asked, out, overwrite, autoresume)
    facts = measured_facts(asked, source, quiet=quiet)
    resolved = resolve(asked, facts, given=(*named, *options))
    with joined(resolved.config.train.device), Claim(out) as claim:
        first_alone(partial(_require_free, asked, out, overwrite, autoresume))
        run = Run(resolved, source, out, quiet=quiet)
        run.initialize()  # what cannot be built fails before a write
        first_alone(claim.take)
        first_alone(partial(start_folder, out, asked, resolved, source, run.start))
        run.train()
    return out / FILE


def _continue(
    past: Past, asked: RunConfig, data: str | Source, allow: Collection[str], out: Path, quiet: bool
) -> Path:
    """Continue a run, with the changes that are allowed, unless it is finished."""
    changes = find_changes(past, asked)
    require_allowed(past, changes, allow)
    loud, changed = rank() == 0 and not quiet, {change.name for change in changes}
    for name in allow:
        if loud and name not in changed:
            say(f"--allow {name}: it is as it was.")
    if finished(out, past.resolved.config) and "train.duration" not in changed:
        if loud:
            say(f"The run in {out} is finished; nothing is left to do.")
        return out / FILE
    source = open_images(asked, data)
    asked = as_chosen(past, asked, changed)
    facts = measured_facts(asked, source, quiet=quiet)
    now, resolved = continued(past, asked, changes, source, facts)
    with joined(resolved.config.train.device), Claim(out) as claim:
        first_alone(claim.take)
        run = Run(resolved, source, out, quiet=quiet)
        run.start = started_from(past)
        run.restore()  # what does not fit fails before a write
        wait_for_all()  # every process has read what the first one writes now
        if changes:
            first_alone(partial(record_changes, out, run.state.step, past, now))
            run._say(f"Changed from there on: {'; '.join(map(str, changes))}.")
        first_alone(partial(mend, out, now.asked))
        run.train()
    return out / FILE


def _require_free(asked: RunConfig, out: Path, overwrite: bool, among_others: bool) -> None:
    require_free(out, overwrite, asked.data.source, among_others=among_others)
    init = asked.init
    there = init and Path(init).exists()  # else a name of timm
    if overwrite and there and Path(init).resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"The initial weights {init!r} lie in {str(out)!r}, which --overwrite would remove "
            f"first; name another --out."
        )
