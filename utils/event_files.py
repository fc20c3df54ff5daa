"""The log of a training run as event files, which TensorBoard shows while it trains."""

from pathlib import Path
from typing import Any

from utils.extras import load_extra


class EventFiles:
    """The event files of one run, in a folder: each number of a log record, with the epoch as its step.

    A run that goes on writes all its epochs anew, in place of the files that it finds, so that no step comes twice.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        load_extra("tensorboard", where="tensorboard")
        self._new_writer = load_extra("torch.utils.tensorboard", where="tensorboard").SummaryWriter
        self.folder = folder
        self._writer: Any = None
        self._written = 0  # records

    def write(self, history: list[dict[str, Any]]) -> None:
        """Add what `history` has beyond the records that were written."""
        if self._writer is None:
            for earlier in self.folder.glob("events.out.tfevents.*"):
                earlier.unlink()
            self._writer = self._new_writer(str(self.folder))
        for record in history[self._written :]:
            for name, value in record.items():
                if name != "epoch" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, record.get("epoch", 0))  # a closed form has none
        self._written = len(history)
        self._writer.flush()

    def close(self) -> None:
        """End the files."""
        if self._writer is not None:
            self._writer.close()
