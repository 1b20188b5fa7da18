"""A suggester from names: a model's, a project's folder."""

from dataclasses import dataclass
from pathlib import Path

from mlxgpt import adapters, backend, weights
from mlxgpt.completion.context import Library
from mlxgpt.completion.index import Index
from mlxgpt.completion.settings import Settings
from mlxgpt.completion.suggest import Suggester, Using, chosen
from mlxgpt.models import Model
from mlxgpt.quantization import CHOICES
from mlxgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Names:
    """What a server's suggester is opened from: the names that `mlxgpt complete` takes too."""

    model: str | None = None
    root: Path | None = None
    using: Using | None = None
    quantize: str | None = None
    context: bool = False


def open_suggester(
    model: str | None, root: Path | None = None, using: Using | None = None, quantize: str | None = None,
    adapter: Path | None = None, context: bool = False,
) -> Suggester:  # fmt: skip
    """The suggester of a model (a folder, an alias, a Hub id), its weights quantized as `quantize` names it, or of an
    adapter's folder, with the settings that lie beside it, and of the project in `root`, whose texts the model is shown
    with `context`. Raises Error, UsageError."""
    using = chosen(using, model is not None or adapter is not None)
    if using == "ngrams" or model is adapter is None:
        return Suggester(index=_index(root, None))
    folder, adapter = adapters.locate(model, adapter)
    fewer, dtype = CHOICES[quantize] if quantize else None, backend.compute_dtype()
    network, tokenizer = weights.load_with_tokenizer(folder, dtype, fewer, compact=True, adapter=adapter)
    index = _index(root, tokenizer) if using != "model" or context else None
    return of_model(network, tokenizer, index, using, Settings.load(adapter or folder), context)


def of_model(
    network: Model, tokenizer: Tokenizer | None, index: Index | None, using: Using, settings: Settings, context: bool
) -> Suggester:
    """The suggester of a model and an index of what is known: for the n-grams, and with `context` for the model too."""
    library = Library.of_index(index) if index is not None and context else None
    return Suggester(network, tokenizer, index if using != "model" else None, using, settings, library=library)


def _index(root: Path | None, tokenizer: Tokenizer | None) -> Index | None:
    if root is None:
        return None
    from mlxgpt.completion import project  # brings what reads and compares a corpus

    return project.open_index(root, tokenizer, backend.cache_dir())
