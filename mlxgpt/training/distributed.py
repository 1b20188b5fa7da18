"""Data parallel training: what the processes of one run tell each other, over whatever `mlx.launch` started them with.

Each process (rank) computes the gradient of its share of a step's sequences; the mean over the ranks is the step's.
All that decides what comes next (the loss, the time, a wish to stop) is the same on every rank, so all take the same
steps, evaluations and ends. Rank 0 alone has the run's folder. A group of one communicates nothing.
"""

import dataclasses
import hashlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlxgpt.config import TrainConfig, require
from mlxgpt.data.shards import Shards
from mlxgpt.errors import Error

T = TypeVar("T")
PATIENCE = 600.0  # seconds that a rank waits for the others within a step: not every back end tells that one is gone
GONE = "another process of this run is gone ({}); --resume goes on from the last checkpoint"


class Group:
    """The ranks of a run; `mlx` is MLX's own group, `here` how many of them are on this rank's machine. Every method
    but `leads` is called by all ranks, in one order.

    Raises Error where another rank is gone.
    """

    def __init__(self, mlx: mx.distributed.Group) -> None:
        self.mlx, self.rank, self.size = mlx, mlx.rank(), mlx.size()
        self._deadline: float | None = None
        if self.size > 1:
            threading.Thread(target=self._watch, name="lost ranks", daemon=True).start()
        machine = socket.gethostname()
        self.here = self.tell(machine).count(machine)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone has the run's folder and speaks."""
        return self.rank == 0

    def together(self, work: Callable[[], T]) -> T:
        """`work` done by every rank, however long it takes. Where it raises Error on one, it does on all, and says on
        which."""
        if self.size == 1:
            return work()
        failed: Error | None = None
        try:
            result = work()
        except Error as error:
            failed = error
        messages = self.tell(str(failed) if failed else None)
        if failed:
            raise failed
        for rank, message in enumerate(messages):
            if message is not None:
                raise Error(f"on rank {rank}: {message}")
        return result

    def first(self, work: Callable[[], T]) -> T:
        """What `work`, done by rank 0 alone, returns: something that JSON holds. Raises as `together`."""
        result = self.together(work if self.leads else lambda: None)
        return self.tell(result)[0] if self.size > 1 else result  # type: ignore[return-value]

    def tell(self, value: Any) -> list[Any]:
        """Every rank's value, by rank: something that JSON holds."""
        if self.size == 1:
            return [value]
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = self._gather(np.array([len(text)], np.int64).view(np.uint8)).view(np.int64)[:, 0]
        texts = self._gather(np.pad(text, (0, sizes.max() - len(text))))
        return [json.loads(t[:n].tobytes()) for t, n in zip(texts, sizes, strict=True)]

    def numbers(self, *values: float) -> np.ndarray:
        """Every rank's numbers, exactly: float64 [ranks, numbers]."""
        mine = np.array(values, np.float64)
        if self.size == 1:
            return mine[None]
        with self._impatient():
            return self._gather(mine.view(np.uint8)).view(np.float64)

    def any(self, wish: bool) -> bool:
        """Whether one rank at least has the wish."""
        return wish if self.size == 1 else bool(self.numbers(wish).any())

    def spread(self, tree: dict) -> dict:
        """Rank 0's arrays, bit for bit; the others' trees have arrays of the same names, shapes and types."""
        # by name: a tree that was read from a checkpoint has another order than one that was made
        flat = sorted(dict(tree_flatten(tree)).items())
        if self.size == 1:
            return tree
        got = [(name, mx.array(self._gather(np.array(x.reshape(-1).view(mx.uint8)))[0])) for name, x in flat]
        return tree_unflatten([(n, g.view(x.dtype).reshape(x.shape)) for (n, g), (_, x) in zip(got, flat, strict=True)])

    def average(self, gradients: dict) -> dict:
        """The mean of the ranks' gradients, in sums of 32 MiB; they have been evaluated.

        A collective that waits within a graph holds Metal's queue, which the system ends after some seconds.
        """
        averaged = nn.average_gradients(gradients, self.mlx)
        with self._impatient():
            self._evaluate(list(dict(tree_flatten(averaged)).values()))
        return averaged

    def _gather(self, mine: np.ndarray) -> np.ndarray:
        """Every rank's bytes: uint8 [n] -> [ranks, n]."""
        gathered = mx.distributed.all_gather(mx.array(mine)[None], group=self.mlx)
        self._evaluate([gathered])
        return np.array(gathered)

    def _evaluate(self, arrays: Sequence[mx.array]) -> None:
        try:
            mx.eval(arrays)
        except RuntimeError as error:  # the ring's sockets were closed
            raise Error(GONE.format(str(error).splitlines()[0])) from None

    @contextmanager
    def _impatient(self) -> Iterator[None]:
        """Within it the process ends where another lets it wait for longer than `PATIENCE`."""
        self._deadline = time.monotonic() + PATIENCE
        try:
            yield
        finally:
            self._deadline = None

    def _watch(self) -> None:
        """In a thread: MLX may wait for ever within a collective, where no signal and no exception reaches it."""
        while True:
            time.sleep(min(1.0, PATIENCE / 4))
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                silent = f"it has been silent for {PATIENCE:.0f} s"
                print(f"mlxgpt: error: {GONE.format(silent)}", file=sys.stderr, flush=True)
                os._exit(1)


def join() -> Group:
    """The group that this process was started in, of one where it was started alone. Raises Error."""
    try:
        return Group(mx.distributed.init())
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise Error(f"the processes of this run cannot reach each other ({why}); see mlx.launch's hostfile") from None


def share(train: TrainConfig, ranks: int) -> TrainConfig:
    """`train` for one of so many ranks: its share of a step's batch_size * accumulation sequences, in the fewest passes
    of at most batch_size. Raises UsageError where they do not divide."""
    sequences = train.batch_size * train.accumulation
    require(
        sequences % ranks == 0,
        f"the {sequences} sequences of a step (train.batch_size * train.accumulation) do not divide among {ranks} "
        "processes: set train.batch_size to a multiple of that",
    )
    mine = sequences // ranks
    passes = next(n for n in range(1, mine + 1) if mine % n == 0 and mine // n <= train.batch_size)
    return dataclasses.replace(train, batch_size=mine // passes, accumulation=passes)


def require_same(group: Group, shards: Shards, base: dict[str, str] | None) -> None:
    """Raise Error where a rank's corpus or base model (the hashes of its files) is another than rank 0's."""
    record = shards.record()
    corpora = [record, *record["mix"]]
    texts = [[c["tokenizer"], [[d["sha256"], d["split"], d["tokens"]] for d in c["sources"]]] for c in corpora]
    digest = hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()
    told = group.tell([digest, sum(record["documents"].values()), sum(record["bytes"].values()), base])
    for rank, (its, files, size, its_base) in enumerate(told):
        if its != told[0][0]:
            raise Error(
                f"rank {rank} has another corpus than rank 0: {files:,} files of {size:,} bytes, not {told[0][1]:,} of "
                f"{told[0][2]:,}; give every machine the same files and the same version of mlxgpt"
            )
        if its_base != told[0][3]:
            raise Error(f"rank {rank} has another base model (init.model) than rank 0; give every machine the same")
