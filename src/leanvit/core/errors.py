"""Failures of a run, as opposed to mistakes in a request, which are ValueErrors."""


class RunError(RuntimeError):
    """A run could not go on; the message says why and what is safe."""


class Stopped(RunError):
    """A signal asked a run to stop; it saved first."""

    def __init__(self, text: str, signal: int) -> None:
        super().__init__(text)
        self.signal = signal


class DerailedError(RunError):
    """A run learns no more as it should; `step` is where that was seen."""

    def __init__(self, text: str, step: int) -> None:
        super().__init__(text)
        self.step = step


class NonFiniteError(DerailedError):
    """A loss or a gradient was not a number; the weights are those before it."""


class SpikeError(DerailedError):
    """The loss jumped far above its level; the weights are those before it."""


class CollapseError(DerailedError):
    """The features stopped saying anything."""


class CheckpointError(RunError):
    """A checkpoint could not be written; those before it are as they were."""


class GoneError(RunError):
    """Another process of the run ended, or did not come; its own error says why."""
