"""A model's probabilities and the n-grams', in one: p = (1 - s) p_model + s p_ngrams (Jelinek and Mercer, 1980).

The share s depends on how much of the context the n-grams have seen, how often, and how sure they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxgpt.completion.ngram import Prediction

# For a model that nobody calibrated, which may well know more than the project's text: the n-grams speak up where a
# long context is found and goes on one way.
CAUTIOUS = (-3.0, 0.4, 0.3, 1.6)


@dataclass(frozen=True)
class Observation:
    """One token of held-out text: what the model and the n-grams gave it, and what the n-grams went by."""

    model: float
    ngrams: float
    features: tuple[float, ...]


def features(prediction: Prediction) -> tuple[float, ...]:
    """What the share depends on: 1, log of the context's length, log of its places, the greatest probability."""
    return 1.0, float(np.log1p(prediction.length)), float(np.log1p(prediction.places)), prediction.top


@dataclass(frozen=True)
class Mixture:
    """The share of the n-grams: the logistic function of a weighted sum of `features`."""

    weights: tuple[float, ...] = CAUTIOUS

    def share(self, prediction: Prediction) -> float:
        """The n-grams' share, 0 to 1; 0 where they know nothing."""
        if not prediction.ids:
            return 0.0
        return float(1 / (1 + np.exp(-np.dot(self.weights, features(prediction)))))

    def blend(self, probabilities: np.ndarray, prediction: Prediction) -> np.ndarray:
        """Both, for every token: float64 [V]."""
        share = self.share(prediction)
        blended = (1 - share) * probabilities
        if share:
            known = [(i, p) for i, p in zip(prediction.ids, prediction.probabilities, strict=True) if i >= 0]
            ids, values = zip(*known, strict=True) if known else ((), ())
            blended[list(ids)] += share * np.array(values)
        return blended


def fit(observations: Sequence[Observation]) -> Mixture:
    """The mixture under which held-out tokens are likeliest, by gradient ascent (Adam) with a little weight decay."""
    if not observations:
        return Mixture()
    model, ngrams = (np.array([getattr(o, name) for o in observations]) for name in ("model", "ngrams"))
    x = np.array([o.features for o in observations])
    weights, mean, square = np.array(CAUTIOUS), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for step in range(1, 1501):
        share = 1 / (1 + np.exp(-x @ weights))
        mixed = share * ngrams + (1 - share) * model + 1e-9
        gradient = -x.T @ ((ngrams - model) / mixed * share * (1 - share)) / len(x) + 1e-3 * weights
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        weights = weights - 0.05 * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return Mixture(tuple(weights.tolist()))
