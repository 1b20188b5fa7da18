"""Which buffer a request is about that does not say so: the one whose text it continues or changes a little."""

from collections import OrderedDict

import numpy as np

KEEP = 16  # buffers that are told apart


class Unnamed:
    """Names for buffers without one, so that what was computed for each stays with it."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, bytes] = OrderedDict()
        self._count = 0

    def name(self, prefix: bytes) -> str:
        """The name of the buffer with this text before the cursor: that of the one which shares most of its beginning,
        at least half of the shorter, or a new one. No file has such a name."""
        best, shared = "", 0
        for name, text in self._texts.items():
            length = common_length(text, prefix)
            if length > shared and 2 * length >= min(len(text), len(prefix)):
                best, shared = name, length
        if not best:
            self._count += 1
            best = f"\0{self._count}"
        self._texts.pop(best, None)
        self._texts[best] = prefix
        if len(self._texts) > KEEP:
            self._texts.popitem(last=False)
        return best


def common_length(a: bytes, b: bytes) -> int:
    """How many leading bytes two texts share."""
    size = min(len(a), len(b))
    differ = np.frombuffer(a, np.uint8, size) != np.frombuffer(b, np.uint8, size)
    return int(differ.argmax()) if differ.any() else size
