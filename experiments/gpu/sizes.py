"""The benchmarks of `synergen bench` at the sizes that only a card holds."""

from __future__ import annotations

import typing

from made_up import open_log
from setting import Setting

from synergen_jax import config as configs
from synergen_jax.bench import catalogue as catalogue_bench
from synergen_jax.bench import loss as loss_bench
from synergen_jax.bench import packing as packing_bench
from synergen_jax.bench import readers as readers_bench
from synergen_jax.bench import setting as bench_setting
from synergen_jax.bench import step as step_bench


def _bench(setting: Setting, module: typing.Any, sizes: tuple[int, ...] = (), words: tuple[str, ...] = ()):
    sizes, words = setting.by_size((sizes, words), ((), ()))
    bench = bench_setting.Setting(
        open_log, words, small=setting.small, rounds=setting.rounds, sizes=sizes, say=setting.say
    )
    return module.run(bench).as_json()


def catalogue(setting: Setting) -> dict[str, typing.Any]:
    """A step at 10^4, 10^6 and 10^7 items, all else equal."""
    return _bench(setting, catalogue_bench, (10_000, 1_000_000, 10_000_000))


def loss(setting: Setting) -> dict[str, typing.Any]:
    """Compiled peak memory of the loss by the number of negatives."""
    return _bench(setting, loss_bench, (1, 4, 16, 64))


def packing(setting: Setting) -> dict[str, typing.Any]:
    """Events a second, short histories packed over padded."""
    return _bench(setting, packing_bench, words=("--data.batch=512",))


def readers(setting: Setting) -> dict[str, typing.Any]:
    """A step over the masked Transformer's, five readers an event."""
    return _bench(setting, readers_bench, (200, 1000))


def recipe_step(setting: Setting) -> dict[str, typing.Any]:
    """The step of the ML-1M recipe, float32 as it ships: small kernels, many of them."""
    base = None if setting.small else configs.load("ml_1m")
    words = () if setting.small else ("--data.workers=0", "--mesh.data=1")
    bench = bench_setting.Setting(
        open_log, words, base=base, small=setting.small, rounds=3 * setting.rounds, say=setting.say
    )
    return step_bench.run(bench).as_json()
