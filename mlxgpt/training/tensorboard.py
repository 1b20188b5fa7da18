"""TensorBoard's event files beside metrics.jsonl, by tensorboardX, which the extra `tensorboard` installs."""

import importlib.util
import math
import time
from pathlib import Path
from typing import Any

from mlxgpt.errors import UsageError
from mlxgpt.training.panel import clean

FOLDER = "tensorboard"  # in a run's `training`
KEYS = {
    "train": ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_bytes", "cache_bytes"),
    "evaluation": ("val_loss", "val_bpb"),
}


def require() -> None:
    """Raise UsageError where tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UsageError("--tensorboard needs tensorboardX: pip install 'mlxgpt[tensorboard]'")


class Board:
    """Writes the numbers and samples of a run's records as TensorBoard reads them."""

    def __init__(self, training: Path, step: int | None = None) -> None:
        """Write into `training`/tensorboard; what is there of steps after `step` is marked as taken back."""
        self._folder = training / FOLDER
        self._open(step)

    def _open(self, step: int | None) -> None:
        from tensorboardX import SummaryWriter

        purged = None if step is None else step + 1
        own = f".{time.time_ns()}"  # tensorboardX's names tell seconds apart, and two files of one name would be one
        self._writer: Any = SummaryWriter(str(self._folder), purge_step=purged, filename_suffix=own)

    def write(self, record: dict[str, Any]) -> None:
        """Add what a record of metrics.jsonl says."""
        kind, step = record["kind"], record["step"]
        for key in KEYS.get(kind, ()):
            value = record.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{kind}/{key}", value, step)
        if record.get("sample"):
            self._writer.add_text("sample", f"```\n{clean(record['sample'])}\n```", step)
        if kind == "evaluation":
            self._writer.flush()

    def rewind(self, step: int) -> None:
        """Take back what was written of steps after `step`."""
        self.close()
        self._open(step)

    def close(self) -> None:
        """End the file."""
        self._writer.close()
