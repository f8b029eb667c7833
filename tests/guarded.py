"""The modules whose shapes are checked at run time in tests."""

GUARDED = (
    "synergen_jax.model.rope",
    "synergen_jax.model.attention",
    "synergen_jax.training.losses",
    "synergen_jax.evaluation.metrics",
)
