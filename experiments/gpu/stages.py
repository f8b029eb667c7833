"""What a visit measures, in order: the most valuable first. Names and limits alone, so that planning loads no jax.

A unit is what is measured at once and written as one record; a stage is a question, with units and a time limit.
"""

from __future__ import annotations

import pathlib
import tomllib
import types
import typing

FAMILY = pathlib.Path(__file__).resolve().parent.parent / "families" / "ladder_1m.toml"
Choices = typing.Mapping[str, typing.Any]
NOTHING: Choices = types.MappingProxyType({})


class Unit(typing.NamedTuple):
    """One measurement."""

    name: str
    call: str  # "module.function" beside this file; its first argument is a `setting.Setting`
    arguments: Choices = NOTHING
    needs: float = 20.0  # seconds that it takes on the card, roughly: it is not begun where less is left
    environment: Choices = NOTHING  # variables of its process


class Stage(typing.NamedTuple):
    """Units that answer one question."""

    name: str
    title: str
    limit: float  # seconds in one visit
    units: tuple[Unit, ...]


BACKENDS = ("xla", "cudnn", "tokamax")
DETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
FLAGS = {  # what is tried on the step of stage "mfu", one at a time
    "no Triton GEMMs": {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"},
    "no command buffers": {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="},
    "latency hiding": {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true"},
    "deterministic": DETERMINISTIC,
}
SMALL_FLAGS = ("no command buffers", "deterministic")  # and on that of the ML-1M recipe, which is small
SEEDS = (0, 1, 2)


def _device() -> Stage:
    units = (Unit("peak", "device.peak", needs=15),)
    return Stage("device", "What the card gives: matrix products and copies", 60, units)


def _correctness() -> Stage:
    dtypes = ("float32", "bfloat16")
    units = [Unit("factorised = masked", "correctness.factorised")]
    units += [
        Unit(f"{backend}, {dtype}", "correctness.backend", {"backend": backend, "dtype": dtype})
        for backend in BACKENDS
        for dtype in dtypes
        if (backend, dtype) != ("cudnn", "float32")  # it computes in bfloat16 alone
    ]
    units += [
        Unit("resume", "correctness.resume"),
        Unit("resume, deterministic", "correctness.resume", environment=DETERMINISTIC),
        Unit("tiny run", "correctness.tiny_run"),
    ]
    return Stage("correctness", "Does the card compute what it should?", 260, tuple(units))


def _mfu() -> Stage:
    step = lambda name, environment=NOTHING, **more: Unit(name, "mfu.step", more, 90, environment)
    units = [step(f"step, {backend}", backend=backend) for backend in ("cudnn", "xla", "tokamax")]
    units += [
        Unit("profile", "mfu.profile", {"backend": "auto"}, 45),
        Unit("blocks alone", "mfu.blocks", {"backend": "auto"}, 30),
        Unit("attention", "mfu.attention_alone", {"width": 1024, "heads": 8}, 60),
        Unit("attention, Dh 64", "mfu.attention_alone", {"width": 1024, "heads": 16}, 60),
        Unit("attention, Dh 32", "mfu.attention_alone", {"width": 128, "heads": 4}, 60),
        *(Unit(f"HSTU, {rows} rows", "hstu.jagged", {"rows": rows}, 60) for rows in ("full", "packed", "padded")),
        step("step with feed", backend="auto", feed=True),
        step("step, padded rows", backend="auto", jagged="padded"),
        step("step, packed rows", backend="tokamax", jagged="packed"),
        step("step, bias by time", backend="auto", time_bias=True),
    ]
    units += [step(f"step, {name}", environment, backend="auto") for name, environment in FLAGS.items()]
    return Stage("mfu", "Model FLOPs utilisation, by backend", 420, tuple(units))


def _sizes() -> Stage:
    units = (
        Unit("catalogue", "sizes.catalogue", needs=90),
        Unit("loss", "sizes.loss", needs=30),
        Unit("packing", "sizes.packing", needs=40),
        Unit("readers", "sizes.readers", needs=60),
        Unit("recipe's step", "sizes.recipe_step", needs=30),
        *(Unit(f"recipe's step, {name}", "sizes.recipe_step", {}, 30, FLAGS[name]) for name in SMALL_FLAGS),
    )
    return Stage("sizes", "Step by items, memory of the loss, packing, readers", 220, units)


def _recipe() -> Stage:
    units = tuple(Unit(f"recipe, seed {seed}", "recipe.run", {"variant": "recipe", "seed": seed}, 90) for seed in SEEDS)
    return Stage("recipe", "The ML-1M recipe, three seeds", 400, units)


def _ranking() -> Stage:
    case = lambda users, dtype: Unit(f"{users} users, {dtype}", "ranking.cached", {"users": users, "dtype": dtype}, 45)
    units = (case(1, "bfloat16"), case(8, "bfloat16"), case(1, "float32"))
    return Stage("ranking", "256 candidates over cached events", 150, units)


def _torch() -> Stage:
    shared = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}  # the rest is torch's
    units = tuple(Unit(f"step, {kind}", "peer.step", {"attention": kind}, 110, shared) for kind in ("flex", "sdpa"))
    return Stage("torch", "The same model in PyTorch", 300, units)


def _variants() -> Stage:
    names = [name for name in tomllib.loads(FAMILY.read_text(encoding="utf-8"))["variants"] if name != "recipe"]
    call = lambda name, seed: Unit(f"{name}, seed {seed}", "recipe.run", {"variant": name, "seed": seed}, 90)
    units = tuple(call(name, seed) for name in names for seed in SEEDS)
    return Stage("variants", "What each lever of the recipe does", 540, units)


STAGES: tuple[Stage, ...] = (
    _device(),
    _correctness(),
    _mfu(),
    _sizes(),
    _recipe(),
    _ranking(),
    _torch(),
    _variants(),
)


def rehearsed() -> tuple[Stage, ...]:
    """The stages of a rehearsal: all of them, of runs that differ in a seed or a setting alone one."""
    few = {"recipe": 1, "variants": 1}
    return tuple(stage._replace(units=stage.units[: few.get(stage.name)]) for stage in STAGES)
