"""A run's own state on disk: weights, optimizer, position. Each checkpoint is a folder, whole or not there."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlxgpt import files
from mlxgpt.errors import Error
from mlxgpt.models import Model
from mlxgpt.models.layers import named_parameters


@dataclass
class Position:
    """Where a run stands: steps done, seconds they took, evaluations done, the best one's loss and step."""

    step: int = 0
    elapsed: float = 0.0
    evaluations: int = 0
    best_loss: float | None = None
    best_step: int = 0


def _folder(run: Path, step: int) -> Path:
    return run / "training" / f"checkpoint-{step:08d}"


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run folder, or None."""
    return max(run.glob("training/checkpoint-*"), default=None)


def newest(run: Path) -> Path:
    """`latest`, where there must be one. Raises Error."""
    found = latest(run)
    if found is None:
        raise Error(f"{run} has no checkpoint to resume from: start the run again with --force")
    return found


def save(run: Path, model: Model, optimizer: optim.Optimizer, position: Position) -> Path:
    """Write a checkpoint and then remove the ones before it. Raises Error; the one before then stays whole."""
    path = _folder(run, position.step)
    older = [p for p in run.glob("training/checkpoint-*") if p != path]
    older += run.glob("training/.checkpoint-*")  # a killed process's, half written
    if not path.exists():
        with files.folder(path) as partial:
            mx.save_safetensors(str(partial / "model.safetensors"), named_parameters(model))
            mx.save_safetensors(str(partial / "optimizer.safetensors"), dict(tree_flatten(optimizer.state)))
            files.write_json(partial / "state.json", asdict(position))
    for old in older:
        shutil.rmtree(old, ignore_errors=True)
    return path


def restore(path: Path, model: Model, optimizer: optim.Optimizer) -> Position:
    """Put a checkpoint's weights and optimizer state back, bit for bit. Raises Error when it is damaged."""
    table = files.read_json(path / "state.json")
    try:
        position = Position(**table)
        weights = mx.load(str(path / "model.safetensors"))
        state = mx.load(str(path / "optimizer.safetensors"))
        model.load_weights(list(weights.items()))  # type: ignore[union-attr]
        optimizer.state = tree_unflatten(list(state.items()))  # type: ignore[union-attr]
        mx.eval(model.state, optimizer.state)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise Error(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    return position
