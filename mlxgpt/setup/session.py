"""`mlxgpt setup`, whole: a folder of code in; an index, a model, how good it is, and `.mlxgpt.toml` out."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxgpt import backend, files
from mlxgpt.completion import defaults, project
from mlxgpt.completion import session as evaluation
from mlxgpt.completion.defaults import Defaults
from mlxgpt.completion.suggest import Using
from mlxgpt.errors import Error, UsageError
from mlxgpt.setup import proposal
from mlxgpt.setup.proposal import Proposal
from mlxgpt.training import runs
from mlxgpt.training.memory import gigabytes

FOLDER = ".mlxgpt"
MODEL = f"{FOLDER}/model"
MINUTES = 10.0
FALSE_SHOW = 0.3  # of the suggestions shown, the share that may be wrong
CURSORS = 200  # at which the model is compared with the n-grams


@dataclass(frozen=True)
class Talk:
    """How the user is spoken with: `minutes` and `agrees` ask, with what Enter means, and are None where nobody can
    answer."""

    say: Callable[[str], object]
    minutes: Callable[[float], float] | None = None
    agrees: Callable[[str, bool], bool] | None = None


def setup(folder: Path, talk: Talk, minutes: float | None = None, yes: bool = False, again: bool = False) -> dict:
    """Set the project in `folder` up; returns what the command prints as JSON.

    Nothing is trained unless the user agrees, or `yes`. A run that was stopped goes on; a project that is set up stays
    as it is, unless `again`. Raises Error, UsageError.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: name the one that your project is in")
    root = folder.resolve()
    model, there = root / MODEL, root / defaults.NAME
    backend.start()
    state = _state(model)
    if state == "running":
        raise Error(f"{model} is being trained: wait for its end, or stop it")
    found = _look(root, talk)
    if state == "done" and there.is_file() and not again:
        again = _again(there, talk, yes)
        if not again:
            return found | _table(defaults.read(there), there, trained=False)
    if found["tokens"] < proposal.TOKENS_AT_LEAST:
        talk.say("that is too little text to train a model on: the n-grams suggest alone")
        return found | _write(root, Defaults(root=".", using="ngrams", false_show=FALSE_SHOW), {}, trained=False)
    if state == "done" and not again:  # it was stopped before it was compared
        return found | _compare(root, model, talk, trained=False)
    if state == "stopped" and not again:
        talk.say(f"training in {model} was stopped: it can go on, for the time it was given; --again begins anew")
        if not _agreed("Go on?", talk, yes):
            return found | {"trained": False}
        _train(root, model, None, None)
    else:
        plan = _propose(found["tokens"], minutes, talk, yes)
        found |= {"parameters": plan.parameters, "minutes": plan.minutes, "recipe": plan.size.recipe}
        if not _agreed("Train it?", talk, yes):
            return found | {"trained": False}
        _train(root, model, plan, again or (model / "training").exists())
    return found | _compare(root, model, talk, trained=True)


def _state(model: Path) -> str:
    """ "", "running", "stopped" or "done": of the run there."""
    if files.is_locked(model / files.LOCK):
        return "running"
    if not (model / "training" / "metrics.jsonl").is_file():
        return ""
    try:
        return runs.describe(model).state
    except Error:  # not one step is recorded
        return ""


def _look(root: Path, talk: Talk) -> dict[str, Any]:
    """Index the project, and count what there is."""
    state = project.state(root)
    size = sum(size for size, _ in state.values())
    index = project.open_index(root, None, backend.cache_dir(), note=lambda text: talk.say(str(text)))
    tokens = proposal.tokens_in(size)
    talk.say(
        f"{root}: {len(index.documents):,} files, {size / 1e6:.1f} MB, indexed; about {tokens:,} tokens to learn from"
    )
    return {"root": str(root), "files": len(index.documents), "bytes": size, "tokens": tokens}


def _again(there: Path, talk: Talk, yes: bool) -> bool:
    """Say what is set up; whether it is to be trained again."""
    found = defaults.read(there)
    talk.say(f"{there} is there: {found.model or 'no model'}, using {found.using or 'both'}")
    if talk.agrees is None or yes:
        talk.say("`mlxgpt setup --again` trains again, on the project as it is now")
        return False
    return talk.agrees("Train again, on the project as it is now?", False)


def _propose(tokens: int, minutes: float | None, talk: Talk, yes: bool) -> Proposal:
    if minutes is None:
        minutes = talk.minutes(MINUTES) if talk.minutes is not None and not yes else MINUTES
    talk.say("measuring a few steps of training")
    plan = proposal.propose(tokens, minutes, proposal.SIZES)
    talk.say(f"proposed: {plan}; this machine has {gigabytes(backend.total_memory())}")
    return plan


def _agreed(question: str, talk: Talk, yes: bool) -> bool:
    if yes or talk.agrees is None:
        if not yes:
            talk.say("nothing was trained: `mlxgpt setup --yes` does it, `--minutes M` says for how long")
        return yes
    return talk.agrees(question, True)


def _train(root: Path, model: Path, plan: Proposal | None, force: bool | None) -> None:
    """Train as `mlxgpt train` does; without a plan, go on. Raises Error where it is stopped."""
    from mlxgpt.training import session

    ignore = root / FOLDER / ".gitignore"
    try:
        ignore.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise Error(f"{ignore.parent} cannot be made: {error.strerror}") from None
    files.write(ignore, lambda partial: partial.write_text("*\n", encoding="utf-8"))
    if plan is None:
        summary = session.run([], None, [], model, resume=True, allow_changed_data=True)
    else:
        settings = [*plan.size.settings, f"train.minutes={plan.minutes}"]
        summary = session.run([root], plan.size.recipe, settings, model, force=bool(force))
    if summary.interrupted:
        raise Error("training was stopped before its end: `mlxgpt setup` goes on with it")


def _compare(root: Path, model: Path, talk: Talk, trained: bool) -> dict[str, Any]:
    """Hold the model against the n-grams alone, and write down what is to suggest."""
    using: Using = "both"
    scores: dict[str, Any] = {}
    if files.read_json(model / "training" / "data.json")["documents"]["validation"]:
        talk.say("comparing it with the n-grams alone, on the files that were held out")
        choices: tuple[Using, ...] = ("both", "ngrams")
        for choice in choices:
            options = evaluation.Options(cursors=CURSORS, using=choice)
            s = evaluation.evaluate(model, [], options).scores
            scores[choice] = {"exact_match": s.exact_match, "completed_ratio": s.completed_ratio}
            talk.say(f"{choice:7} {s.exact_match:.1%} of lines exact, {s.completed_ratio:.1%} of characters completed")
        better = tuple(scores["both"].values()) > tuple(scores["ngrams"].values())
        if not better:
            using = "ngrams"
            talk.say("the model does not beat the n-grams alone, which suggest by themselves; train longer: --minutes")
    else:
        talk.say("nothing was held out, the project is too small: the model was not compared with the n-grams")
    return _write(root, Defaults(MODEL, ".", using, None, FALSE_SHOW), scores, trained)


def _write(root: Path, found: Defaults, scores: dict[str, Any], trained: bool) -> dict[str, Any]:
    path = root / defaults.NAME
    defaults.write(path, found)
    return _table(defaults.read(path), path, trained) | scores


def _table(found: Defaults, path: Path, trained: bool) -> dict[str, Any]:
    return {"config": str(path), "trained": trained} | dataclasses.asdict(found)
