"""The images that a run could not read: written down once each, and too many end the run."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from leanvit.core.console import warn
from leanvit.core.files import spared
from leanvit.data.batch import Unreadable, ViewBatch


class UnreadableList:
    """A file of images that others had to stand in for, one JSON object a line."""

    def __init__(self, path: Path, images: int, most: float) -> None:
        """images: how many there are; most: the percentage of them that may be unreadable."""
        self.path, self._images, self._most = path, images, most

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> set[str]:
        """Return the names of those that were written down, by other processes too."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {json.loads(line)["name"] for line in lines}

    def noting(self, batches: Iterable[ViewBatch]) -> Iterator[ViewBatch]:
        """Pass batches on; write down which images had to be replaced, and stop at too many."""
        known = self.names()
        for batch in batches:
            for entry in batch.unreadable:
                if entry.name not in known:
                    known |= self.names()  # other processes write there too
                if not known:
                    warn(
                        f"The image {entry.name!r} cannot be read ({entry.error}); another one "
                        f"stands in. All such images are listed in {self.path}."
                    )
                if entry.name not in known:
                    known.add(entry.name)
                    self._write(entry)
                self._require_few(len(known), entry)
            yield batch

    def _write(self, entry: Unreadable) -> None:
        with spared(self.path), self.path.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")

    def _require_few(self, bad: int, last: Unreadable) -> None:
        percent = 100 * bad / self._images
        if percent <= self._most:
            return
        raise ValueError(
            f"{bad} of {self._images} images cannot be read, more than the {self._most:g} % that "
            f"data.max_unreadable allows; {self.path} lists them, the last is {last.name!r} "
            f"({last.error}), and `leanvit check` finds the rest. A larger percentage, "
            f"--data.max_unreadable {math.ceil(percent) + 1}, would go on with --resume."
        )
