"""All benchmarks by name, and what they found as people read it."""

from __future__ import annotations

import types
import typing

from synergen_jax.bench import attention, catalogue, loss, packing, readers, step
from synergen_jax.bench import feed as feeding
from synergen_jax.bench.setting import Result, Setting
from synergen_jax.evaluation import report

BENCHES: typing.Mapping[str, typing.Callable[[Setting], Result]] = types.MappingProxyType(
    {
        "step": step.run,
        "feed": feeding.run,
        "catalogue": catalogue.run,
        "readers": readers.run,
        "loss": loss.run,
        "attention": attention.run,
        "packing": packing.run,
    }
)
SIZED = ("catalogue", "readers", "loss")
OPEN = ("step", "feed", "packing")  # measure whatever config on whatever log


def text(result: Result) -> str:
    """A result as people read it."""
    lines = ["", result.title, report.table(result.rows)]
    lines += [
        f"{name}: {found.median:.2f}x" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.low < found.high else "")
        for name, found in result.ratios.items()
    ]
    return "\n".join(lines + [result.note] * bool(result.note))
