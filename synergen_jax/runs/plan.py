"""Plans for numbers of devices that this machine lacks: a fresh process for each compiles, and tells what it found.

The number of virtual devices is settled when jax starts, hence the processes. As a script this module is one of them: it
reads what is planned as JSON from stdin, and prints what it found.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

from synergen_jax import config as configs
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.planning import plan as planning
from synergen_jax.planning.plan import Plan
from synergen_jax.runs import inputs

# The step is never run: code that is slow but quickly made is as good.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
MARK = "plan: "


def elsewhere(config: Config, sizes: inputs.Sizes, devices: int) -> Plan:
    """The plan for so many virtual devices, made by a process of its own."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": FLAGS,
    }
    task = json.dumps({"config": configs.to_dict(config), "sizes": sizes._asdict()})
    run = subprocess.run(
        [sys.executable, "-m", __name__], input=task, env=environment, text=True, stdout=subprocess.PIPE
    )
    found = next((line for line in run.stdout.splitlines() if line.startswith(MARK)), None)
    if found is None:
        raise RuntimeError(f"planning for {devices} devices failed with status {run.returncode}; its words are above")
    answer = json.loads(found.removeprefix(MARK))
    if "error" in answer:
        raise UserError(f"{devices} devices: {answer['error']}")
    return Plan(**answer)


def _main() -> None:
    task = json.load(sys.stdin)
    config, sizes = configs.from_dict(task["config"]), inputs.Sizes(**task["sizes"])
    try:
        answer = dataclasses.asdict(planning.plan(config, *inputs.abstract(config, sizes)))
    except UserError as error:
        answer = {"error": str(error)}
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
