"""LightGBM's LambdaRank over lists: what a ranker on the same columns can do."""

from __future__ import annotations

import typing

import lightgbm
import numpy as np

ROUNDS, PATIENCE = 1000, 50
SETTINGS: dict[str, typing.Any] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "verbosity": -1,
    "deterministic": True,
}


def fit(
    feature: np.ndarray, number: np.ndarray, chosen: np.ndarray, held: np.ndarray, settings: dict[str, typing.Any]
) -> lightgbm.Booster:
    """Fits on some lists, and stops by the others.

    Args:
      feature, number, chosen: of the n items of all lists, one list after the other: (n, C); the number of each item's list,
        (n,), going up; whether it was chosen, (n,).
      held: whether an item's list only says when to stop, (n,).
      settings: of LightGBM, beside `SETTINGS`.
    """

    def data(which: np.ndarray, reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        _, sizes = np.unique(number[which], return_counts=True)
        return lightgbm.Dataset(feature[which], chosen[which].astype(np.int32), group=sizes, reference=reference)

    train = data(~held)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    return lightgbm.train(SETTINGS | settings, train, ROUNDS, [data(held, train)], callbacks=[stop])


def scores(booster: lightgbm.Booster, feature: np.ndarray) -> np.ndarray:
    """Scores of lists, (n, K), by their features, (n, K, C)."""
    return np.asarray(booster.predict(feature.reshape(-1, feature.shape[-1]))).reshape(feature.shape[:-1])
