"""The training loop: batches in, one compiled step after the other, evaluations, checkpoints, a model folder out."""

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from mlxgpt import backend, files, models, weights
from mlxgpt.config import OptimizerConfig, Recipe, require
from mlxgpt.data.batches import Batches
from mlxgpt.data.shards import Shards
from mlxgpt.errors import Error
from mlxgpt.generation.engine import collect, generate
from mlxgpt.generation.sampling import Sampling
from mlxgpt.kernels.cross_entropy import cross_entropy
from mlxgpt.models.layers import named_parameters
from mlxgpt.training import checkpoint, optimizers
from mlxgpt.training.evaluation import Evaluator
from mlxgpt.training.panel import Panel
from mlxgpt.training.schedule import learning_rate


def make_step(
    model: models.Model, optimizer: optim.Optimizer, clip: float, dtype: mx.Dtype
) -> Callable[[list[tuple[mx.array, mx.array]]], tuple[mx.array, mx.array]]:
    """A function from micro-batches, pairs int32 [B, T], to (mean loss, gradient norm before clipping); it updates
    the model and the optimizer. Compute runs in `dtype`, the model's own weights stay as they are.

    One micro-batch is one compiled graph: loss, gradients, clipping, update. Several are a compiled gradient each,
    averaged, and a compiled update.
    """
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state, mx.random.state]

    def loss_of(parameters: dict, x: mx.array, y: mx.array) -> mx.array:
        model.update(tree_map(lambda p: p.astype(dtype), parameters))
        return cross_entropy(model(x), y).mean()

    def gradients(x: mx.array, y: mx.array) -> tuple[mx.array, dict]:
        parameters = model.trainable_parameters()
        result = mx.value_and_grad(loss_of)(parameters, x, y)
        model.update(parameters)
        return result

    def update(grads: dict) -> mx.array:
        clipped, norm = optim.clip_grad_norm(grads, clip)
        grads = clipped if clip > 0 else grads
        model.update(optimizer.apply_gradients(grads, model.trainable_parameters()))
        return norm

    def whole(x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        loss, grads = gradients(x, y)
        return loss, update(grads)

    whole_step = mx.compile(whole, inputs=state, outputs=state)
    gradient_step = mx.compile(gradients, inputs=state, outputs=state)
    update_step = mx.compile(update, inputs=state, outputs=state)

    def step(batches: list[tuple[mx.array, mx.array]]) -> tuple[mx.array, mx.array]:
        if len(batches) == 1:
            return whole_step(*batches[0])
        total: dict = {}
        mean = mx.array(0.0)
        for x, y in batches:
            loss, grads = gradient_step(x, y)
            grads = tree_map(lambda g: g / len(batches), grads)
            total = tree_map(mx.add, total, grads) if total else grads
            mean = mean + loss / len(batches)
            mx.eval(total, mean)
        return mean, update_step(total)

    return step


@dataclass
class Clock:
    """How far a run is, by steps or by time. Progress goes from 0 to 1."""

    steps: int
    minutes: float
    elapsed_before: float = 0.0
    started: float = 0.0

    def start(self) -> None:
        """Begin to count."""
        self.started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds trained, earlier parts of a resumed run counted in."""
        return self.elapsed_before + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """The share of the run that is done when `step` steps are."""
        return min(1.0, self.elapsed / (60 * self.minutes) if self.minutes else step / self.steps)

    def rate(self, config: OptimizerConfig, step: int) -> float:
        """The learning rate of step `step`."""
        warmup = 0.0 if self.minutes else min(0.99, config.warmup_steps / self.steps)
        return learning_rate(config, step, self.progress(step), warmup)


class Metrics:
    """`metrics.jsonl`: one JSON object a line; a resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, keep_until: int | None) -> None:
        kept = ""
        if keep_until is not None and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= keep_until)
        self._file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by `close`)
        self._file.write(kept)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; a number that JSON lacks (NaN) becomes null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(finite) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C (and SIGTERM) once: the yielded function turns true. A second Ctrl-C raises KeyboardInterrupt."""
    asked = False

    def ask(number, frame) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("\nmlxgpt: stopping after this step with a checkpoint; Ctrl-C again aborts", file=sys.stderr)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Summary:
    """What a run reached."""

    step: int
    elapsed: float
    val_loss: float | None
    val_bpb: float | None
    best_step: int
    interrupted: bool


class Run:
    """One training run in a folder `out`: its model, optimizer, data and position."""

    def __init__(self, recipe: Recipe, shards: Shards, out: Path, resume: bool) -> None:
        config = _fit_vocabulary(models.config_from_table(recipe.model), shards.tokenizer.vocab_size)
        train = recipe.train
        require(
            train.sequence_length <= config.context,
            f"train.sequence_length ({train.sequence_length}) is longer than the model's context ({config.context})",
        )
        self.recipe, self.shards, self.out = recipe, shards, out
        self.batches = Batches(shards.tokens("train"), train.batch_size, train.sequence_length, train.seed)
        mx.random.seed(train.seed)
        self.model = models.build(config)
        self.model.init_weights()
        self.optimizer = optimizers.make(recipe.optimizer)
        self.step = make_step(self.model, self.optimizer, recipe.optimizer.clip, backend.compute_dtype(train.dtype))
        self.position = checkpoint.Position()
        newest = checkpoint.latest(out) if resume else None
        if resume and newest is None:
            raise Error(f"{out} has no checkpoint to resume from")
        if newest is not None:
            self.position = checkpoint.restore(newest, self.model, self.optimizer)
        else:
            self._begin()
        mx.eval(self.model.state, self.optimizer.state)
        tokens = shards.tokens("validation")
        self.evaluator = (
            Evaluator(self.model, tokens, shards.bytes_in("validation"), train.batch_size, train.sequence_length)
            if len(tokens) > 1
            else None
        )

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.size for p in named_parameters(self.model).values())

    def _begin(self) -> None:
        training = self.out / "training"
        try:
            training.mkdir(parents=True, exist_ok=True)
            weights.save_tokenizer_and_config(self.out, self.model.config, self.shards.tokenizer)
            shutil.copyfile(self.shards.folder / "validation.bin", training / "validation.bin")
            files.write_json(training / "data.json", self.shards.manifest)
        except OSError as error:
            raise Error(f"{self.out} cannot be written: {files.reason(error, self.out.parent)}") from None

    def train(self, panel: Panel) -> Summary:
        """Train to the end, or until interrupted. Raises Error when the loss is no longer a number."""
        train, clock = (
            self.recipe.train,
            Clock(self.recipe.train.steps, self.recipe.train.minutes, self.position.elapsed),
        )
        metrics = Metrics(self.out / "training" / "metrics.jsonl", self.position.step or None)
        tokens_a_step = train.batch_size * train.sequence_length * train.accumulation
        last: tuple[float | None, float | None] = (None, None)
        clock.start()
        mark = time.monotonic()
        with stop_on_interrupt() as asked:
            while clock.progress(self.position.step) < 1 and not asked():
                step = self.position.step
                rate = clock.rate(self.recipe.optimizer, step)
                loss, norm = self._one_step(step, rate)
                now = time.monotonic()
                record = {
                    "kind": "train", "step": step + 1, "loss": loss, "lr": rate, "grad_norm": norm,
                    "tokens": (step + 1) * tokens_a_step, "tokens_per_second": tokens_a_step / (now - mark),
                    "elapsed": clock.elapsed, "memory_bytes": mx.get_peak_memory(),
                    "progress": clock.progress(step + 1),
                }  # fmt: skip
                metrics.write(record)
                panel.train(record)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    metrics.close()
                    raise Error(self._diverged(step + 1, loss, norm))
                self.position.step, self.position.elapsed = step + 1, clock.elapsed
                due = math.floor(clock.progress(step + 1) * train.evaluations + 1e-9)
                if due > self.position.evaluations:
                    self.position.evaluations = due
                    last = self._evaluate(clock, metrics, panel)
                mark = time.monotonic()
            interrupted = clock.progress(self.position.step) < 1
            self.position.elapsed = clock.elapsed
            checkpoint.save(self.out, self.model, self.optimizer, self.position)
            if interrupted and not (self.out / "model.safetensors").exists():
                self._save_model()
        metrics.close()
        best = self.position.best_step
        return Summary(self.position.step, clock.elapsed, *last, best, interrupted)

    def _one_step(self, step: int, rate: float) -> tuple[float, float]:
        """Step number `step`: everything random in it is a function of (seed, step). Returns loss and gradient norm."""
        train = self.recipe.train
        mx.random.seed(train.seed * 1_000_003 + step)
        self.optimizer.learning_rate = rate
        first = step * train.accumulation
        batches = [self.batches.batch(first + i) for i in range(train.accumulation)]
        self.model.train()
        loss, norm = self.step([(mx.array(x), mx.array(y)) for x, y in batches])
        mx.eval(loss, norm, self.model.state, self.optimizer.state)
        return float(loss.item()), float(norm.item())  # type: ignore[arg-type]

    def _evaluate(self, clock: Clock, metrics: Metrics, panel: Panel) -> tuple[float | None, float | None]:
        self.model.eval()
        record: dict[str, Any] = {"kind": "evaluation", "step": self.position.step, "best": True}
        record |= {"val_loss": None, "val_bpb": None}
        if self.evaluator is not None:
            result = self.evaluator.run()
            best = self.position.best_loss is None or result.val_loss < self.position.best_loss
            record |= {"val_loss": result.val_loss, "val_bpb": result.val_bpb, "best": best}
        record |= {"sample": self._sample(), "elapsed": clock.elapsed}
        if record["best"]:
            self._save_model()
            self.position.best_loss, self.position.best_step = record["val_loss"], self.position.step
        self.position.elapsed = clock.elapsed
        checkpoint.save(self.out, self.model, self.optimizer, self.position)
        metrics.write(record)
        panel.evaluation(record)
        return record["val_loss"], record["val_bpb"]

    def _save_model(self) -> None:
        weights.save_weights(self.out / "model.safetensors", weights.to_disk(self.model))

    def _sample(self) -> str:
        """Text the model writes after the opening of the validation split; the same seed at every evaluation."""
        count, tokenizer = self.recipe.train.sample_tokens, self.shards.tokenizer
        split = "validation" if self.evaluator is not None else "train"
        prompt = self.shards.tokens(split)[: max(1, min(16, self.model.config.context // 2))].tolist()
        if count == 0:
            return ""
        sampling = Sampling(temperature=0.8, top_k=min(50, tokenizer.vocab_size - 1))
        answer = collect(generate(self.model, tokenizer, prompt, count, sampling, seed=self.recipe.train.seed))
        return tokenizer.decode(prompt).decode("utf-8", "replace") + answer.text

    def _diverged(self, step: int, loss: float, norm: float) -> str:
        newest = checkpoint.latest(self.out)
        kept = f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written yet"
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        return f"training diverged at step {step}: {what}; {kept}; lower optimizer.lr or set optimizer.clip"


def _fit_vocabulary(config: models.Config, vocab_size: int) -> models.Config:
    """`config` with the tokenizer's vocabulary where it names none. Raises UsageError where it is too small."""
    from dataclasses import replace

    require(
        config.vocab_size == 0 or config.vocab_size >= vocab_size,
        f"model.vocab_size ({config.vocab_size}) is smaller than the tokenizer's vocabulary ({vocab_size})",
    )
    return replace(config, vocab_size=config.vocab_size or vocab_size)
