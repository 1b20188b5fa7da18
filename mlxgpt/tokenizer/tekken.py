"""Mistral's `tekken.json`, written as a `tokenizer.json`.

The file holds tiktoken's kind of BPE: a pattern that cuts text into words, and tokens in the order they were learned.
Any two tokens that together are a third may be merged, the third that was learned earliest first, and a word that is a
token is taken whole (openai/tiktoken, `_byte_pair_merge`). The first ids are control tokens. Older files name none:
theirs, and those that are left over in newer ones, have the names that mistral-common's `Tekkenizer` gives them.
"""

import base64
from typing import Any

from mlxgpt.tokenizer import hub_json

BOS, EOS = "<s>", "</s>"
UNNAMED = (
    "<unk>", BOS, EOS, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def as_hub_json(tekken: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json, as a table, that does what `tekken` says. Raises ValueError for what no such file holds."""
    config = tekken["config"]
    controls, size = config["default_num_special_tokens"], config["default_vocab_size"]
    entries = tekken["vocab"][: size - controls]
    words = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
    named = tekken.get("special_tokens")
    names = UNNAMED if named is None else [t["token_str"] for t in sorted(named, key=lambda t: t["rank"])]
    names = [*names, *(f"<SPECIAL_{i}>" for i in range(len(names), controls))]
    pieces = [hub_json.byte_level_piece(word) for word in words]
    singles = [bytes([b]) for b in range(256)]
    whole = len(names) == controls and len({*pieces, *names}) == len(pieces) + controls == size
    if not whole or words[:256] != singles:
        raise ValueError("its tokens are not as many, as different or in the order that it says")
    known = set(pieces)
    merges = [
        (left, right)
        for piece in pieces
        for cut in range(1, len(piece))
        if (left := piece[:cut]) in known and (right := piece[cut:]) in known
    ]
    vocabulary = {piece: i for i, piece in enumerate([*names, *pieces])}
    split = {"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = hub_json.bpe_spec(vocabulary, merges, byte_fallback=False) | {"unk_token": None, "ignore_merges": True}
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    return hub_json.spec(model, {name: i for i, name in enumerate(names)}, None, byte_level, pre_tokenizer)
