"""A look at the features of a network while it trains: does it learn?"""

from leanvit.analysis.rank import effective_rank
from leanvit.backbones.base import Backbone, evaluating
from leanvit.config import WatchConfig
from leanvit.data.images import load_images, usual_crop
from leanvit.data.sources import Source, at_most, hold_out, open_validation, require_classes
from leanvit.evaluation.features import Described, describe, describe_network
from leanvit.evaluation.knn import knn_accuracy


class Watch:
    """Looks at a fixed choice of images: k-NN if they have classes, and effective rank.

    Its figures follow a run; `leanvit evaluate knn` on all images is what counts in the end.
    Raises ValueError if images to test on were named and cannot be classified.
    """

    def __init__(
        self, backbone: Backbone, source: Source, config: WatchConfig, *, batch: int, workers: int
    ) -> None:
        self.backbone, self.config, self.batch, self.workers = backbone, config, batch, workers
        self.size = backbone.config.image_size
        self.crop = usual_crop(source, self.size) if config.images else 1.0
        bank, test = _both(source, config)
        self.bank = at_most(bank, config.images)
        self.test = None if test is None else at_most(test, config.images)

    def __call__(self) -> dict[str, float]:
        """Return the figures of the network as it is now."""
        if not self.config.images:
            return {}
        bank = self._see(self.bank)
        found = {"effective_rank": effective_rank(bank.rows["features"])}
        if self.test is not None:
            test = self._see(self.test)
            both = (bank.rows["features"], bank.target, test.rows["features"], test.target)
            found["knn"] = knn_accuracy(*both, ks=(self.config.k,))[self.config.k][0]
        return found

    def _see(self, source: Source) -> Described:
        images = load_images(
            source, size=self.size, crop=self.crop, batch=self.batch, workers=self.workers
        )
        with evaluating(self.backbone):
            return describe(images, {"features": describe_network(self.backbone)})


def _both(source: Source, config: WatchConfig) -> tuple[Source, Source | None]:
    """Return images to learn from, and images to test on where there are classes."""
    if config.val:
        require_classes(source)
        test = open_validation(config.val, source)
        assert test is not None
        require_classes(test)
        return source, test
    if len(source.classes) < 2:
        return source, None
    test = source.validation()
    if test is not None and (test.targets >= 0).all():
        return source, test
    try:
        return hold_out(source)
    except ValueError:  # a class of a single image: there is nothing to hold out
        return source, None
