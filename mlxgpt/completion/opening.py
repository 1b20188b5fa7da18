"""A suggester from names: a model's, a project's folder."""

from pathlib import Path

from mlxgpt import backend, hub, layouts, weights
from mlxgpt.completion.index import Index
from mlxgpt.completion.settings import Settings
from mlxgpt.completion.suggest import Suggester, Using, chosen
from mlxgpt.tokenizer import Tokenizer


def open_suggester(model: str | None, root: Path | None = None, using: Using | None = None) -> Suggester:
    """The suggester of a model (a folder, an alias, a Hub id) with the settings that lie beside it, and of the project
    in `root`. Raises Error, UsageError."""
    using = chosen(using, model is not None)
    if model is None or using == "ngrams":
        return Suggester(index=_index(root, None))
    folder = hub.resolve(model, check=layouts.describe)
    network, tokenizer = weights.load_with_tokenizer(folder, backend.compute_dtype(), compact=True)
    index = _index(root, tokenizer) if using != "model" else None
    return Suggester(network, tokenizer, index, using, Settings.load(folder))


def _index(root: Path | None, tokenizer: Tokenizer | None) -> Index | None:
    if root is None:
        return None
    from mlxgpt.completion import project  # brings what reads and compares a corpus

    return project.open_index(root, tokenizer, backend.cache_dir())
