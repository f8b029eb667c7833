"""The attention backends that can run here side by side, forward and backward, and jax's own attention beside them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from synergen_jax import config as configs
from synergen_jax.bench import timing
from synergen_jax.bench.setting import ML_1M, TINY, Result, Setting
from synergen_jax.bench.timing import Spread
from synergen_jax.config import Config
from synergen_jax.errors import UserError, first_line
from synergen_jax.model import attention
from synergen_jax.model.attention import Causal, Prefix

BACKENDS = ("xla", "cudnn", "tokamax", "splash")
JAX = "jax.nn.dot_product_attention"


def run(setting: Setting) -> Result:
    """Seconds of each backend for context tokens, and for one reader an event; how many times as long as XLA's it takes."""
    config = setting.config(ML_1M, TINY)
    model, users, length = config.model, config.data.batch, config.data.max_history
    here, notes = _runnable(config)
    flops = 3 * 2 * 2 * model.width * users * length * (length + 1) / 2
    rows, ratios, times = [], {}, {}
    for case in ("context", "readers"):
        sides = _working(_sides(config, case, here), notes, case)
        found = timing.alternate(sides, setting.rounds, setting.trace and setting.trace / case)
        for name, seconds in found.items():
            spread = Spread.of(seconds)
            rows.append({"tokens": case, "backend": name, "s": spread.cell(), "GFLOP/s": flops / 1e9 / spread.median})
            if name != "xla":
                ratios[f"{case}, {name} over xla, seconds"] = timing.ratio(seconds, found["xla"])
        times |= {f"{case}, {name}": seconds for name, seconds in found.items()}
    heads = f"{model.heads} heads of {model.width // model.heads}"
    title = f"attention, forward and backward: B {users}, L {length}, {heads}, {model.dtype}"
    return Result("attention", title, rows, ratios, times, "; ".join(notes) + "." * bool(notes))


def _runnable(config: Config) -> tuple[list[str], list[str]]:
    """The backends that can run here, and what hinders the others."""
    here, notes = [], []
    for backend in BACKENDS:
        try:
            attention.check(configs.override(config, [f"--model.attention={backend}"]))
            here.append(backend)
        except UserError as error:
            notes.append(str(error).partition(":")[0])
    return here, notes


def _working(sides: timing.Sides, notes: list[str], case: str) -> timing.Sides:
    """The sides that run; of the others it is noted why not, so that one kernel's fault does not cost what others tell."""
    found = {}
    for name, side in sides.items():
        try:
            jax.block_until_ready(side())
            found[name] = side
        except Exception as error:
            if name == "xla":
                raise
            notes.append(f"{case}: {name} fails ({type(error).__name__}: {first_line(error)[:200]})")
    return found


def _sides(config: Config, case: str, backends: list[str]):
    """Gradients of one attention by each backend: of context tokens, or of one reader an event."""
    model, users, length = config.model, config.data.batch, config.data.max_history
    shape = (users, model.heads, length, model.width // model.heads)
    weight, *inputs = (jax.random.normal(key, shape, model.dtype) for key in jax.random.split(jax.random.key(0), 6))
    visible = jnp.broadcast_to(jnp.arange(length), (users, length))

    def ours(q, k, v, keys, values, backend):
        over = Causal() if case == "context" else Prefix(keys, values, visible, per_event=1)
        return jnp.sum(weight * attention.attend(q, k, v, over, backend))

    def theirs(q, k, v):
        heads_last = (x.swapaxes(1, 2) for x in (q, k, v))
        return jnp.sum(weight.swapaxes(1, 2) * jax.nn.dot_product_attention(*heads_last, is_causal=True))

    one = jax.jit(jax.grad(ours, argnums=range(5)), static_argnums=5)
    other = jax.jit(jax.grad(theirs, argnums=range(3)))
    sides = {backend: lambda backend=backend: one(*inputs, backend) for backend in backends}
    return sides | {JAX: lambda: other(*inputs[:3])} if case == "context" else sides
