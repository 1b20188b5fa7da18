"""A prompt's caches on disk: the next run that begins with the same tokens computes only the rest."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxgpt import files, tensors
from mlxgpt.errors import Error
from mlxgpt.generation.engine import Decoder, common_length
from mlxgpt.models import Model
from mlxgpt.models.cache import SLACK
from mlxgpt.models.layers import named_parameters

FORMAT = "mlxgpt prompt cache 1"


def fingerprint(model: Model, kv_bits: int | None) -> str:
    """SHA-256 of what makes a cache fit: the configuration, the cache's bits and limit, the parameters' names, shapes
    and types, and the first numbers of each."""
    digest = hashlib.sha256(json.dumps([asdict(model.config), kv_bits, SLACK]).encode())
    for name, p in named_parameters(model).items():
        head = p.reshape(-1)[:16]
        digest.update(f"{name}{p.shape}{p.dtype}".encode())
        digest.update(str(head.astype(mx.float32).tolist()).encode())
    return digest.hexdigest()


def save(path: Path, decoder: Decoder, tokens: Sequence[int]) -> None:
    """Write the caches of `decoder`, trimmed to what it holds of `tokens`, whole or not at all. Raises Error."""
    decoder.trim(min(decoder.position, len(tokens)))
    arrays = {
        f"layer.{i}.{j}": buffer for i, cache in enumerate(decoder.caches) for j, buffer in enumerate(cache.buffers)
    }
    about = {
        "format": FORMAT, "model": fingerprint(decoder.model, decoder.kv_bits),
        "tokens": json.dumps(list(tokens[: decoder.position])), "written": str(decoder.caches[0].written),
    }  # fmt: skip

    def save_arrays(partial: Path) -> None:
        with open(partial, "wb") as file:  # given a name, mlx would insist on its ending
            mx.save_safetensors(file, arrays, about)

    files.write(path, save_arrays)


def load(path: Path, decoder: Decoder, prompt: Sequence[int]) -> int:
    """Fill a fresh `decoder` with what the file and `prompt` share, less one token; returns how many tokens that is.

    A missing file shares nothing. Raises Error for a file of another model or no prompt cache at all.
    """
    if not path.exists():
        return 0
    arrays = tensors.read([path])
    about: Any = mx.load(str(path), format="safetensors", return_metadata=True)[1]  # type: ignore[index]
    if about.get("format") != FORMAT:
        raise Error(f"{path} is not a prompt cache of mlxgpt: name another file")
    if about.get("model") != fingerprint(decoder.model, decoder.kv_bits):
        raise Error(f"{path} is the prompt cache of another model or of other --kv-bits: name another file")
    try:
        tokens, written = json.loads(about["tokens"]), int(about["written"])
        layers = _layers(arrays, decoder, tokens, written)
    except (ValueError, LookupError, RecursionError):
        raise Error(f"{path} is damaged: delete it, or name another file") from None
    for cache, buffers in zip(decoder.caches, layers, strict=True):
        cache.buffers, cache.offset, cache.written = buffers, len(tokens), written
    return decoder.rewind(max(0, min(common_length(tokens, prompt), len(prompt) - 1)))


def _layers(arrays: dict[str, mx.array], decoder: Decoder, tokens: Any, written: int) -> list[list[mx.array]]:
    """The buffers of each layer, as `decoder` would have them after `tokens`. Raises ValueError, LookupError."""
    if not isinstance(tokens, list) or not all(isinstance(t, int) for t in tokens):
        raise ValueError("tokens")
    trial = Decoder(decoder.model, decoder.kv_bits)
    trial.extend([0])  # never computed: it tells what the buffers' shapes and types are
    capacity, limit = arrays["layer.0.0"].shape[2], trial.caches[0].limit
    if capacity != limit and capacity < max(len(tokens), written):
        raise ValueError("capacity")
    layers = []
    for i, cache in enumerate(trial.caches):
        layers.append([arrays[f"layer.{i}.{j}"] for j in range(len(cache.buffers))])
        for buffer, model in zip(layers[-1], cache.buffers, strict=True):
            if buffer.shape != (*model.shape[:2], capacity, model.shape[3]) or buffer.dtype != model.dtype:
                raise ValueError("shapes")
    return layers
