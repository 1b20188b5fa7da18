"""`mlxgpt train`, whole: recipe, corpus, run, report."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxgpt import backend, config, files
from mlxgpt.config import Recipe, require
from mlxgpt.data import shards
from mlxgpt.errors import Error, UsageError


def run(
    paths: Sequence[Path],
    recipe_name: str,
    settings: Sequence[str],
    out: Path,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Train in folder `out`: a fresh run from a recipe, or the one that is there, resumed. Raises Error, UsageError."""
    existing = (out / "training").exists()
    if resume:
        require(existing, f"--resume: there is no run in {out}")
        paths, recipe = _stored(out, paths)
    else:
        require(force or not existing, f"{out} already holds a run: --resume goes on with it, --force replaces it")
        require(not out.is_file(), f"--out {out} is a file; a folder is needed")
        recipe = config.load_recipe(recipe_name, settings)
    backend.start()
    from mlxgpt.training.loop import Run
    from mlxgpt.training.panel import Panel
    from mlxgpt.training.report import write_report

    with Panel(f"mlxgpt train {out}") as panel:
        panel.note(_data_line("reading the corpus", None))
        data, cached = shards.prepare(paths, recipe.data, recipe.tokenizer, backend.cache_dir())
        panel.note(_data_line("corpus, from the cache" if cached else "corpus", data.manifest))
        if resume:
            _check_unchanged(out, data.manifest)
        elif existing:
            shutil.rmtree(out / "training")
            (out / "model.safetensors").unlink(missing_ok=True)
        training = Run(recipe, data, out, resume)
        if not resume:
            table = {
                **config.to_table(recipe),
                "parameters": training.parameters,
                "paths": [str(p.resolve()) for p in paths],
            }
            files.write_json(out / "training" / "recipe.json", table)
        panel.note(f"model: {recipe.model['type']}, {training.parameters:,} parameters, on {backend.device()}")
        summary = training.train(panel)
        panel.note(_closing_line(summary))
    report = write_report(out)
    print(f"model {out}\nreport {report}")


def _stored(out: Path, paths: Sequence[Path]) -> tuple[list[Path], Recipe]:
    table = files.read_json(out / "training" / "recipe.json")
    if paths:
        raise UsageError("--resume takes no PATHS: the run goes on with its own")
    sections: dict[str, Any] = {
        name: config.from_table(cls, table[name], name) for name, cls in config.SECTIONS.items()
    }
    return [Path(p) for p in table["paths"]], Recipe(model=table["model"], **sections)


def _check_unchanged(out: Path, manifest: dict) -> None:
    then = files.read_json(out / "training" / "data.json")
    if then["tokenizer"] == manifest["tokenizer"] and then["sources"] == manifest["sources"]:
        return
    before = {d["path"]: d["sha256"] for d in then["sources"]}
    now = {d["path"]: d["sha256"] for d in manifest["sources"]}
    changed = sorted(p for p in before.keys() | now.keys() if before.get(p) != now.get(p))
    raise Error(
        f"the corpus is not the one this run began with ({len(changed)} files differ, such as "
        f"{changed[0] if changed else 'the tokenizer'}): start a new run"
    )


def _data_line(what: str, manifest: dict | None) -> str:
    if manifest is None:
        return what
    documents, size, tokens = (manifest[k] for k in ("documents", "bytes", "tokens"))
    skipped = ", ".join(f"{n} {reason}" for reason, n in sorted(manifest["skipped"].items()))
    return (
        f"{what}: {documents['train'] + documents['validation']:,} files, {sum(size.values()) / 1e6:.1f} MB, "
        f"{tokens['train']:,} tokens to train on and {tokens['validation']:,} held out"
        + (f"; skipped: {skipped}" if skipped else "")
    )


def _closing_line(summary) -> str:
    end = "stopped" if summary.interrupted else "done"
    loss = f", val_loss {summary.val_loss:.4f}, val_bpb {summary.val_bpb:.4f}" if summary.val_loss is not None else ""
    return f"{end} at step {summary.step} after {summary.elapsed / 60:.1f} minutes{loss}"
