"""Cross-entropy of images with a class, mixed ones too (DeiT, arXiv 2012.12877).

Letters: B images, C classes.
"""

from torch import Tensor
from torch.nn import functional

from leanvit.core.precision import full, unrounded
from leanvit.losses.view import Mixing


def class_distillation(
    student: Tensor, teacher: Tensor, *, hard: bool, temperature: float
) -> Tensor:
    """Return how far the logits [B, C] of a student are from those of a teacher (DeiT, section 4).

    hard: cross-entropy with the class that the teacher tells; else the squared temperature times
    the mean KL divergence, both distributions at that temperature. DeiT's code divides the latter
    by C besides.
    """
    with unrounded(student):
        student, teacher = full(student), full(teacher)
        if hard:
            return functional.cross_entropy(student, teacher.argmax(1))
        ours, theirs = ((x / temperature).log_softmax(1) for x in (student, teacher))
        distance = functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return temperature**2 * distance


def class_loss(
    logits: Tensor, target: Tensor, mixing: Mixing | None, *, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of logits [B, C], and the share of images that were told.

    target: [B] their classes; mixing: with whom the images were mixed, None if they were not;
    smoothing: share of the target that is spread over all classes. A mixed image has both of its
    classes, each with the share of its image, in the loss (which is that of soft targets, since
    cross-entropy is linear in them) and in what was told.
    """
    with unrounded(logits):
        logits = full(logits)
        told = logits.argmax(1)

        def against(classes: Tensor) -> tuple[Tensor, Tensor]:
            loss = functional.cross_entropy(logits, classes, label_smoothing=smoothing)
            return loss, (told == classes).to(logits.dtype).mean()

        loss, right = against(target)
        if mixing is None:
            return loss, right
        other, right_other = against(target.index_select(0, mixing.partner))
        share = mixing.own[0].to(logits.dtype)
        return share * loss + (1 - share) * other, share * right + (1 - share) * right_other
