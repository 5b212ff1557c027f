"""What is likely to keep a run from learning: settings that are legal and seldom meant."""

from collections.abc import Iterator

from leanvit.config.defaults import FEWEST, LOWEST
from leanvit.config.facts import Facts
from leanvit.config.methods import DinoConfig, MocoV3Config
from leanvit.config.run import RunConfig, settled

MOST_WARMUP = 0.5
"""Share of the run that the learning rate may take to rise."""
TURNS = 4
"""How many times a teacher is made anew in a run at least: every 1 / (1 - momentum) steps."""
FEW_NORMED, FEW_NEGATIVES = 16, 64
"""Images below which a batch says little of mean and deviation, and offers few to be told apart."""


def advice(config: RunConfig, facts: Facts) -> list[str]:
    """Return a sentence for each: what is so, why it hurts, what to do. config: resolved."""
    found = [*_of_schedules(config)]
    if isinstance(config.method, DinoConfig):
        found += [*_of_distillation(config.method, config, facts)]
    if isinstance(config.method, MocoV3Config) and settled(config.train.batch) < FEW_NEGATIVES:
        found.append(
            f"mocov3 tells each image from the {settled(config.train.batch) - 1} others of its "
            f"batch, which is easy when they are few; train.batch {4 * FEW_NEGATIVES} or more "
            f"teaches more."
        )
    return found


def _of_schedules(config: RunConfig) -> Iterator[str]:
    steps, warmup = config.train.duration.amount, config.optim.lr.warmup.amount
    if warmup > MOST_WARMUP * steps:
        yield (
            f"The learning rate rises for {warmup:g} of {steps:g} steps, so that most of the run "
            f"is warm-up; train longer, or set optim.lr.warmup to a share such as 10%."
        )


def _of_distillation(method: DinoConfig, config: RunConfig, facts: Facts) -> Iterator[str]:
    steps, momentum = config.train.duration.amount, method.teacher_momentum.start
    if momentum == method.teacher_momentum.peak == 1:
        yield (
            "A teacher of momentum 1 never follows the student and stays as random as it began; "
            "set method.teacher_momentum.start and peak below 1."
        )
    if LOWEST < momentum < 1 and 1 / (1 - momentum) > steps / TURNS:
        yield (
            f"A teacher of momentum {momentum:g} follows the student within "
            f"{1 / (1 - momentum):.0f} steps, and the run has {steps:g}; a lower "
            f"method.teacher_momentum.start, or a longer run, lets it learn."
        )
    temp = method.teacher_temp
    if (hottest := max(temp.start, temp.peak, temp.end)) > method.student_temp:
        yield (
            f"A teacher of temperature {hottest:g} is less sure than the student, of "
            f"{method.student_temp:g}, so there is little to learn from it; lower "
            f"method.teacher_temp, or raise method.student_temp."
        )
    if method.head.prototypes > max(facts.images, FEWEST):
        yield (
            f"There are {method.head.prototypes} prototypes and {facts.images} images, so that "
            f"each image can have its own; fewer (method.head.prototypes) cost less and compare "
            f"more."
        )
    local = max(method.views.local_sizes, default=0)
    if sum(method.views.local_counts) and 0 < facts.side < local:
        yield (
            f"Local crops of {local} pixels are larger than the images, of {facts.side}: smaller "
            f"ones (method.views.local_sizes) cost less and lose nothing."
        )
    if method.head.batch_norm and settled(config.train.batch) < FEW_NORMED:
        yield (
            f"Batch norm in the heads takes mean and deviation from {settled(config.train.batch)} "
            f"images; train.batch {FEW_NORMED} or more, or method.head.batch_norm false, is "
            f"steadier."
        )
