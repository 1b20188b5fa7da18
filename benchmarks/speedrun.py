"""What makes a small model better in the same minutes: a recipe and its variants, one change each, at equal time.

    python benchmarks/speedrun.py [--seeds 5] [--minutes 1.5] [--variants A,B] [--corpus PATH...] [--jobs 2]

First each variant's steps are measured on a quiet machine, in short runs in turn, and the median is what a step of it
takes. Then each is trained, seed by seed, for the minutes that its steps would take at that pace: by a clock that
counts those, so that whatever else the machine does meanwhile changes nothing. What decays or grows over the run does
so over that time, as with `mlxgpt train --minutes`. The result is bits a byte of the whole held-out split, read in the
variant's own sequences; compared with the baseline's seed by seed, since a seed draws the same batches for both.

Every process adds what it has found to the JSON file; the same command goes on where an earlier one was interrupted.
A variant is a name below, settings as `mlxgpt train --set` takes them, or several of either joined by "+". With
"+at-no-cost" its steps are taken to be as quick as the baseline's: what softcap, which has no C++ on a CPU, could gain
at most. --set changes the baseline and with it all of them, and wants a --json of its own.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from mlxgpt import backend, files
from mlxgpt.config import Recipe, load_recipe, nearest, require
from mlxgpt.data import shards
from mlxgpt.errors import Error, UsageError
from mlxgpt.training.loop import Run, Summary
from mlxgpt.training.schedule import Clock, Shape, shape

# isort: split
from speedrun_models import ARCHITECTURES  # after mlxgpt, which puts its BLAS under mlx before that is imported

BASELINE, AT_NO_COST = "baseline", "at-no-cost"
MEASURED = 40  # steps of a run that measures, of which the first of each shape compiles and does not count
CHEAP = ["train.evaluations=1", "train.sample_tokens=0", "train.checkpoint_minutes=0"]
SAME_WORK = ("model.zero_init", "data.order")  # and the optimizer's but for its kind: settings that cost no time


def sized(width: int, layers: int) -> list[str]:
    """A model of another width and depth, in heads of 64."""
    heads = f"model.num_attention_heads={width // 64}"
    sizes = [f"model.hidden_size={width}", f"model.intermediate_size={3 * width}", f"model.num_hidden_layers={layers}"]
    return [*sizes, heads]


# What `tiny` has already (Muon at 0.02, AdamW at 3e-3, batches of 4 × 256, 2,048 tokens, 4 layers × 128) is not here.
VARIANTS: dict[str, list[str]] = {
    BASELINE: [],
    **{f"adamw-{lr}": ["optimizer.kind=adamw", f"optimizer.lr={lr}"] for lr in ("1e-3", "3e-3", "6e-3")},
    **{f"muon-{rate}": [f"optimizer.muon_lr={rate}"] for rate in ("0.01", "0.03", "0.05")},
    **{f"lr-{lr}": [f"optimizer.lr={lr}"] for lr in ("1e-3", "6e-3", "1e-2")},
    "min-lr-0": ["optimizer.min_lr=0"],
    **{f"decay-{decay}": [f"optimizer.weight_decay={decay}"] for decay in ("0", "0.03", "0.3")},
    **{f"wsd-{part}": ["optimizer.schedule=wsd", f"optimizer.decay_fraction={part}"] for part in ("0.2", "0.3", "0.5")},
    "qk-norm": ["model.type=qwen3"],
    "zero-init": ["model.zero_init=true"],
    "untied": ["model.tie_word_embeddings=false"],
    "untied-zero-init": ["model.tie_word_embeddings=false", "model.zero_init=true"],
    **{name: [] for name in ARCHITECTURES},
    f"softcap+{AT_NO_COST}": [],
    **{f"batch-{size}": [f"train.batch_size={size}"] for size in (2, 8, 16)},
    **{f"batch-warmup-{part}": [f"train.batch_warmup={part}"] for part in ("0.2", "0.4")},
    "batch-8-warmup": ["train.batch_size=8", "train.batch_warmup=0.4"],
    **{f"sequence-{length}": [f"train.sequence_length={length}"] for length in (128, 512)},
    **{f"sequence-warmup-{part}": [f"train.sequence_warmup={part}"] for part in ("0.2", "0.4")},
    "sequence-512-warmup": ["train.sequence_length=512", "train.sequence_warmup=0.4"],
    **{f"vocabulary-{size}": [f"tokenizer.vocab_size={size}"] for size in (512, 1024, 4096, 8192)},
    **{f"size-{width}x{layers}": sized(width, layers) for width, layers in ((192, 4), (256, 4), (128, 6), (192, 6))},
    "heads-1": ["model.num_attention_heads=1"],
    "heads-4": ["model.num_attention_heads=4"],
    "heads-2-kv-2": ["model.num_key_value_heads=2"],
    "heads-4-kv-2": ["model.num_attention_heads=4", "model.num_key_value_heads=2"],
    "isolated": ["data.isolate_documents=true"],
    "order-imports": ["data.order=imports"],
    "fim-0.5": ["data.fim_rate=0.5"],
}


def settings_of(variant: str) -> tuple[list[str], list[str]]:
    """A variant's settings and the architectures it puts in. Raises UsageError."""
    settings, architectures = [], []
    for part in variant.removesuffix(f"+{AT_NO_COST}").split("+"):
        require("=" in part or part in VARIANTS, f"no variant is called '{part}'{nearest(part, list(VARIANTS))}")
        settings += [part] if "=" in part else VARIANTS[part]
        architectures += [part] if part in ARCHITECTURES else []
    return settings, architectures


def work(variant: str) -> str:
    """What of a variant decides how long its steps take, as a name: variants of one name are measured once."""
    settings, architectures = settings_of(BASELINE if variant.endswith(f"+{AT_NO_COST}") else variant)

    def costs(setting: str) -> bool:
        key = setting.partition("=")[0]
        return key == "optimizer.kind" or not (key.startswith("optimizer.") or key in SAME_WORK)

    return " ".join([*filter(costs, settings), *architectures])


class Records:
    """Takes what a run tells of its steps, in a panel's place."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def train(self, record: dict[str, Any]) -> None:
        """One step."""
        self.steps.append(record)

    def evaluation(self, record: dict[str, Any]) -> None:
        """The summary has it."""

    def note(self, text: str) -> None:
        """What else a run says."""
        print(text, file=sys.stderr)


class MeasuredClock(Clock):
    """Has each step take what one of its shape was measured to take."""

    def __init__(self, recipe: Recipe, seconds: dict[Shape, float]) -> None:
        super().__init__(recipe.train.steps, recipe.train.minutes)
        self.recipe, self.seconds = recipe, seconds

    def count(self, seconds: float) -> None:
        """Take in one step, of the shape that this time of the run has."""
        self.elapsed += self.seconds[shape(self.recipe.train, self.progress(0))]


@contextmanager
def a_run(options: argparse.Namespace, variant: str, *more: str) -> Iterator[Run]:
    """A run of a variant, with more settings, in a folder that goes when it is done."""
    settings, architectures = settings_of(variant)
    for name in architectures:
        ARCHITECTURES[name]()
    backend.start()
    recipe = load_recipe(options.config, [*options.set, *settings, *CHEAP, *more])
    data, _ = shards.prepare(options.corpus, recipe.data, recipe.tokenizer, backend.cache_dir())
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, data, Path(folder), resume=False)
        run.begin(options.corpus)
        yield run


def measure(options: argparse.Namespace, variant: str) -> list[list[float]]:
    """Passes, sequences, length and median seconds of each shape of a variant's steps."""
    records = Records()
    with a_run(options, variant, f"train.steps={MEASURED}", "train.minutes=0") as run:
        run.evaluator = None
        run.train(records)  # type: ignore[arg-type]
        train = run.recipe.train
    seconds: dict[Shape, list[float]] = {}
    for i, record in enumerate(records.steps):
        its = shape(train, i / MEASURED)
        seconds.setdefault(its, []).append(its.tokens / record["tokens_per_second"])
    return [[*astuple(its), statistics.median(times[1:])] for its, times in seconds.items()]


def train(options: argparse.Namespace, variant: str, seed: int, seconds: dict[Shape, float]) -> dict[str, Any] | None:
    """What a variant reaches in `options.minutes` of the measured time; None: it was interrupted."""
    records = Records()
    row: dict[str, Any] = {"variant": variant, "seed": seed}
    with a_run(options, variant, f"train.minutes={options.minutes}", f"train.seed={seed}") as run:
        row["parameters"] = run.parameters
        try:
            summary: Summary | None = run.train(records, MeasuredClock(run.recipe, seconds))  # type: ignore[arg-type]
        except Error as error:
            if "diverged" not in str(error):
                raise
            summary = None
    if summary is None:
        return row | {"steps": len(records.steps), "tokens": None, "val_loss": None, "val_bpb": None}
    if summary.interrupted:
        return None
    return row | {
        "steps": summary.step, "tokens": run.position.tokens, "val_loss": summary.val_loss, "val_bpb": summary.val_bpb
    }  # fmt: skip


class Results:
    """The JSON file: what was measured and what was trained, written anew with every process that ends."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path = options.json
        now = {"config": options.config, "set": options.set, "minutes": options.minutes,
               "corpus": [str(path.resolve()) for path in options.corpus]}  # fmt: skip
        self.table = files.read_json(self.path) if self.path.exists() else {"of": now, "measured": {}, "runs": []}
        require(self.table["of"] == now, f"{self.path} is of {json.dumps(self.table['of'])}: give another --json")

    def save(self) -> None:
        """Write the file, whole or not at all."""
        files.write_json(self.path, self.table)

    def rounds(self, name: str) -> list[list[list[float]]]:
        """The rounds in which the steps of this work were measured."""
        return self.table["measured"].setdefault(name, [])

    def seconds(self, variant: str) -> dict[Shape, float]:
        """Of each shape of a variant's steps: the median of all rounds."""
        found: dict[Shape, list[float]] = {}
        for its_round in self.rounds(work(variant)):
            for passes, sequences, length, seconds in its_round:
                found.setdefault(Shape(int(passes), int(sequences), int(length)), []).append(seconds)
        return {its: statistics.median(times) for its, times in found.items()}

    def of(self, variant: str) -> dict[int, dict[str, Any]]:
        """A variant's runs by their seeds."""
        return {row["seed"]: row for row in self.table["runs"] if row["variant"] == variant}


def processes(jobs: int) -> ProcessPoolExecutor:
    """One process a task, `jobs` at a time; each begins with nothing put in the place of anything."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1)


def measure_all(options: argparse.Namespace, results: Results) -> None:
    """Measure in turn, round by round, what is not measured yet."""
    names: dict[str, str] = {}
    for variant in options.variants:
        names.setdefault(work(variant), variant)
    with processes(1) as pool:
        for number in range(options.rounds):
            for name, variant in names.items():
                if len(results.rounds(name)) <= number:
                    its_round = pool.submit(measure, options, variant).result()
                    results.rounds(name).append(its_round)
                    results.save()
                    steps = ", ".join(f"{1000 * seconds:.1f} ms" for *_, seconds in its_round)
                    print(f"round {number + 1}: a step of {name or BASELINE}: {steps}", file=sys.stderr)


def train_all(options: argparse.Namespace, results: Results) -> None:
    """Train what is not trained yet, all variants with the first seed before any with the next."""
    if options.jobs > 1:  # in the environment that the processes begin with
        os.environ |= {"MLXGPT_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    wanted = [(variant, seed) for seed in range(1, options.seeds + 1) for variant in options.variants]
    with processes(options.jobs) as pool:
        running: list[Future] = [
            pool.submit(train, options, variant, seed, results.seconds(variant))
            for variant, seed in wanted if seed not in results.of(variant)
        ]  # fmt: skip
        try:
            for i, future in enumerate(as_completed(running), 1):
                if row := future.result():
                    results.table["runs"].append(row)
                    results.save()
                    reached = "diverged" if row["val_bpb"] is None else f"{row['val_bpb']:.4f} bits a byte"
                    said = f"{row['variant']}, seed {row['seed']}: {reached} after {row['steps']:,} steps"
                    print(f"{i} of {len(running)}: {said}", file=sys.stderr)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def table(results: Results, variants: Sequence[str]) -> str:
    """Variants by what they gain: means over the seeds, and of the difference to the baseline its standard error."""
    baseline, rows = results.of(BASELINE), []
    for variant in variants:
        its = results.of(variant)
        whole = [row for row in its.values() if row["val_bpb"] is not None]
        if not whole:
            rows.append((float("inf"), f"| {variant} | | | | {'diverged' if its else ''} | | {len(its)} |"))
            continue
        steps, tokens, bpb = (statistics.mean(row[key] for row in whole) for key in ("steps", "tokens", "val_bpb"))
        both = [seed for seed in its.keys() & baseline.keys() if None not in (_bpb(its[seed]), _bpb(baseline[seed]))]
        changes = [_bpb(its[seed]) - _bpb(baseline[seed]) for seed in both]
        mean = statistics.mean(changes) if changes else float("nan")
        error = f" ± {statistics.stdev(changes) / len(changes) ** 0.5:.4f}" if len(changes) > 1 else ""
        pace = 60_000 * results.table["of"]["minutes"] / steps
        seeds = f"{len(whole)}" + (f", {len(its) - len(whole)} diverged" if len(its) > len(whole) else "")
        change = f"{mean:+.4f}{error}" if variant != BASELINE else ""
        line = f"| {variant} | {pace:.1f} | {steps:,.0f} | {tokens / 1e6:.2f} | {bpb:.4f} | {change} | {seeds} |"
        rows.append((mean if changes else bpb, line))
    head = "| variant | ms a step | steps | M tokens | bits a byte | to the baseline | seeds |"
    return "\n".join([head, "|---" * 7 + "|", *(line for _, line in sorted(rows))])


def _bpb(row: dict[str, Any]) -> Any:
    return row["val_bpb"]


def main() -> None:
    """Measure, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="+", default=[], help="default: this Python's standard library")
    parser.add_argument("--config", default="tiny", help="the baseline's recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="separated by commas; default: all")
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of measuring")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="runs side by side, of one thread each")
    parser.add_argument("--measure-only", action="store_true", help="on a quiet machine; the rest may come later")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    options.variants = list(dict.fromkeys([BASELINE, *options.variants.split(",")]))
    try:
        for variant in options.variants:
            load_recipe(options.config, [*options.set, *settings_of(variant)[0]])
        results = Results(options)
        measure_all(options, results)
        if not options.measure_only:
            train_all(options, results)
    except (Error, UsageError) as error:
        sys.exit(f"speedrun: error: {error}")
    print(table(results, options.variants))


if __name__ == "__main__":
    main()
