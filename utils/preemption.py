"""SIGTERM, by which a scheduler such as Slurm announces that it wants the machine back."""

import signal
from types import FrameType

PREEMPTED = 75  # exit code: EX_TEMPFAIL of <sysexits.h>, "try again later"


class Preempted(Exception):
    """The run ends early because it was told to. The message says where it stands."""


class Preemption:
    """Within this context SIGTERM ends the script at once, or from `defer` on waits until the work is safe to leave.

    Outside of the context nothing ever sets `requested`.

    Args:
        before: what SIGTERM comes before, unless it is deferred.
    """

    def __init__(self, before: str = "training began") -> None:
        self.before = before
        self.requested = False
        self._deferred = False

    def __enter__(self) -> "Preemption":
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def defer(self) -> None:
        """From now on SIGTERM only sets `requested`."""
        self._deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first and not self._deferred:  # a later one finds the script on its way out
            raise Preempted(f"stopped by SIGTERM before {self.before}; run the same command again")
