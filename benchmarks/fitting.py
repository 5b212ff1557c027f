"""What `train.batch auto` foretells of larger steps, and what these then take, on the CPU.

`python benchmarks/fitting.py` prints the table of docs/speed.md.
"""

import torch

from leanvit.bench.machine import machine
from leanvit.bench.tables import markdown
from leanvit.config import compose, rehearsal
from leanvit.data.sources import open_source
from leanvit.recipes import recipe
from leanvit.train.facts import gather_facts
from leanvit.train.fitting import with_memory
from leanvit.train.trial import Trial, attempt

CASES = (("esvit", 24, 1), ("esvit", 24, 2), ("mocov3", 24, 1), ("mae", 64, 1))
"""Recipe, images of the larger step, and its parts."""


def main() -> None:
    source, rows = open_source("sample"), []
    for name, images, parts in CASES:
        asked = compose(recipe(name), options={"train.batch": "auto", "train.device": "cpu"})
        facts = with_memory(asked, gather_facts(source), source, quiet=True)
        step = facts.step
        assert step is not None
        trial = Trial(rehearsal(asked, facts), images // parts, parts, most=facts.memory)
        found = attempt(trial)
        foretold = step.needed(images, parts)
        taken = f"{found.peak / 2**30:.2f}" if found else "too much"
        split = f" in {parts} parts" if parts > 1 else ""
        row = [f"`{name}`", f"{step.each / 2**20:.0f}", f"{images} images{split}"]
        rows.append([*row, f"{foretold / 2**30:.2f}", taken])
    facts_of = {**machine("cpu"), "threads": torch.get_num_threads()}
    print("  ".join(f"{key} {value}" for key, value in facts_of.items()), end="\n\n")
    head = "recipe,an image adds MiB,step,foretold GiB,taken GiB"
    print("\n".join(markdown(head.split(","), rows)))


if __name__ == "__main__":
    main()
