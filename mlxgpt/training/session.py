"""`mlxgpt train`, whole: recipe, corpus, run, report."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxgpt import backend, config, files
from mlxgpt import tokenizer as tokenizers
from mlxgpt.config import Recipe, require
from mlxgpt.data import changes, shards
from mlxgpt.errors import Error, UsageError
from mlxgpt.training import tensorboard

if TYPE_CHECKING:
    from mlxgpt.training.loop import Summary

DEFAULT_RECIPE = "tiny"


def run(
    paths: Sequence[Path],
    recipe_name: str | None,
    settings: Sequence[str],
    out: Path,
    resume: bool = False,
    force: bool = False,
    mix: Sequence[str] = (),
    allow_changed_data: bool = False,
) -> None:
    """Train in folder `out`: a fresh run of a recipe (None: the default), or the one that is there, resumed.

    `mix`: other corpora, each as PATH=SHARE of what is trained on. A resumed run wants the corpus it began with, unless
    `allow_changed_data`: then it goes on with what is there now, in the tokens that its model knows.

    Raises UsageError and Error; what went wrong is then said in one line, and an earlier run in `out` is whole
    unless `force` let its place be taken.
    """
    require(not out.is_file(), f"--out {out} is a file; a folder is needed")
    if resume:
        fresh = paths or recipe_name or settings or force or mix
        require(not fresh, "--resume goes on with the run as it began: with --out and nothing else")
        require((out / "training").is_dir(), f"--resume: there is no run in {out}")
        paths, mixed, recipe = _stored(out)
    else:
        require(not allow_changed_data, "--allow-changed-data goes with --resume")
        mixed = shards.shares(mix)
        names = ("training", "config.json", "model.safetensors", "adapter_config.json")
        taken = next((name for name in names if (out / name).exists()), None)
        what = "run" if taken == "training" else "model"
        advice = "--resume goes on with it, --force replaces it" if taken == "training" else "--force replaces it"
        require(force or not taken, f"{out} already holds a {what}: {advice}")
        recipe = config.load_recipe(recipe_name or DEFAULT_RECIPE, settings)
    if recipe.train.tensorboard:
        tensorboard.require()
    backend.start()
    from mlxgpt.training import memory, start

    recipe = recipe if resume else start.resolve(recipe)
    from mlxgpt import models
    from mlxgpt.completion.calibration import calibrate_run, trained_to_infill
    from mlxgpt.completion.settings import Settings
    from mlxgpt.training.loop import Run
    from mlxgpt.training.panel import Panel
    from mlxgpt.training.report import write_report

    fim = trained_to_infill(recipe.data)
    models.config_from_table(recipe.model)  # before the corpus is read: that may take long
    with Panel(f"mlxgpt train {out}") as panel, _alone(out):
        panel.note("reading the corpus")
        # A corpus that has changed since would make another tokenizer than the one the model was trained with.
        its_own = resume and (allow_changed_data or "changes" in files.read_table(out / "training" / "data.json"))
        ready = tokenizers.load(out) if its_own else None
        data, cached = shards.prepare(paths, recipe.data, recipe.tokenizer, backend.cache_dir(), mixed, ready)
        panel.note(_data_line("corpus, from the cache" if cached else "corpus", data.manifest))
        for other, share in data.mixed:
            panel.note(_data_line(f"mixed in, {float(share):.0%} of what is trained on", other.manifest))
        changed = _changes(out, data, allow_changed_data) if resume else None
        training = Run(recipe, data, out, resume)
        if changed:
            training.adopt(changed)
            panel.note(f"the corpus has changed since: {changed.describe()}")
            if seen := len(changed.trained_before):
                panel.note(f"trained on before, in whole or in part: {seen} of the files that are now held out")
        elif not resume:
            training.begin(paths, mixed)
            Settings(fim=fim).save(out)
        panel.note(f"model: {recipe.model['type']}, {training.parameters:,} parameters, on {backend.device()}")
        panel.note(f"memory: {training.memory}, of {memory.gigabytes(backend.total_memory())}")
        summary = training.train(panel)
        if not summary.interrupted:
            panel.note("calibrating its completions")
            calibrate_run(out, data, summary.elapsed, fim)
    panel.note(_closing_line(summary, out))
    print(f"model {out}")
    print(f"report {write_report(out)}")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the run folder, made if need be, against a second run in it. Raises Error."""
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{out} cannot be made: {error.strerror}") from None
    try:
        with files.lock(out / ".lock"):
            yield
    finally:
        if new:
            with suppress(OSError):
                out.rmdir()  # where nothing came to be in it


def _stored(out: Path) -> tuple[list[Path], list[shards.Mix], Recipe]:
    """The paths, those mixed in and the recipe that the run in `out` began with. Raises Error."""
    path = out / "training" / "recipe.json"
    table = files.read_json(path)
    try:
        sections: dict[str, Any] = {
            name: config.from_table(cls, table.get(name, {}), name) for name, cls in config.SECTIONS.items()
        }
        mixed = [(Path(path), Fraction(share)) for path, share in table.get("mix", [])]
        return [Path(p) for p in table["paths"]], mixed, Recipe(model=table["model"], **sections)
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise Error(f"{path} is damaged: {error}") from None


def _changes(out: Path, data: shards.Shards, allowed: bool) -> changes.Changes | None:
    """What is other than when the run in `out` began, if anything is. Raises Error where that is not `allowed`."""
    path = out / "training" / "data.json"
    try:
        found = changes.compare(files.read_json(path), data.record())
    except (KeyError, TypeError, AttributeError) as error:
        raise Error(f"{path} is damaged: {error!r}") from None
    if found.tokenizer and allowed:
        raise Error(f"{path} is of another tokenizer than the one in {out}: start a new run")
    if found and not allowed:
        raise Error(
            f"the corpus is not the one this run began with: {found.describe()}; start a new run, or go on with what "
            "is there now: --allow-changed-data"
        )
    return found or None


def _data_line(what: str, manifest: dict) -> str:
    documents, size, tokens = (manifest[k] for k in ("documents", "bytes", "tokens"))
    skipped = ", ".join(f"{n} {reason}" for reason, n in sorted(manifest["skipped"].items()))
    return (
        f"{what}: {documents['train'] + documents['validation']:,} files, {sum(size.values()) / 1e6:.1f} MB, "
        f"{tokens['train']:,} tokens to train on and {tokens['validation']:,} held out"
        + (f"; skipped: {skipped}" if skipped else "")
    )


def _closing_line(summary: "Summary", out: Path) -> str:
    loss = f", val_loss {summary.val_loss:.4f}, val_bpb {summary.val_bpb:.4f}" if summary.val_loss is not None else ""
    end = "stopped" if summary.interrupted else "done"
    line = f"{end} at step {summary.step:,} after {summary.elapsed / 60:.1f} minutes of training{loss}"
    return line + (f"; `mlxgpt train --resume --out {out}` goes on" if summary.interrupted else "")
