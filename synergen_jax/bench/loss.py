"""Compiled peak memory of the retrieval loss, forward and backward, by the number of negatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from synergen_jax.bench.setting import ML_1M, TINY, Result, Setting
from synergen_jax.bench.timing import Spread
from synergen_jax.planning import hlo
from synergen_jax.training import losses

TIMES = (1, 2, 4, 8, 16)


def run(setting: Setting) -> Result:
    """Bytes that the compiled loss needs: arguments, gradients and temporaries; nothing is run."""
    config = setting.config(ML_1M, TINY)
    positions, width = config.data.batch * config.data.max_history, config.model.width
    rows, peaks = [], {}
    for times in sorted(setting.sizes or TIMES):
        negatives = times * (config.data.negatives + config.loss.in_batch)
        memory = hlo.memory(_compiled(positions, width, negatives, config.loss.temperature))
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        peaks[times] = peak
        rows.append(
            {
                "negatives": negatives,
                "temporaries MiB": memory.temp_size_in_bytes / 2**20,
                "peak MiB": peak / 2**20,
                "all logits MiB": positions * negatives * 4 / 2**20,
            }
        )
    (first, least), *others = peaks.items()
    ratios = {f"{times // first}x negatives, peak bytes": Spread.of([peak / least]) for times, peak in others}
    return Result("loss", f"memory of InfoNCE, forward and backward: {positions:,} positions, D {width}", rows, ratios)


def _compiled(positions: int, width: int, negatives: int, temperature: float) -> jax.stages.Compiled:
    """InfoNCE with its gradients of queries, positives and negatives, compiled for these sizes."""

    def loss(query, positive, negative, positive_id, negative_id, weight, *log_q):
        return losses.info_nce(query, positive, positive_id, negative, negative_id, weight, log_q, temperature)

    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
    return (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        .lower(
            shape(positions, width),
            shape(positions, width),
            shape(negatives, width),
            shape(positions, dtype=jnp.int32),
            shape(negatives, dtype=jnp.int32),
            shape(positions),
            shape(positions),
            shape(negatives),
        )
        .compile()
    )
