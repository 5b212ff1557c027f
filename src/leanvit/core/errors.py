"""Failures of a run, as opposed to mistakes in a request, which are ValueErrors."""


class RunError(RuntimeError):
    """A run could not go on; the message says why and what is safe."""


class NonFiniteError(RunError):
    """A loss or a gradient was not a number; the weights are those before it."""


class CheckpointError(RunError):
    """A checkpoint could not be written; those before it are as they were."""


class GoneError(RunError):
    """Another process of the run ended, or did not come; its own error says why."""
