"""What an editor may set: `{"mlxgpt": {...}}` in its initialization options or in a change of its configuration."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mlxgpt.errors import Error


class Preferences(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The languages that nothing is suggested in, by the ids that the editor has for them; and what the command line
    said otherwise."""

    disabled: list[str] = []
    threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    multiline: bool | None = None


def read(options: Any) -> Preferences | None:
    """The preferences among what an editor sent; None where it says nothing of mlxgpt. Raises Error."""
    table = options.get("mlxgpt") if isinstance(options, dict) else None
    if table is None:
        return None
    try:
        return msgspec.convert(table, Preferences)
    except msgspec.ValidationError as error:
        raise Error(f"the editor's mlxgpt settings are left as they were: {error}") from None
