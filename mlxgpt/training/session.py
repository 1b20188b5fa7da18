"""`mlxgpt train`, whole: recipe, corpus, run, report."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxgpt import backend, config, files
from mlxgpt.config import Recipe, require
from mlxgpt.data import shards
from mlxgpt.errors import Error, UsageError

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
) -> None:
    """Train in folder `out`: a fresh run of a recipe (None: the default), or the one that is there, resumed.

    Raises UsageError and Error; what went wrong is then said in one line, and an earlier run in `out` is whole
    unless `force` let its place be taken.
    """
    require(not out.is_file(), f"--out {out} is a file; a folder is needed")
    if resume:
        fresh = paths or recipe_name or settings or force
        require(not fresh, "--resume goes on with the run as it began: with --out and nothing else")
        require((out / "training").is_dir(), f"--resume: there is no run in {out}")
        paths, recipe = _stored(out)
    else:
        taken = next((name for name in ("training", "config.json", "model.safetensors") if (out / name).exists()), None)
        what = "run" if taken == "training" else "model"
        advice = "--resume goes on with it, --force replaces it" if taken == "training" else "--force replaces it"
        require(force or not taken, f"{out} already holds a {what}: {advice}")
        recipe = config.load_recipe(recipe_name or DEFAULT_RECIPE, settings)
    backend.start()
    from mlxgpt import models
    from mlxgpt.completion.calibration import calibrate_run
    from mlxgpt.training.loop import Run
    from mlxgpt.training.panel import Panel
    from mlxgpt.training.report import write_report

    models.config_from_table(recipe.model)  # before the corpus is read: that may take long
    with Panel(f"mlxgpt train {out}") as panel, _alone(out):
        panel.note("reading the corpus")
        data, cached = shards.prepare(paths, recipe.data, recipe.tokenizer, backend.cache_dir())
        panel.note(_data_line("corpus, from the cache" if cached else "corpus", data.manifest))
        if resume:
            _check_unchanged(out, data.manifest)
        training = Run(recipe, data, out, resume)
        if not resume:
            training.begin(paths)
        panel.note(f"model: {recipe.model['type']}, {training.parameters:,} parameters, on {backend.device()}")
        summary = training.train(panel)
        if not summary.interrupted:
            panel.note("calibrating its completions")
            calibrate_run(out, data, summary.elapsed)
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


def _stored(out: Path) -> tuple[list[Path], Recipe]:
    """The paths and the recipe that the run in `out` began with. Raises Error."""
    path = out / "training" / "recipe.json"
    table = files.read_json(path)
    try:
        sections: dict[str, Any] = {
            name: config.from_table(cls, table[name], name) for name, cls in config.SECTIONS.items()
        }
        return [Path(p) for p in table["paths"]], Recipe(model=table["model"], **sections)
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise Error(f"{path} is damaged: {error}") from None


def _check_unchanged(out: Path, manifest: dict) -> None:
    then = files.read_json(out / "training" / "data.json")
    if then["tokenizer"] == manifest["tokenizer"] and then["sources"] == manifest["sources"]:
        return
    before = {d["path"]: d["sha256"] for d in then["sources"]}
    now = {d["path"]: d["sha256"] for d in manifest["sources"]}
    changed = sorted(p for p in before.keys() | now.keys() if before.get(p) != now.get(p)) or ["the tokenizer"]
    named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    raise Error(f"the corpus is not the one this run began with: changed is {named}; start a new run")


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
