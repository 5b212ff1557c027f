"""Peak memory and time of a whole training step on the CPU, each case in its own process.

`python benchmarks/step_memory.py` prints the table of step_memory.md.
"""

import resource
import statistics
import subprocess
import sys
import time

CASES = [("esvit", batch) for batch in (2, 4, 8, 16)] + [("dino", batch) for batch in (8, 16)]


def measure(name: str, batch: int) -> str:
    import torch

    from leanvit.config import Facts, compose, resolve
    from leanvit.data.batch import ViewBatch
    from leanvit.methods.catalogue import build_method
    from leanvit.recipes import recipe
    from leanvit.train.state import TrainState

    asked = compose(recipe(name), options={"train.batch": batch, "train.duration": "100st"})
    facts = Facts(images=1000, cores=2, device="cpu", bf16=False)
    config = resolve(asked, facts).config
    state = TrainState(build_method(config.method, config.backbone, 0), config, epoch_steps=10)
    groups = (torch.randn(2, batch, 3, 224, 224), torch.randn(8, batch, 3, 96, 96))
    views = ViewBatch(groups, torch.arange(batch), torch.zeros(batch))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        at = state.begin_step()
        state.backward(views, at, 1)
        state.update(at)
        seconds.append(time.perf_counter() - start)
    state.require_sound()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    median = statistics.median(seconds[1:])
    return f"| {name} | {batch} | {peak:.1f} | {median:.1f} | {median / batch:.2f} |"


def main() -> None:
    if len(sys.argv) == 3:
        print(measure(sys.argv[1], int(sys.argv[2])))
        return
    print("| recipe | batch | peak GiB | s a step | s an image |\n|---|---|---|---|---|")
    for name, batch in CASES:
        subprocess.run([sys.executable, __file__, name, str(batch)], check=True)


if __name__ == "__main__":
    main()
