"""Small curves in text: Braille characters of two by four dots, and a history of bounded length to draw."""

import math
from collections.abc import Sequence

MOST = 512  # points that a history keeps: more than a terminal is wide
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a character, by row and column (Unicode 2800)


class History:
    """A curve of any length in at most `MOST` points, each the mean of equally many values; NaN is left out."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._each, self._sum, self._count = 1, 0.0, 0

    def add(self, value: float) -> None:
        """Append a value."""
        if not math.isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._each:
            return
        self.points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.points) == MOST:
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2], strict=True)]
            self._each *= 2


def braille(points: Sequence[float], width: int, height: int) -> list[str]:
    """`height` lines of `width` characters with the curve of `points`, from its lowest value to its highest."""
    columns, rows = 2 * width, 4 * height
    if not points or width < 1 or height < 1:
        return [" " * width] * max(0, height)
    low, high = min(points), max(points)
    cells = [[0x2800] * width for _ in range(height)]
    before = None
    for x in range(columns):
        value = points[min(len(points) - 1, x * len(points) // columns)]
        y = round((high - value) / (high - low) * (rows - 1)) if high > low else rows // 2
        for between in range(min(y, before), max(y, before) + 1) if before is not None else (y,):  # no gaps
            cells[between // 4][x // 2] |= DOTS[between % 4][x % 2]
        before = y
    return ["".join(map(chr, row)) for row in cells]
