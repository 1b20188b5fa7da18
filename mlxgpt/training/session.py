"""`mlxgpt train`, whole: recipe, corpus, run, report."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
    from mlxgpt.completion.settings import Fim
    from mlxgpt.training.loop import Run, Summary

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
) -> "Summary":
    """Train in folder `out`: a fresh run of a recipe (None: the default), or the one that is there, resumed.

    Returns what it reached. `mix`: other corpora, each as PATH=SHARE of what is trained on. A resumed run wants the
    corpus it began with, unless `allow_changed_data`: then it goes on with what is there now, in the tokens that its
    model knows.

    Where `mlx.launch` started several processes with the same arguments they train together, data parallel. The first
    alone has `out` and says what is done; what it read there, and the recipe, the others are told.

    Raises UsageError and Error; what went wrong is then said in one line, and an earlier run in `out` is whole
    unless `force` let its place be taken.
    """
    backend.start()
    from mlxgpt.training import distributed, memory, start

    group = distributed.join()
    plan = group.first(
        lambda: _plan(paths, recipe_name, settings, out, resume, force, mix, allow_changed_data, group.size)
    )
    paths, mixed, recipe = _read(plan)
    if not resume:
        recipe = group.together(lambda: start.resolve(recipe))
    from mlxgpt import models
    from mlxgpt.completion.calibration import calibrate_run, trained_to_infill
    from mlxgpt.training.loop import Run
    from mlxgpt.training.panel import Panel
    from mlxgpt.training.report import write_report

    fim = trained_to_infill(recipe.data)
    models.config_from_table(recipe.model)  # before the corpus is read: that may take long
    with ExitStack() as stack:
        stream = None if group.leads else stack.enter_context(open(os.devnull, "w"))
        panel = stack.enter_context(Panel(f"mlxgpt train {out}", stream))
        group.together(lambda: stack.enter_context(_alone(out)) if group.leads else None)
        panel.note("reading the corpus")
        # A corpus that has changed since would make another tokenizer than the one the model was trained with.
        ready = tokenizers.load(out) if plan["changed"] else None
        data, cached = group.together(
            lambda: shards.prepare(paths, recipe.data, recipe.tokenizer, backend.cache_dir(), mixed, ready)
        )
        if group.size > 1:
            panel.note(f"{group.size} processes train together")
            distributed.require_same(group, data, group.together(lambda: start.fingerprint(recipe)))
        panel.note(_data_line("corpus, from the cache" if cached else "corpus", data.manifest))
        for other, share in data.mixed:
            panel.note(_data_line(f"mixed in, {float(share):.0%} of what is trained on", other.manifest))
        compare = resume and group.leads
        changed = group.together(lambda: _changes(out, data, allow_changed_data) if compare else None)
        training = Run(recipe, data, out, resume, group)
        if changed:
            training.adopt(changed)
            panel.note(f"the corpus has changed since: {changed.describe()}")
            if seen := len(changed.trained_before):
                panel.note(f"trained on before, in whole or in part: {seen} of the files that are now held out")
        elif not resume:
            group.together(lambda: _begin(training, paths, mixed, fim) if group.leads else None)
        panel.note(f"model: {recipe.model['type']}, {training.parameters:,} parameters, on {backend.device()}")
        shared = f" for each of {group.here} processes" if group.here > 1 else ""
        panel.note(f"memory: {training.memory}, of {memory.gigabytes(memory.available(group.here))}{shared}")
        summary = training.train(panel)
        if not group.leads:
            return summary
        if not summary.interrupted:
            panel.note("calibrating its completions")
            calibrate_run(out, data, summary.elapsed, fim)
    panel.note(_closing_line(summary, out))
    print(f"model {out}")
    print(f"report {write_report(out)}")
    return summary


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the run folder, made if need be, against a second run in it. Raises Error."""
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{out} cannot be made: {error.strerror}") from None
    try:
        with files.lock(out / files.LOCK):
            yield
    finally:
        if new:
            with suppress(OSError):
                out.rmdir()  # where nothing came to be in it


def _plan(
    paths: Sequence[Path], recipe_name: str | None, settings: Sequence[str], out: Path, resume: bool, force: bool,
    mix: Sequence[str], allow_changed_data: bool, processes: int,
) -> dict[str, Any]:  # fmt: skip
    """What `_read` reads: what to train on and how, of a run that may begin or go on in `out`; `changed` says whether
    its corpus may be another than the one that it began with. Raises UsageError and Error."""
    require(not out.is_file(), f"--out {out} is a file; a folder is needed")
    if resume:
        fresh = paths or recipe_name or settings or force or mix
        require(not fresh, "--resume goes on with the run as it began: with --out and nothing else")
        require((out / "training").is_dir(), f"--resume: there is no run in {out}")
        plan = files.read_json(out / "training" / "recipe.json")
        try:
            recipe = _read(plan)[2]
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise Error(f"{out / 'training' / 'recipe.json'} is damaged: {error}") from None
        changed = allow_changed_data or "changes" in files.read_table(out / "training" / "data.json")
        require(not changed or processes == 1, "a run whose corpus has changed goes on in one process only")
    else:
        require(not allow_changed_data, "--allow-changed-data goes with --resume")
        mixed, changed = shards.shares(mix), False
        read = {path.resolve() for path in [*paths, *(path for path, _ in mixed)]}
        require(out.resolve() not in read, f"--out {out} is what is trained on: name a folder in it, or elsewhere")
        names = ("training", "config.json", "model.safetensors", "adapter_config.json")
        taken = next((name for name in names if (out / name).exists()), None)
        what = "run" if taken == "training" else "model"
        advice = "--resume goes on with it, --force replaces it" if taken == "training" else "--force replaces it"
        require(force or not taken, f"{out} already holds a {what}: {advice}")
        recipe = config.load_recipe(recipe_name or DEFAULT_RECIPE, settings)
        plan = config.to_table(recipe) | {"paths": [str(path) for path in paths]}
        plan["mix"] = [[str(path), str(share)] for path, share in mixed]
    if recipe.train.tensorboard:
        tensorboard.require()
    return plan | {"changed": changed}


def _read(plan: dict[str, Any]) -> tuple[list[Path], list[shards.Mix], Recipe]:
    """The paths, those mixed in and the recipe of a plan, which is also what a run keeps as its recipe.json."""
    sections: dict[str, Any] = {
        name: config.from_table(cls, plan.get(name, {}), name) for name, cls in config.SECTIONS.items()
    }
    mixed = [(Path(path), Fraction(share)) for path, share in plan.get("mix", [])]
    return [Path(p) for p in plan["paths"]], mixed, Recipe(model=plan["model"], **sections)


def _begin(training: "Run", paths: Sequence[Path], mixed: Sequence[shards.Mix], fim: "Fim") -> None:
    """Make the run's folder, with the settings that completions have until they are calibrated. Raises Error."""
    from mlxgpt.completion.settings import Settings

    training.begin(paths, mixed)
    Settings(fim=fim).save(training.out)


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
