"""What is read off the hidden states of readers: where to look for items (retrieval), and how each is received (ranking).

Neither head has a level of its own in the tree of parameters: `SynerGen` shares its scope with both, so that a checkpoint
holds their parameters beside its own, under the names that they have here.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synergen_jax.batch import AnyArray, LogSpec
from synergen_jax.config import ModelConfig
from synergen_jax.model.blocks import boxed, dense


class RetrievalHead(nn.Module):
    """Vectors whose inner products with the keys of items are scores.

    With `match` the vectors of items and queries have a second part (`embed.vector_width`), and so have keys and what readers
    want: there it is the query's, times a learned gain, and zero for a reader without a query. So what a query says is
    matched with what an item is past the Transformer, by parameters that recommendations do not move, and by one inner
    product still.
    """

    config: ModelConfig
    match: int = 0  # numbers of the second part

    def setup(self):
        c = self.config
        # Starts as the identity, so that from the first step a query finds the items whose vectors are like its own.
        identity = lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype)
        self.retrieval_head = dense(c.width, ("embed", "embed_out"), jnp.dtype(c.dtype), in_axis=-1, init=identity)
        if self.match:
            self.match_gain = self.param("match_gain", nn.initializers.zeros, ())

    def __call__(self, hidden: Float[Array, "... d"], queries: Float[Array, "... w"] | None = None) -> Array:
        """As `SynerGen.retrieve`."""
        taste = self._unit(self.retrieval_head(hidden))
        if not self.match:
            return taste
        if queries is None:
            return jnp.concatenate([taste, jnp.zeros((*taste.shape[:-1], self.match))], axis=-1)
        gain = jnp.exp(GAIN * self.match_gain - 1.0)
        return jnp.concatenate([taste, gain * self._unit(queries[..., self.config.width :])], axis=-1)

    def keys(self, items: Float[Array, "... w"]) -> Array:
        """As `SynerGen.keys`."""
        width = self.config.width
        keys = self._unit(items[..., :width])
        return jnp.concatenate([keys, self._unit(items[..., width:])], axis=-1) if self.match else keys

    def _unit(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """In float32, of unit length if `config.normalise`; zeros stay zeros."""
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6) if self.config.normalise else x


# Adam moves the gain's logarithm by this many times the learning rate a step: it has to grow tenfold.
GAIN = 10.0


class RankingHead(nn.Module):
    """Logits of the ranked labels, from the hidden state of a candidate's token, its retrieval score and its features."""

    config: ModelConfig
    spec: LogSpec

    def setup(self):
        width, dtype, labels = self.config.width, jnp.dtype(self.config.dtype), len(self.spec.labels)
        self.ranking_hidden = dense(width, ("embed", "embed_out"), dtype, in_axis=-1)
        self.ranking_out = dense(labels, ("embed", None), dtype, in_axis=-1, init=nn.initializers.zeros)
        self.ranking_bias = self.param("ranking_bias", nn.initializers.zeros, (labels,))
        # How much the retrieval score weighs in each label's logit: in that of the first from the start.
        first = lambda key, shape: jnp.zeros(shape).at[0].set(1.0)
        self.ranking_match = self.param("ranking_match", first, (labels,))
        if self.spec.candidate_features:
            # Features also weigh in the logits directly (wide and deep, Cheng et al. 2016): place and recency need no depth.
            # So do their squares and products of two, and a hidden layer beside the Transformer: what a regression on features
            # alone finds, the head finds, too.
            wide = boxed(nn.initializers.zeros, (None, None))
            self.feature_wide = self.param(
                "feature_wide", wide, (feature_columns(len(self.spec.candidate_features)), labels)
            )
            self.feature_deep_hidden = dense(width, (None, "embed"), dtype, in_axis=-1)
            self.feature_deep_out = dense(labels, ("embed", None), dtype, in_axis=-1, init=nn.initializers.zeros)

    def __call__(
        self, hidden: Float[Array, "... d"], score: Float[Array, "..."], feature: Float[AnyArray, "... f"] | None
    ) -> Float[Array, "... a"]:
        """As `SynerGen.rank`."""
        logits = self.ranking_out(nn.silu(self.ranking_hidden(hidden))).astype(jnp.float32)
        one = (1,) * (logits.ndim - 1) + (-1,)
        scale = 20.0 if self.config.normalise else 1.0  # cosines are small; 1 / the retrieval loss's usual temperature
        logits += self.ranking_bias.reshape(one) + scale * self.ranking_match.reshape(one) * score[..., None]
        if feature is None or not self.spec.candidate_features:
            return logits
        feature = _expanded(jnp.asarray(feature, jnp.float32))
        deep = self.feature_deep_out(nn.silu(self.feature_deep_hidden(feature.astype(hidden.dtype))))
        return logits + WIDE * (feature @ self.feature_wide) + deep.astype(jnp.float32)


# Adam moves a weight by its learning rate a step, at most; those of a regression on a few features are large, and one step
# of this many times the rate lets them get there while the Transformer learns.
WIDE = 10.0
PRODUCTS = 16  # features, at most, whose products of two count, too


def feature_columns(features: int) -> int:
    """How many `_expanded` gives of so many features."""
    return 1 + features + (features * (features + 1) // 2 if features <= PRODUCTS else features)


def _expanded(feature: Float[Array, "... f"]) -> Float[Array, "... w"]:
    """Features and their last column of ones, (..., F + 1), and behind them all products of two; of many the squares alone.

    Features that are not known are zeros, and stay so.
    """
    x = feature[..., :-1]
    if x.shape[-1] > PRODUCTS:
        return jnp.concatenate([feature, x**2], axis=-1)
    one, other = np.triu_indices(x.shape[-1])
    return jnp.concatenate([feature, x[..., one] * x[..., other]], axis=-1)
