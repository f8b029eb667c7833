"""What the card gives before any model: matrix products of our shapes, and memory."""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
from setting import Setting

from synergen_jax.bench import timing
from synergen_jax.planning import flops

REPEAT = 8  # products a call, one after the other
Shape = tuple[int, int, int]  # of a product: (m, k) x (k, n)


def peak(setting: Setting) -> dict[str, typing.Any]:
    """TFLOP/s of matrix products (a square one, and those of the blocks), and GB/s of a copy, read and written."""
    rows, side, width = setting.by_size((65_536, 8192, 1024), (64, 128, 32))
    shapes: dict[str, tuple[Shape, str]] = {
        "square": ((side, side, side), "bfloat16"),
        "square, float32": ((side, side, side), "float32"),
        "projection, D x D": ((rows, width, width), "bfloat16"),
        "feed-forward, 8/3 D down to a multiple of 8": ((rows, width, width * 8 // 3 // 8 * 8), "bfloat16"),
        "feed-forward, a multiple of 128": ((rows, width, -(-width * 8 // 3 // 128) * 128), "bfloat16"),
        "width 128": ((rows, width // 8, width // 8), "bfloat16"),
    }
    sides = {name: _product(*shape) for name, shape in shapes.items()}
    found = timing.alternate(sides, setting.rounds)
    seconds = {name: timing.Spread.of(times).median / REPEAT for name, times in found.items()}
    kind = jax.devices()[0].device_kind
    rows_of = {
        name: {
            "shape": list(shape),
            "dtype": dtype,
            "tflops": 2 * shape[0] * shape[1] * shape[2] / seconds[name] / 1e12,
            "of_peak": flops.mfu(2.0 * shape[0] * shape[1] * shape[2], seconds[name], kind, dtype),
        }
        for name, (shape, dtype) in shapes.items()
    }
    return {"products": rows_of, "copy_gb_per_second": _copy(setting)}


def _product(shape: Shape, dtype: str) -> typing.Callable[[], jax.Array]:
    m, k, n = shape
    left, right, back = (
        jax.random.normal(jax.random.key(i), size, dtype) for i, size in enumerate([(m, k), (k, n), (n, k)])
    )

    @jax.jit
    def chain(x, right, back):
        for _ in range(REPEAT // 2):  # there and back: as many FLOPs each
            x = (x @ right) @ back * (1 / (k * n) ** 0.5)
        return x

    return lambda: chain(left, right, back)


def _copy(setting: Setting) -> float:
    x = jnp.zeros(setting.by_size(2**28, 2**14), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    times = timing.alternate({"copy": lambda: add(x)}, setting.rounds)["copy"]
    return 2 * x.nbytes / timing.Spread.of(times).median / 1e9
