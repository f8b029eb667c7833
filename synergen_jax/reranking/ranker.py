"""The ranker: a small network over the features of a retrieved list, one score an item."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synergen_jax.errors import UserError, first_line

WIDTH, DEPTH, DROPOUT = 64, 2, 0.1


class RankerNet(nn.Module):
    """Scores of items from their standardised features: a linear part, and layers beside it (wide and deep).

    Each item is scored by itself. At first the score is the first feature, that of retrieval, and so the order its own.
    """

    width: int = WIDTH
    depth: int = DEPTH
    dropout: float = DROPOUT

    @nn.compact
    def __call__(self, feature: Float[Array, "... c"], deterministic: bool = True) -> Float[Array, "..."]:
        """Maps features (..., C) to scores (...)."""
        first = lambda key, shape: jnp.zeros(shape).at[0].set(1.0)
        wide = self.param("wide", first, (feature.shape[-1],))
        h = feature
        for _ in range(self.depth):
            h = nn.Dropout(self.dropout)(nn.silu(nn.Dense(self.width)(h)), deterministic)
        return feature @ wide + nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[..., 0]


@dataclasses.dataclass(frozen=True)
class Ranker:
    """A fitted ranker, and what it was fitted on."""

    columns: tuple[str, ...]  # the C features, by `list_features.names`
    mean: np.ndarray  # (C,) of the lists that it learned from
    spread: np.ndarray  # (C,) likewise, their standard deviation
    variables: typing.Any  # of `RankerNet`
    about: dict[str, typing.Any]  # of whom it is: log, step, how many items of a list; what it found

    def scores(self, feature: np.ndarray) -> np.ndarray:
        """Scores (B, F) of items by their features (B, F, C); higher is better."""
        return np.asarray(_scores(self.variables, (feature - self.mean) / self.spread))

    def save(self, folder: pathlib.Path) -> None:
        """Writes `ranker.json` and `ranker.msgpack`."""
        arrays = {"mean": self.mean, "spread": self.spread, "variables": jax.device_get(self.variables)}
        (folder / "ranker.msgpack").write_bytes(flax.serialization.msgpack_serialize(arrays))
        said = {"columns": list(self.columns)} | self.about
        (folder / "ranker.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: pathlib.Path) -> typing.Self:
        """Reads what `save` wrote.

        Raises:
          UserError: it is not there, or damaged.
        """
        try:
            said = json.loads((folder / "ranker.json").read_text(encoding="utf-8"))
            arrays = flax.serialization.msgpack_restore((folder / "ranker.msgpack").read_bytes())
            columns = tuple(said.pop("columns"))
            found = cls(columns, arrays["mean"], arrays["spread"], arrays["variables"], said)
            found.scores(np.zeros((1, 1, len(columns)), np.float32))
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} is missing: `synergen rerank` writes it again") from None
        except Exception as error:  # msgpack and flax have many
            raise UserError(f"{folder} is damaged ({first_line(error)}): `synergen rerank` writes it again") from None
        return found


@jax.jit
def _scores(variables: typing.Any, feature: Array) -> Array:
    return typing.cast(Array, RankerNet().apply(variables, feature))
