"""How long a request waits for a newer one that would make it pointless."""

IDLE = 1.0  # seconds without a request after which the next one is answered at once
RECENT = 0.3  # of an average is the newest value


class Debounce:
    """The wait grows with the time that answers take and with how fast requests come, up to `most` seconds.

    While requests come every `gap` seconds and an answer takes `latency`, to answer each of them keeps the machine busy
    a share `latency / gap` of the time. The wait is that share of `latency`: next to nothing for answers much faster
    than the typing, and at most the time that an answer would take.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._latency = 0.0
        self._gap = IDLE
        self._last: float | None = None

    def asked(self, now: float) -> float:
        """A request comes, `now` by a clock that only goes forward: the seconds it should wait."""
        gap = IDLE if self._last is None else now - self._last
        self._last = now
        if gap >= IDLE:
            self._gap = IDLE
            return 0.0
        self._gap += RECENT * (gap - self._gap)
        return min(self._most, self._latency * min(1.0, self._latency / max(self._gap, 1e-3)))

    def answered(self, seconds: float) -> None:
        """An answer took so long."""
        self._latency += RECENT * (seconds - self._latency)
