"""What a run's held-out files say of its suggestions: how to mix model and n-grams, and how sure a suggestion is."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt import adapters, backend, weights
from mlxgpt.completion import gate, mixture
from mlxgpt.completion.cursors import Cursor, pick_cursors
from mlxgpt.completion.index import Index
from mlxgpt.completion.settings import Fim, Settings
from mlxgpt.completion.suggest import Suggester, Using
from mlxgpt.config import DataConfig
from mlxgpt.data.shards import Shards
from mlxgpt.models import Model
from mlxgpt.tokenizer import Tokenizer

MOST = 400  # cursors a phase, whatever the time
FEWEST = 24  # suggestions from which a gate is learned: so many are made even where that takes longer
MOST_INDEXED = 4 << 20  # tokens of training text that the n-grams know meanwhile: seconds to sort
SEED = 7001  # of the cursors: not those of `mlxgpt eval`


def calibrate(
    model: Model, tokenizer: Tokenizer, index: Index, documents: Sequence[tuple[str, bytes]], seconds: float,
    fim: Fim = "",
) -> Settings:  # fmt: skip
    """Settings fitted on held-out `documents` (name, text) that are not in `index`, in about so many seconds.

    First the mixture, on tokens that are there; then, with it, a gate for the model alone and for both.
    """
    cursors = pick_cursors(documents, MOST, SEED)
    first = Settings(fim=fim)
    suggester = Suggester(model, tokenizer, index, settings=first)
    settings = replace(first, mixture=mixture.fit(_observe(suggester, cursors, seconds / 3)))
    gates: dict[str, gate.Gate] = {}
    choices: tuple[Using, ...] = ("both", "model")
    for using in choices:
        suggester = Suggester(model, tokenizer, index, using, settings)
        cases = judge(suggester, cursors, seconds / 3)
        if len(cases) >= FEWEST:
            gates[using] = gate.fit(cases)
    return replace(settings, gates=gates)


def trained_to_infill(data: DataConfig) -> Fim:
    """How a run with these settings is asked to fill in the middle: with the suffix first, where it has learned to."""
    return "" if not data.fim_rate else "spm" if data.fim_spm else "psm"


def calibrate_run(folder: Path, shards: Shards, elapsed: float, fim: Fim = "") -> None:
    """Calibrate the finished run in `folder` on its held-out files, and keep the settings beside its model.

    It takes about a tenth of the `elapsed` seconds of training, from 2 to 12, and the time to index its text. A run
    without held-out files keeps the cautious settings that it began with. Raises Error.
    """
    documents = [(d["name"], shards.tokenizer.decode(ids.tolist())) for d, ids in _documents(shards, "validation")]
    if not documents:
        return
    base, adapter = adapters.locate(str(folder))
    compact = adapter is not None  # what it adapts may be large
    model, tokenizer = weights.load_with_tokenizer(base, backend.compute_dtype(), compact=compact, adapter=adapter)
    index = Index(tokenizer, MOST_INDEXED)
    index.build_from_tokens((d["path"], ids) for d, ids in _documents(shards, "train"))
    calibrate(model, tokenizer, index, documents, min(12.0, max(2.0, elapsed / 10)), fim).save(folder)


def _documents(shards: Shards, split: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Each document of a split: its entry in the manifest, and its tokens."""
    tokens, start = shards.tokens(split), 0
    for source in shards.manifest["sources"]:
        if source["split"] == split:
            yield source, np.asarray(tokens[start : start + source["tokens"]])
            start += source["tokens"]


def _observe(suggester: Suggester, cursors: Sequence[Cursor], seconds: float) -> list[mixture.Observation]:
    """What model and n-grams give the tokens that follow the cursors."""
    found: list[mixture.Observation] = []
    until = time.perf_counter() + seconds
    for cursor in cursors:
        if time.perf_counter() > until:
            break
        source = suggester.source(cursor.prefix, cursor.suffix)
        # A middle ends with the closing token, of which the n-grams know nothing, and not with its line's newline.
        end = b"" if suggester.fim and cursor.suffix.strip() else b"\n"
        truth = source.remainder + cursor.truth.encode("utf-8", "surrogateescape") + end
        path: tuple[int, ...] = ()
        for token in suggester.tokenizer.encode(truth)[: source.context - len(source.ids)]:
            prediction = source.predict(path)
            if prediction.ids:
                known = dict(zip(prediction.ids, prediction.probabilities, strict=True))
                p = float(source.probabilities(path)[token])
                found.append(mixture.Observation(p, known.get(token, 0.0), mixture.features(prediction)))
            path = (*path, token)
    return found


def judge(suggester: Suggester, cursors: Sequence[Cursor], seconds: float) -> list[tuple[gate.Evidence, bool]]:
    """The evidence for the suggestions at the cursors, and whether each was the rest of its line."""
    cases: list[tuple[gate.Evidence, bool]] = []
    until = time.perf_counter() + seconds
    for tried, cursor in enumerate(cursors):
        if time.perf_counter() > until and (len(cases) >= FEWEST or tried >= 4 * FEWEST):
            break
        answer = suggester.suggest(cursor.prefix, cursor.suffix)
        if answer.hidden and answer.evidence is not None:
            cases.append((answer.evidence, answer.hidden == cursor.truth))
    return cases
