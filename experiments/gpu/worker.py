"""The process that measures: some units of one stage, one after the other. Started by visit.py, which tells it what.

It writes a line of JSON an event to what was its standard output: `ready` with the device, `begin` and `end` of each unit.
All else that is printed goes to standard error. It ends when its standard input does, so that it never outlives the
visit; and after a unit that failed, since what a lost device or a full memory leaves behind is not to be trusted.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import sys
import threading
import time
import traceback
import types
import typing

HERE = pathlib.Path(__file__).resolve().parent
FAILED = 3  # the status of a worker whose last unit failed
# A rehearsal's CPU compiles little.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
WORDS = 1500  # characters kept of an error


def main() -> int:
    """0 where all units are done."""
    tell = _events()
    told = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_the_visit, daemon=True).start()
    sys.path[1:1] = [str(HERE.parent / "ladder"), str(HERE.parent.parent)]
    more = told["environment"]
    flags = [os.environ.get("XLA_FLAGS", ""), more.get("XLA_FLAGS", ""), QUICK * told["setting"]["small"]]
    os.environ |= more | {"XLA_FLAGS": " ".join(filter(None, flags))}
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one card, also where there are several
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(told["setting"]["scratch"], "compiled")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    _stand_in_for_xprof()
    tell({"event": "ready", "about": about()})
    setting = _setting(told["setting"])
    for unit in told["units"]:
        if time.monotonic() + unit["needs"] > setting.deadline:
            tell({"event": "short", "unit": unit["name"]})
            continue
        tell({"event": "begin", "unit": unit["name"]})
        found = measure(setting, unit)
        tell({"event": "end", "unit": unit["name"]} | found)
        if found["state"] == "failed":
            return FAILED
    return 0


def measure(setting, unit: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """One unit's state ("done", "skipped", "cut", "failed"), with its seconds and what it found, or why not."""
    from setting import Short, Skip

    start = time.monotonic()
    module, _, name = unit["call"].partition(".")
    try:
        found = {
            "state": "done",
            "result": getattr(importlib.import_module(module), name)(setting, **unit["arguments"]),
        }
        found = json.loads(json.dumps(found, default=float))  # here, where what cannot be written is told
    except Skip as why:
        found = {"state": "skipped", "why": str(why)}
    except Short as why:
        found = {"state": "cut", "why": str(why)}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is: it is told, and the next units are measured
        found = _failure(error)
    return found | {"seconds": round(time.monotonic() - start, 3), "process_peak_memory": _memory("peak_bytes_in_use")}


def _failure(error: BaseException) -> dict[str, typing.Any]:
    lacks = error.name if isinstance(error, ModuleNotFoundError) else None
    if lacks and not (HERE / f"{lacks}.py").exists() and not lacks.startswith(("synergen_jax", "data_pipelines")):
        return {"state": "skipped", "why": f"{lacks} is not installed"}
    traceback.print_exception(error)
    return {"state": "failed", "why": f"{type(error).__name__}: {error}"[:WORDS]}


def about() -> dict[str, typing.Any]:
    """The device, and what runs on it."""
    import flax
    import jax
    import numpy as np

    device = jax.devices()[0]
    try:
        driver = str(device.client.platform_version)
    except Exception:
        driver = ""
    versions = {"jax": jax.__version__, "flax": flax.__version__, "numpy": np.__version__}
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "memory": _memory("bytes_limit"),
        "driver": driver.splitlines()[0] if driver else "",
        "versions": versions | {"python": sys.version.split()[0]},
    }


def _memory(name: str) -> int | None:
    import jax

    try:
        return (jax.devices()[0].memory_stats() or {}).get(name)
    except Exception:  # a device that is lost has none
        return None


def _setting(told: dict[str, typing.Any]):
    from setting import Setting

    paths = {name: pathlib.Path(told[name]) for name in ("out", "scratch")}
    data = told["data"] and pathlib.Path(told["data"])
    after = tuple(map(pathlib.Path, told["after"]))
    say = lambda text: print(text, file=sys.stderr, flush=True)
    return Setting(**told | paths | {"data": data, "after": after, "say": say})


def _events() -> typing.Callable[[dict[str, typing.Any]], None]:
    """Keeps standard output for events: from now on what is printed goes to standard error."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: dict[str, typing.Any]) -> None:
        pipe.write(json.dumps(event, default=float) + "\n")
        pipe.flush()

    return tell


def _stand_in_for_xprof() -> None:
    """Tokamax imports xprof, 32 MB that do not travel, for benchmarks of its own alone: an empty module stands in for it."""
    names = ("xprof", "xprof.cli", "xprof.cli.tools", "xprof.cli.tools.get_kernel_stats_tool")
    if importlib.util.find_spec("xprof") is not None:
        return
    for name in names:
        module = sys.modules[name] = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)


def _end_with_the_visit() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
