"""What a profiler's trace says: which kernels took the time."""

from __future__ import annotations

import pathlib
import typing

import jax

MOST = 15  # kernels that are told by name


def top(folder: pathlib.Path) -> dict[str, typing.Any]:
    """Milliseconds of the longest kernels of the newest trace in a folder, by name, and of all of them.

    Of a GPU its streams are read, of a CPU the threads that run XLA's operations.
    """
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{folder}: the profiler wrote no trace")
    trace = jax.profiler.ProfileData.from_file(str(files[-1]))
    device = [plane for plane in trace.planes if plane.name.startswith("/device:GPU")]
    lines = [line for plane in device for line in plane.lines if line.name.startswith("Stream")]
    if not lines and jax.devices()[0].platform != "cpu":
        raise RuntimeError("the profiler told nothing of the device: has it the right to read its counters?")
    lines = lines or [line for plane in trace.planes for line in plane.lines if "xla" in line.name.lower()]
    spent: dict[str, list[float]] = {}
    for line in lines:
        for event in line.events:
            spent.setdefault(event.name, []).append(event.duration_ns / 1e6)
    total = sum(map(sum, spent.values()))
    longest = sorted(spent.items(), key=lambda one: -sum(one[1]))[:MOST]
    rows = [
        {"kernel": name[:160], "ms": sum(times), "calls": len(times), "share": sum(times) / total}
        for name, times in longest
    ]
    return {"kernels": rows, "total_ms": total}
