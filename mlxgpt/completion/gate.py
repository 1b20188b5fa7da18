"""Whether a suggestion is shown: how likely it is to be what the user would have typed, and how much that must be."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FEATURES = ("one", "logit", "weakest", "margin", "agreement", "tokens", "characters", "within_word")
AS_IT_SAYS = (0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # the confidence is the line's own probability


@dataclass(frozen=True)
class Evidence:
    """What is known of a suggestion. Log-probabilities in nats: of the whole of it, of its weakest token, and how much
    likelier it is than the next best; `agreement`: the share of its tokens that the n-grams would have chosen."""

    logprob: float
    weakest: float
    margin: float
    agreement: float
    tokens: int
    characters: int
    within_word: bool

    def features(self) -> np.ndarray:
        """Float64 [F], in the order of `FEATURES`."""
        p = min(max(float(np.exp(self.logprob)), 1e-6), 1 - 1e-6)
        return np.array([
            1.0, np.log(p / (1 - p)), max(self.weakest, -10.0), float(np.clip(self.margin, -5.0, 5.0)), self.agreement,
            np.log1p(self.tokens), np.log1p(self.characters), float(self.within_word),
        ])  # fmt: skip


@dataclass(frozen=True)
class Point:
    """With this threshold: the share of cursors at which something is shown, and of that how much is wrong."""

    threshold: float
    shown: float
    false_show: float


@dataclass(frozen=True)
class Gate:
    """Confidence from evidence, and what each threshold did on held-out text."""

    weights: tuple[float, ...] = AS_IT_SAYS
    curve: list[Point] = field(default_factory=list)

    def confidence(self, evidence: Evidence) -> float:
        """How likely the suggestion is the rest of the line, 0 to 1."""
        return float(1 / (1 + np.exp(-np.clip(np.dot(self.weights, evidence.features()), -30, 30))))

    def threshold(self, false_show: float) -> float:
        """The lowest threshold at which no more than this share of what is shown is wrong; above 1 where there is none.

        Without held-out figures the confidence is taken at its word."""
        if not self.curve:
            return 1 - false_show
        return min((p.threshold for p in self.curve if p.false_show <= false_show), default=1.01)

    def least(self, threshold: float | None, false_show: float | None) -> float:
        """The confidence from which on suggestions are shown: that of `false_show`, else `threshold`, else any."""
        return (threshold or 0.0) if false_show is None else self.threshold(false_show)

    def as_json(self) -> dict[str, Any]:
        """A table that `from_json` reads."""
        return {
            "weights": dict(zip(FEATURES, self.weights, strict=True)),
            "curve": [[round(x, 4) for x in (p.threshold, p.shown, p.false_show)] for p in self.curve],
        }

    @classmethod
    def from_json(cls, table: dict[str, Any]) -> "Gate":
        """The gate of a table. Raises LookupError, TypeError, ValueError for one that is damaged."""
        return cls(tuple(float(table["weights"][f]) for f in FEATURES), [Point(*map(float, p)) for p in table["curve"]])


def fit(cases: Sequence[tuple[Evidence, bool]]) -> Gate:
    """The gate under which these verdicts (right, or not) are likeliest: logistic regression by Newton's method, drawn
    towards the line's own probability as far as the cases do not say otherwise (Gaussian prior)."""
    if not cases:
        return Gate()
    x = np.stack([evidence.features() for evidence, _ in cases])
    y = np.array([right for _, right in cases], np.float64)
    prior = np.array(AS_IT_SAYS)
    weights = prior.copy()
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + (weights - prior)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(len(prior))
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-9))
        if np.abs(step).max() < 1e-6:
            break
    gate = Gate(tuple(weights.tolist()))
    return Gate(gate.weights, acceptance([(gate.confidence(evidence), right) for evidence, right in cases]))


def acceptance(judged: Sequence[tuple[float, bool]], total: int | None = None) -> list[Point]:
    """The acceptance curve of suggestions with their confidences and verdicts, at thresholds from 0 in steps of 0.05:
    each point's `shown` is of `total` cursors (default: as many as there are suggestions)."""
    count = max(1, len(judged) if total is None else total)
    points = []
    for i in range(20):
        shown = [right for confidence, right in judged if confidence >= i / 20]
        wrong = shown.count(False) / len(shown) if shown else 0.0
        points.append(Point(i / 20, len(shown) / count, wrong))
    return points
