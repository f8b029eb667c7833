"""`synergen plan`."""

from __future__ import annotations

import dataclasses
import typing

from synergen_jax.cli import shared_arguments as shared
from synergen_jax.errors import UserError
from synergen_jax.processes.cluster import say

if typing.TYPE_CHECKING:
    from synergen_jax.config import Config
    from synergen_jax.planning.plan import Plan
    from synergen_jax.runs.inputs import Sizes

GIB = 2**30


def declare(commands: shared.Commands) -> None:
    """Adds the command."""
    plan = shared.command(
        commands,
        "plan",
        "Compile training and validation for many virtual devices, and tell what each would need; no log, nothing is run.",
        "synergen plan plan_100m --devices 256 --items 100000000\n"
        "  synergen plan ml_1m --devices 2,4,8,16 --weak --mesh.model 2",
        run,
        settings=True,
    )
    plan.add_argument("config", help="a TOML file, or the name of a shipped config")
    plan.add_argument(
        "--devices", type=shared.numbers, required=True, help="how many, or several numbers, comma-separated"
    )
    plan.add_argument("--items", type=int, default=1_000_000, help="items of the catalogue (default: 1,000,000)")
    plan.add_argument("--queries", type=int, default=0, help="distinct queries of the log (default: 0)")
    plan.add_argument("--text-width", type=int, default=0, help="width of a semantic matrix of them (default: 0, none)")
    plan.add_argument("--memory", type=float, default=80.0, help="GiB of each device (default: 80)")
    plan.add_argument(
        "--weak",
        action="store_true",
        help="weak scaling: data.batch is that of the first number of devices, and grows with them",
    )


def run(arguments, settings) -> dict[str, typing.Any]:
    """Compiles for each number of devices in a fresh process, and tells what each would hold and send."""
    from synergen_jax import config as configs
    from synergen_jax.runs.inputs import Sizes
    from synergen_jax.runs.plan import elsewhere

    config = configs.load(arguments.config, settings)
    # Planned is for accelerators: what suits this CPU does not matter, and their kernels it cannot compile.
    config = configs.override(
        config, [f"--optimiser.accumulate={config.optimiser.accumulate or 1}", "--model.attention=xla"]
    )
    for name, least in (("items", 1), ("queries", 0), ("text_width", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(arguments, name)}")
    if min(arguments.devices) < 1:
        raise UserError(f"--devices must be at least 1, not {min(arguments.devices)}")
    sizes = Sizes(arguments.items, arguments.queries, arguments.text_width)
    tasks = [(_scaled(config, arguments.devices[0], n) if arguments.weak else config, n) for n in arguments.devices]
    plans = []
    for mine, devices in tasks:
        plans.append(elsewhere(mine, sizes, devices))
        say(f"{devices} devices: compiled in {plans[-1].seconds:.0f} s")
    say(text(plans, config, sizes, arguments.memory))
    return {
        "items": sizes.items,
        "memory_bytes": arguments.memory * GIB,
        "plans": [
            dataclasses.asdict(one) | {"total": one.total, "fits": one.total <= arguments.memory * GIB} for one in plans
        ],
    }


def _scaled(config: Config, first: int, devices: int) -> Config:
    """The config with as many windows a device on `devices` as it has on the first number of them."""
    from synergen_jax import config as configs

    batch, rest = divmod(config.data.batch * devices, first)
    if rest:
        raise UserError(f"--weak: data.batch {config.data.batch} on {first} devices is no whole number on {devices}")
    return configs.override(config, [f"--data.batch={batch}"])


def text(plans: list[Plan], config: Config, sizes: Sizes, memory: float) -> str:
    """All plans as one table, a column a plan."""
    from synergen_jax.evaluation import report
    from synergen_jax.planning.plan import MIB

    rows = []

    def row(what: str, of: typing.Callable[[Plan], typing.Any]):
        rows.append({"each device": what} | {f"{one.devices} devices": of(one) for one in plans})

    row("mesh, data x model", lambda one: " x ".join(map(str, one.mesh.values())))
    row("windows a step, all devices", lambda one: f"{one.batch:,}")
    for name, of in (
        ("parameters", lambda one: one.parameters),
        ("optimiser", lambda one: one.optimiser),
        ("batch", lambda one: one.data),
        ("catalogue", lambda one: one.catalogue),
        ("activations, temporaries", lambda one: one.temporaries + one.outputs),
        ("or else, in validation", lambda one: one.validation),
        ("total", lambda one: one.total),
    ):
        row(f"{name}, MiB", lambda one, of=of: f"{of(one) / MIB:,.1f}")
    row(f"fits in {memory:g} GiB", lambda one: one.total <= memory * GIB)
    for kind in sorted({kind for one in plans for kind in one.collectives}):
        row(f"{kind}, MiB a step", lambda one, kind=kind: f"{one.collectives.get(kind, 0) / MIB:,.2f}")
    row("all collectives, MiB a step", lambda one: f"{sum(one.collectives.values()) / MIB:,.2f}")
    row("GFLOP a step", lambda one: f"{one.flops / one.devices / 1e9:,.1f}")
    head = (
        f"{sizes.items:,} items, {sizes.queries:,} queries, D {config.model.width}, {config.model.depth} layers, "
        f"L {config.data.max_history}, {config.model.dtype}"
    )
    return f"\n{head}\n{report.table(rows)}"
