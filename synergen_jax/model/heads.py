"""What is read off the hidden states of readers: where to look for items (retrieval), and how each is received (ranking).

Neither head has a level of its own in the tree of parameters: `SynerGen` shares its scope with both, so that a checkpoint
holds their parameters beside its own, under the names that they have here.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from synergen_jax.batch import AnyArray, LogSpec
from synergen_jax.config import ModelConfig
from synergen_jax.model.blocks import boxed, dense


class RetrievalHead(nn.Module):
    """Vectors whose inner products with the keys of items are scores."""

    config: ModelConfig

    def setup(self):
        c = self.config
        # Starts as the identity, so that from the first step a query finds the items whose vectors are like its own.
        identity = lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype)
        self.retrieval_head = dense(c.width, ("embed", "embed_out"), jnp.dtype(c.dtype), in_axis=-1, init=identity)

    def __call__(self, hidden: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Retrieval vectors of hidden states, float32."""
        return self.keys(self.retrieval_head(hidden))

    def keys(self, items: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Vectors of items in float32, of unit length if `config.normalise`."""
        x = items.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6) if self.config.normalise else x


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
            wide = boxed(nn.initializers.zeros, (None, None))
            self.feature_wide = self.param("feature_wide", wide, (len(self.spec.candidate_features) + 1, labels))

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
        return logits + feature.astype(jnp.float32) @ self.feature_wide
