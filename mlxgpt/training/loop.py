"""The training loop: batches in, one compiled step after the other, evaluations, checkpoints, a model folder out."""

import dataclasses
import math
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxgpt import config, files, models
from mlxgpt.config import Recipe, require
from mlxgpt.data import batches
from mlxgpt.data.changes import Changes
from mlxgpt.data.shards import Mix, Shards
from mlxgpt.errors import Error
from mlxgpt.evaluation import Evaluation, Evaluator
from mlxgpt.generation.engine import Request, collect, generate
from mlxgpt.generation.sampling import Sampling
from mlxgpt.training import checkpoint, distributed, memory, optimizers, start, utilization
from mlxgpt.training.distributed import Group
from mlxgpt.training.metrics import Metrics, Unwritten, last_losses
from mlxgpt.training.panel import Panel
from mlxgpt.training.schedule import Clock, Shape, shape
from mlxgpt.training.step import make_step, training_dtype

# What a run writes beside `training`. None of an earlier run's stays: its tokenizer may have been another.
REPLACED = (
    "model.safetensors", "adapters.safetensors", "adapter_config.json", "config.json", "generation_config.json",
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "completion.json", "report.html",
)  # fmt: skip
SPIKE_WINDOW = 50  # losses
SMALLEST_SCALE = 1 / 32  # of the learning rate: where roll-backs end


@contextmanager
def stop_on_interrupt(*more: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Ctrl-C (and SIGTERM, and `more`) once: the yielded function turns true. A second one raises KeyboardInterrupt."""
    asked = False

    def ask(number, frame) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with suppress(OSError, RuntimeError):  # the terminal is gone, or a write to it was interrupted just now
            print("\nmlxgpt: stopping after this step with a checkpoint; Ctrl-C again aborts", file=sys.stderr)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, *more)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Summary:
    """What a run reached: steps, seconds of training, its last evaluation (None: none in this process)."""

    step: int
    elapsed: float
    val_loss: float | None
    val_bpb: float | None
    interrupted: bool


class Run:
    """One training run in a folder `out`: its model, optimizer, data and position.

    Every process of `group` has one, which takes the same steps; only its first knows `out`. Raises UsageError and
    Error for a recipe, a corpus or a checkpoint that cannot be trained with; nothing is written before `begin`.
    """

    def __init__(self, recipe: Recipe, shards: Shards, out: Path, resume: bool, group: Group | None = None) -> None:
        self.group = group = group or distributed.join()
        model_config = _fit_vocabulary(models.config_from_table(recipe.model), shards.tokenizer.vocab_size)
        train = recipe.train
        require(
            train.sequence_length <= model_config.context,
            f"train.sequence_length ({train.sequence_length}) is longer than the model's context "
            f"({model_config.context})",
        )
        self.recipe, self.shards, self.out = recipe, shards, out
        mine = dataclasses.replace(recipe, train=distributed.share(train, group.size))
        self.batches = batches.of_shards(shards, recipe.data, mine.train)
        self._seed(0)
        self.model, self.memory = group.together(lambda: start.build(mine, model_config, group.here))
        if train.auto_batch:
            found = group.together(lambda: memory.fitted(self.model, mine, group.here))
            size = min(group.tell(found.train.batch_size))
            passes = train.batch_size * train.accumulation // size
            train = dataclasses.replace(train, batch_size=size, accumulation=passes, auto_batch=False)
            self.recipe = recipe = dataclasses.replace(recipe, train=train)
            mine = dataclasses.replace(recipe, train=distributed.share(train, group.size))
            self.batches = batches.of_shards(shards, recipe.data, mine.train)
        self.mine = mine.train  # this process's share of a step
        self.optimizer = optimizers.make(recipe.optimizer)
        self.position = checkpoint.Position()
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        if resume:
            self._restore(lambda: checkpoint.newest(out))
        else:
            self._compile()
        self.writer = checkpoint.Writer(out, train.keep_checkpoints)
        self._kept_at = self.position.elapsed
        tokens = shards.tokens("validation")
        self.evaluator = (
            Evaluator(self.model, tokens, shards.bytes_in("validation"), mine.train.batch_size, train.sequence_length)
            if len(tokens) > 1
            else None
        )

    def _restore(self, path: Callable[[], Path]) -> None:
        """Have every process go on from the checkpoint that the first has there. Raises Error."""

        def read() -> tuple[dict[str, Any], list[float]]:
            start.check_base(self.out, self.recipe)
            position = checkpoint.restore(path(), self.model, self.optimizer)
            changes = files.read_table(self.out / "training" / "data.json").get("changes", [])
            if any(change.get("held_out", True) and change.get("step", 0) >= position.best_step for change in changes):
                position.best_loss = None  # it was of other text
            losses = last_losses(self.out / "training" / "metrics.jsonl", position.step, SPIKE_WINDOW)
            return dataclasses.asdict(position), losses

        position, losses = self.group.first(read)
        self.position = checkpoint.Position(**position)
        self._losses = deque(losses, SPIKE_WINDOW)
        # A checkpoint from before steps could differ in size does not say it.
        self.position.tokens = self.position.tokens or self.position.step * shape(self.recipe.train, 1.0).tokens
        self._compile()

    def _compile(self) -> None:
        """Make the step for the model and the optimizer as they are now, in the first process."""
        dtype, group, average = training_dtype(self.recipe.train.dtype), self.group, None
        if group.size > 1:
            self.optimizer.init(self.model.trainable_parameters())
            self.model.update(group.spread(self.model.trainable_parameters()))
            self.optimizer.state = group.spread(self.optimizer.state)
            average = group.average
        self.step = make_step(self.model, self.optimizer, self.recipe.optimizer.clip, dtype, average)
        mx.eval(self.model.state, self.optimizer.state)

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.size for p in checkpoint.trained_parameters(self.model).values())

    def begin(self, paths: Sequence[Path], mixed: Sequence[Mix] = ()) -> None:
        """Make `out` this run's folder, in place of a run that is there: all of a model folder but the weights, and
        `training` with the recipe, what the corpus was read from, its manifest and the validation split. Raises Error.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Error(f"{self.out} cannot be made: {error.strerror}") from None
        for name in ("training", *REPLACED):
            files.discard(self.out / name)
        start.begin(self.out, self.model, self.recipe, self.shards.tokenizer)
        recipe = config.to_table(self.recipe) | {"base": start.fingerprint(self.recipe)}
        recipe |= {"parameters": self.parameters, "paths": [str(path.resolve()) for path in paths]}
        recipe["mix"] = [[str(path.resolve()), str(share)] for path, share in mixed]
        with files.folder(self.out / "training") as partial:
            shutil.copyfile(self.shards.folder / "validation.bin", partial / "validation.bin")
            files.write_json(partial / "data.json", self.shards.record())
            files.write_json(partial / "recipe.json", recipe)

    def adopt(self, changed: Changes) -> None:
        """Have a run that began with another corpus go on with this one: its record says so from now on, and where what
        is held out has changed, losses from before are no longer compared with. Raises Error."""
        path = self.out / "training" / "data.json"
        change = {"step": self.position.step, "held_out": changed.held_out} | changed.counts()
        history = [*files.read_json(path).get("changes", []), change]
        held_out = self.shards.folder / "validation.bin"
        files.write(path.with_name("validation.bin"), lambda partial: shutil.copyfile(held_out, partial))
        files.write_json(path, self.shards.record() | {"changes": history})
        if changed.held_out:
            self.position.best_loss = None

    def train(self, panel: Panel, clock: Clock | None = None) -> Summary:
        """Train to the end, or until interrupted; `clock`: another than this machine's. Raises Error: the loss is no
        longer a number, the disk is full."""
        train = self.recipe.train
        clock = clock or Clock(train.steps, train.minutes, self.position.elapsed)
        last: tuple[float | None, float | None] = (None, None)
        path, group = self.out / "training" / "metrics.jsonl", self.group
        # The terminal is closed, or the connection to another machine; `nohup` has that ignored.
        hung_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        limits, pace = memory.limit(), utilization.Pace(self.model, train)
        with (
            Metrics(path, self.position.step or None, train.tensorboard) if group.leads else Unwritten() as metrics,
            stop_on_interrupt(*hung_up) as asked,
            self.writer,
        ):
            while clock.progress(self.position.step) < 1 and not group.any(asked()):
                step = self.position.step
                rate = clock.rate(self.recipe.optimizer, step) * self.position.lr_scale
                now = shape(self.mine, clock.progress(step))
                tokens = self.position.tokens + now.tokens * group.size
                began = time.perf_counter()
                loss, norm = self._one_step(step, rate, now)
                seconds = time.perf_counter() - began
                clock.count(seconds)
                every = group.numbers(loss, norm, clock.elapsed)  # from here on all have the first one's
                loss, norm, clock.elapsed = float(every[:, 0].mean()), float(every[0, 1]), float(every[0, 2])
                record = {
                    "kind": "train", "step": step + 1, "loss": loss, "lr": rate, "grad_norm": norm,
                    "tokens": tokens, "tokens_per_second": now.tokens * group.size / seconds,
                    "elapsed": clock.elapsed, "memory_bytes": mx.get_peak_memory(),
                    "cache_bytes": mx.get_cache_memory(), **limits, "mfu": pace.mfu(now.tokens / seconds),
                    "progress": clock.progress(step + 1),
                }  # fmt: skip
                metrics.write(record)
                panel.train(record)
                if trouble := self._trouble(loss, norm):
                    self._roll_back(step + 1, trouble, metrics, panel)
                    clock.elapsed = self.position.elapsed
                    continue
                self.position.step, self.position.elapsed, self.position.tokens = step + 1, clock.elapsed, tokens
                due = math.floor(clock.progress(step + 1) * train.evaluations + 1e-9)
                if due > self.position.evaluations:
                    self.position.evaluations = due
                    last = self._evaluate(metrics, panel)
                elif 0 < 60 * train.checkpoint_minutes <= clock.elapsed - self._kept_at:
                    self._keep()
            self._keep()
            if not start.result(self.out, self.recipe).exists():  # interrupted before its first evaluation
                self._save_model()
        interrupted = clock.progress(self.position.step) < 1
        return Summary(self.position.step, clock.elapsed, *last, interrupted)

    def _keep(self) -> None:
        """Have a checkpoint written."""
        if self.group.leads:
            self.writer.save(self.model, self.optimizer, self.position)
        self._kept_at = self.position.elapsed

    def _trouble(self, loss: float, norm: float) -> str:
        """What is wrong with a step's loss and gradient norm; empty where nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        spike, recent = self.recipe.train.spike, self._losses
        usual = sum(recent) / len(recent) if recent else loss
        if spike and loss > usual + spike:
            return f"the loss is {loss:.4f}, and was {usual:.4f} in the mean of the last {len(recent)} steps"
        recent.append(loss)
        return ""

    def _roll_back(self, step: int, trouble: str, metrics: Metrics, panel: Panel) -> None:
        """Go back to the last checkpoint with half the rate. Raises Error where the recipe says stop, or in vain."""
        self.group.together(self.writer.wait)
        kept, scale = self._kept(), self.position.lr_scale / 2
        if self.recipe.train.on_divergence == "stop" or not kept or scale < SMALLEST_SCALE:
            raise self._diverged(step, trouble)
        self._restore(lambda: Path(kept))
        self.position.lr_scale = scale
        metrics.rewind(self.position.step)
        panel.note(f"step {step:,}: {trouble}; back to step {self.position.step:,} with {scale:g} of the learning rate")

    def _one_step(self, step: int, rate: float, now: Shape) -> tuple[float, float]:
        """Step number `step`: everything random in it is a function of (seed, step). Returns loss and gradient norm."""
        self._seed(step + 1 + (self.group.rank << 54))  # dropout is not the same on every rank
        self.optimizer.learning_rate = rate
        first = (step * self.group.size + self.group.rank) * self.mine.accumulation
        drawn = [self.batches.batch(first + i, now.sequences, now.length) for i in range(now.passes)]
        self.model.train()
        loss, norm = self.step([tuple(map(mx.array, batch)) for batch in drawn])
        mx.eval(loss, norm, self.model.state, self.optimizer.state)
        return float(loss.item()), float(norm.item())  # type: ignore[arg-type]

    def _seed(self, number: int) -> None:
        """Seed what is drawn next: the weights and each sample with number 0, a step's dropout with its own."""
        mx.random.seed(self.recipe.train.seed * 1_000_003 + number)

    def _evaluate(self, metrics: Metrics, panel: Panel) -> tuple[float | None, float | None]:
        """Evaluate on the whole validation split, write a checkpoint, and the model if it is the best so far."""
        self.model.eval()
        val_loss = val_bpb = None
        best = True  # without a validation split the newest is
        if self.evaluator is not None:
            result = self._score(self.evaluator)
            val_loss, val_bpb = result.val_loss, result.val_bpb
            if not math.isfinite(val_loss):
                raise self._diverged(self.position.step, f"the validation loss is {val_loss}")
            best = self.position.best_loss is None or val_loss < self.position.best_loss
        record = {
            "kind": "evaluation", "step": self.position.step, "best": best, "val_loss": val_loss, "val_bpb": val_bpb,
            "sample": self._sample() if self.group.leads else "", "elapsed": self.position.elapsed,
        }  # fmt: skip
        if best:
            self._save_model()
            self.position.best_loss, self.position.best_step = val_loss, self.position.step
        metrics.write(record)  # first: what is there up to a checkpoint's step must be all
        self._keep()
        panel.evaluation(record)
        return val_loss, val_bpb

    def _score(self, evaluator: Evaluator) -> Evaluation:
        """The evaluation of the whole split, of which each process does its share."""
        group = self.group
        if group.size == 1:
            return evaluator.run()
        return evaluator.result(float(group.numbers(evaluator.nats(group.rank, group.size)).sum()))

    def _save_model(self) -> None:
        if self.group.leads:
            start.save(self.out, self.model, self.recipe)

    def _sample(self) -> str:
        """Text the model writes after the opening of the validation split; the same seed at every evaluation."""
        count, tokenizer = self.recipe.train.sample_tokens, self.shards.tokenizer
        split = "validation" if self.evaluator is not None else "train"
        prompt = self.shards.tokens(split)[: max(1, min(16, self.model.config.context // 2))].tolist()
        if count == 0:
            return ""
        sampling = Sampling(temperature=0.8, top_k=min(50, tokenizer.vocab_size - 1))
        answer = collect(generate(self.model, tokenizer, prompt, Request(count, sampling, seed=self.recipe.train.seed)))
        return tokenizer.decode(prompt).decode("utf-8", "replace") + answer.text

    def _kept(self) -> str:
        """The newest checkpoint's path; empty where there is none."""
        return self.group.first(lambda: str(checkpoint.latest(self.out) or ""))

    def _diverged(self, step: int, what: str) -> Error:
        kept = self._kept()
        where = f"the last good checkpoint is {kept}" if kept else "no checkpoint had been written yet"
        return Error(f"training diverged at step {step}: {what}; {where}; lower optimizer.lr or set optimizer.clip")


def _fit_vocabulary(config: models.Config, vocab_size: int) -> models.Config:
    """`config` with the tokenizer's vocabulary where it names none. Raises UsageError where it is too small."""
    require(
        config.vocab_size == 0 or config.vocab_size >= vocab_size,
        f"model.vocab_size ({config.vocab_size}) is smaller than the tokenizer's vocabulary ({vocab_size})",
    )
    return dataclasses.replace(config, vocab_size=config.vocab_size or vocab_size)
