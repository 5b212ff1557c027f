"""How a run looks at what it learned, in numbers and in pictures of its own images."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from leanvit.analysis.match_pictures import matched_regions
from leanvit.analysis.matches import Matches, match_stereo, match_views
from leanvit.analysis.reconstructions import Reconstructions
from leanvit.analysis.watch import Watch
from leanvit.config import RunConfig, settled
from leanvit.core.files import spared
from leanvit.data.batch import Unreadable
from leanvit.data.decode import read_image
from leanvit.data.sources import SAMPLE, Source
from leanvit.folder import MATCHES, RECONSTRUCTIONS
from leanvit.methods.base import Method


class Looks:
    """Sees a method's networks as they are whenever it is asked."""

    def __init__(
        self, method: Method, source: Source, config: RunConfig, out: Path, *, workers: int
    ) -> None:
        self.method, self.source, self.config, self.out = method, source, config, out
        self.watch = Watch(
            method.encoder(),
            source,
            config.watch,
            batch=max(settled(config.train.batch), 64),
            workers=workers,
        )
        data = config.data
        self.reconstructions = Reconstructions(
            method, source, out / RECONSTRUCTIONS, data.mean, data.std
        )

    def look(self) -> dict[str, float]:
        """Return what shows whether the run learns, for the network as it is now."""
        with spared(self.out / RECONSTRUCTIONS):
            self.reconstructions.draw()
        if not self.config.watch.images:
            return {}
        return self.watch() | {"correct_matches": self.match().accuracy}

    def draw_matches(self) -> float:
        """Draw the matched regions; return the percentage of right ones."""
        found = self.match()
        right = f"{found.accuracy:.0f} % lie within one region of the truth"
        with spared(path := self.out / MATCHES):
            matched_regions(
                *(found.left, found.right, found.pairs, path),
                grids=found.grids,
                correct=found.correct,
                title=f"{len(found.pairs)} most similar pairs; of all regions, {right}",
            )
        return found.accuracy

    def match(self) -> Matches:
        """Match regions of a stereo pair, if the images are the sample, or of two views."""
        encoder, views = self.method.encoder(), self.method.views()
        if self.config.data.source == SAMPLE:
            return match_stereo(encoder)
        assert views is not None
        view = views.groups[0][0]
        side = max(view.size, encoder.config.image_size)
        return match_views(encoder, _first_readable(self.source), replace(view, size=side))


def _first_readable(source: Source) -> Tensor:
    """Return the pixels of the first image that can be read; a finished run has read one."""
    for index in range(len(source)):
        found = read_image(source, index)
        if not isinstance(found, Unreadable):
            return found[0]
    raise ValueError("None of the images can be read.")
