"""STAND-IN for `Tokenizer.encode_template(text)`: to be deleted, its calls made method calls, once that exists."""

import re

from mlxgpt.tokenizer import HubTokenizer, Tokenizer


def encode_template(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a template's text, control tokens read."""
    if method := getattr(tokenizer, "encode_template", None):
        return method(text)
    if isinstance(tokenizer, HubTokenizer):
        tokenizer._tokenizer.encode_special_tokens = False
        try:
            return tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            tokenizer._tokenizer.encode_special_tokens = True
    control = {p: i for i, p in enumerate(getattr(tokenizer, "pieces", [])) if not tokenizer.token_bytes[i]}
    names = "|".join(re.escape(p) for p in sorted(control, key=len, reverse=True))
    return [
        i
        for part in re.split(f"({names})", text) if part
        for i in ([control[part]] if part in control else tokenizer.encode(part))
    ]  # fmt: skip
