"""SIGTERM, by which a scheduler such as Slurm announces that it wants the machine back."""

import signal
from types import FrameType, TracebackType


class Preempted(Exception):
    """The run ends early because it was told to. The message says where it stands."""


class Preemption:
    """Within this context SIGTERM ends the script at once, or from `defer` on waits until the work is safe to leave.

    Outside of the context nothing ever sets `requested`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def __enter__(self) -> "Preemption":
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def defer(self) -> None:
        """From now on SIGTERM only sets `requested`."""
        self._deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Preempted("stopped by SIGTERM before training began; run the same command again")
