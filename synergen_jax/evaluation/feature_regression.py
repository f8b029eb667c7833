"""A regression on what is known of the items of a shown list, and on nothing else: no id, no history, no query.

What a model within shown lists is to be held against: if it is not ahead, the candidate features did the work.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import scipy.optimize

from synergen_jax.batch import EvalBatch
from synergen_jax.errors import UserError

RIDGE = 1e-3  # beside the mean loss of a list
PRODUCTS = 16  # features, at most, whose products of two take part, too


@dataclasses.dataclass(frozen=True)
class FeatureRegression:
    """A conditional logit (McFadden 1974): P(i is chosen) = exp(w·x_i) / Σ_j exp(w·x_j) over the items j of a list.

    x are the features, and their squares and products of two, all standardised over the items of the training lists.
    """

    mean: np.ndarray  # (W,)
    spread: np.ndarray  # (W,)
    weight: np.ndarray  # (W,)

    @classmethod
    def fit(cls, feature: np.ndarray, number: np.ndarray, chosen: np.ndarray) -> FeatureRegression:
        """Fits the weights by L-BFGS: the mean over lists of the mean -log P of what is chosen, + ridge / 2 |w|².

        Args:
          feature, number, chosen: of `windows.training_lists`, (n, F), (n,) and (n,): lists from 0, one after the
            other, each with something that was chosen.

        Raises:
          UserError: there is no list.
        """
        if not len(number):
            raise UserError("no list of the training part has both what was chosen and what was not")
        x = _expanded(feature)
        mean, spread = x.mean(axis=0), x.std(axis=0)
        spread[spread < 1e-6 * (1 + np.abs(mean))] = np.inf  # a constant tells nothing
        x = (x - mean) / spread
        lists = int(number[-1]) + 1
        start = np.searchsorted(number, np.arange(lists))
        wanted = chosen / np.bincount(number, chosen)[number]

        def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
            score = x @ weight
            highest = np.maximum.reduceat(score, start)
            power = np.exp(score - highest[number])
            total = np.add.reduceat(power, start)
            value = np.sum(highest + np.log(total)) - wanted @ score
            gradient = (power / total[number] - wanted) @ x
            return value / lists + RIDGE / 2 * weight @ weight, gradient / lists + RIDGE * weight

        found = scipy.optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
        return cls(mean, spread, found.x)

    def scores(self, feature: np.ndarray) -> np.ndarray:
        """w·x of candidates by `Candidates.feature`, (..., F + 1) -> (...,); where it is not known 0, the average."""
        x = (_expanded(feature[..., :-1]) - self.mean) / self.spread
        return np.where(feature[..., -1] > 0, x @ self.weight, 0.0)

    def within_lists(self, batch: EvalBatch, counts: npt.ArrayLike) -> np.ndarray:
        """A `baselines.ListScorer`."""
        del counts
        assert batch.ranking.feature is not None  # the log has candidate features
        return self.scores(np.asarray(batch.ranking.feature)[:, 0])

    def predict(self, batch: EvalBatch) -> np.ndarray:
        """A `baselines.Predictor` of the first label: the logit of P within the list; nothing of the others.

        Candidates that were drawn, not shown, are as likely as each other.
        """
        there = batch.ranking.item[:, 0] > 0
        score = np.where(there, self.within_lists(batch, ()), -np.inf)
        score[~there.any(axis=1)] = 0.0  # of a padded row anything
        power = np.exp(score - score.max(axis=1, keepdims=True))
        p = np.clip(power / power.sum(axis=1, keepdims=True), 1e-6, 1 - 1e-6)
        logits = np.full(batch.ranking.label[:, 0].shape, np.nan)
        logits[..., 0] = np.log(p / (1 - p))
        return logits


def _expanded(feature: np.ndarray) -> np.ndarray:
    """Features (..., F) as float64, and behind them all F (F + 1) / 2 products of two; of many features the squares."""
    x = np.asarray(feature, np.float64)
    if x.shape[-1] > PRODUCTS:
        return np.concatenate([x, x**2], axis=-1)
    one, other = np.triu_indices(x.shape[-1])
    return np.concatenate([x, x[..., one] * x[..., other]], axis=-1)
