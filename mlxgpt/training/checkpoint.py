"""A run's own state on disk: weights, optimizer, position. Each checkpoint is a folder, whole or not there, and knows
the hashes of its files."""

import hashlib
import re
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlxgpt import files
from mlxgpt.errors import Error
from mlxgpt.models import Model

MANIFEST = "manifest.json"
CONTENTS = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class Position:
    """Where a run stands: steps, seconds they took and tokens they read, evaluations, the best one's loss and step."""

    step: int = 0
    elapsed: float = 0.0
    evaluations: int = 0
    best_loss: float | None = None
    best_step: int = 0
    lr_scale: float = 1.0  # of the recipe's rate, lowered by each roll-back
    tokens: int = 0


def saved(run: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    return sorted(p for p in run.glob("training/checkpoint-*") if re.fullmatch(r"checkpoint-\d{8,}", p.name))


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run folder, or None."""
    return max(saved(run), key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def newest(run: Path) -> Path:
    """`latest`, where there must be one. Raises Error."""
    found = latest(run)
    if found is None:
        raise Error(f"{run} has no checkpoint to resume from: start the run again with --force")
    return found


def trained_parameters(model: Model) -> dict[str, mx.array]:
    """What a checkpoint holds of a model: all but what is frozen, by the names in the tree."""
    return dict(tree_flatten(model.trainable_parameters()))


def digest(path: Path) -> str:
    """A file's BLAKE2b hash, 256 bits in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


class Writer:
    """Writes a run's checkpoints in a thread of its own while training goes on, one at a time.

    MLX's arrays do not change: what a checkpoint holds is what they were when it was asked for, and it costs the
    memory of the state once more until it is written. `keep` newest ones stay.
    """

    def __init__(self, run: Path, keep: int = 1) -> None:
        self.run, self.keep = run, keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:
                raise

    def save(self, model: Model, optimizer: optim.Optimizer, position: Position) -> None:
        """Begin to write a checkpoint, once the one before is written. Raises Error when that one failed."""
        self.wait()
        path = self.run / "training" / f"checkpoint-{position.step:08d}"
        if path.exists():
            return
        parameters, state = trained_parameters(model), dict(tree_flatten(optimizer.state))
        mx.eval(parameters, state)
        table = asdict(position)
        self._thread = threading.Thread(target=self._write, args=(path, parameters, state, table), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is left to write. Raises Error when it could not be; the one before is then whole."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def _write(self, path: Path, parameters: dict, state: dict, table: dict) -> None:
        try:
            older = [p for p in saved(self.run) if p != path]
            older = older[: max(0, len(older) + 1 - self.keep)]
            half_written = list(self.run.glob("training/.checkpoint-*"))  # a killed process's
            with files.folder(path) as partial:
                mx.save_safetensors(str(partial / "model.safetensors"), parameters)
                mx.save_safetensors(str(partial / "optimizer.safetensors"), state)
                (partial / "state.json").write_text(files.to_json(table), encoding="utf-8")
                hashes = {name: digest(partial / name) for name in CONTENTS}
                (partial / MANIFEST).write_text(files.to_json(hashes), encoding="utf-8")
        except Exception as error:  # of whatever kind: it is raised where training goes on
            self._error = error
            return
        for old in older + half_written:
            shutil.rmtree(old, ignore_errors=True)


def restore(path: Path, model: Model, optimizer: optim.Optimizer) -> Position:
    """Put a checkpoint's weights and optimizer state back, bit for bit. Raises Error when it is damaged."""
    hashes = files.read_json(path / MANIFEST)
    try:
        wrong = [name for name in CONTENTS if digest(path / name) != hashes[name]]
        if wrong:
            raise ValueError(f"{wrong[0]} is not what was written")
        position = Position(**files.read_json(path / "state.json"))
        weights = mx.load(str(path / "model.safetensors"))
        state = mx.load(str(path / "optimizer.safetensors"))
        shapes = [{n: (w.shape, w.dtype) for n, w in of.items()} for of in (weights, trained_parameters(model))]  # type: ignore[union-attr]
        if shapes[0] != shapes[1]:
            raise ValueError("model.safetensors is not of this model")
        model.load_weights(list(weights.items()), strict=False)  # type: ignore[union-attr]
        optimizer.state = tree_unflatten(list(state.items()))  # type: ignore[union-attr]
        mx.eval(model.state, optimizer.state)
    except FileNotFoundError as error:
        raise Error(f"{path} is damaged: {Path(error.filename).name} is missing{_before(path)}") from None
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise Error(f"{path} is damaged: {str(error).splitlines()[0]}{_before(path)}") from None
    return position


def _before(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    older = [p for p in saved(path.parents[1]) if p.name < path.name]
    return f"; remove it to go on from {older[-1].name}" if older else "; start the run again with --force"
