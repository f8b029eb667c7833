"""jax's cache of compiled programs, on by default: where it lies, how large it grows, and when it stays off.

Compiled code belongs to one version of jax and one kind of CPU: XLA refuses, or should refuse, what another CPU has
compiled. So each has a folder of its own. Importing this module loads nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import tempfile
import warnings

from synergen_jax.processes import cluster

MAX_BYTES = 256 << 20  # of one folder; what was not used for longest goes first
MIN_SECONDS = 0.1  # what compiles faster is compiled again

# What tells CPUs apart in /proc/cpuinfo: of x86 the first line, of Arm the second.
_CPU = ("vendor_id", "cpu family", "model", "model name", "flags")
_CPU += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features")


def keep(arguments) -> None:
    """Lets a command find what an earlier one has compiled, in the data folder.

    Not where compiling is what is measured, nor on several processes: of these the first alone would write, and where they
    share no folder, it would load what the others still compile together.
    """
    from data_pipelines.sources.prepare import logs_folder

    compiles = arguments.command not in ("data", "bench", "plan")
    if compiles and not arguments.no_compile_cache and cluster.count() == 1:
        begin(logs_folder(arguments.data_dir).parent / "jax-cache")


def begin(root: pathlib.Path) -> pathlib.Path | None:
    """Lets jax keep compiled programs below `root`, at most `MAX_BYTES` of them; call it before anything is compiled.

    A cache that was chosen otherwise, by JAX_COMPILATION_CACHE_DIR or in the program, stays as it is. No error of the
    cache ends a command: where the folder cannot be written, locked or trusted, there is no cache. jax runs code from
    it, so a folder that others may write is not trusted.

    Returns:
      The folder, or None if this has changed nothing.
    """
    import jax

    # A file that cannot be read or written costs a compilation, and is no news to people.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    setting = lambda name: getattr(jax.config, name)  # jax makes its settings attributes at run time
    chosen = setting("jax_compilation_cache_dir") or "JAX_COMPILATION_CACHE_DIR" in os.environ
    if chosen or not setting("jax_enable_compilation_cache"):
        return None
    folder = root / name()
    try:
        _make(folder)
    except (ImportError, OSError, NotImplementedError):  # the last one: a file system without locks
        return None
    settings = {
        "jax_compilation_cache_max_size": MAX_BYTES,
        "jax_persistent_cache_min_compile_time_secs": MIN_SECONDS,
        "jax_compilation_cache_dir": str(folder),
    }
    for setting, value in settings.items():
        if setting.upper() not in os.environ:
            jax.config.update(setting, value)
    return folder


def name(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
    """Of the folder: versions of jax and jaxlib, the machine with a hash of its CPU, and the user."""
    import jax
    import jaxlib.version

    user = f"-u{os.getuid()}" if hasattr(os, "getuid") else ""
    versions = f"jax-{jax.__version__}-jaxlib-{jaxlib.version.__version__}"
    return f"{versions}-{platform.machine()}-{_cpu(cpuinfo)}{user}"


def _cpu(cpuinfo: pathlib.Path) -> str:
    """A hash of the CPU's model and abilities; of what Python knows of it where there is no /proc/cpuinfo."""
    lines = set()
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in _CPU:
                lines.add(f"{key.strip()}: {' '.join(sorted(value.split()))}")
    said = "\n".join(sorted(lines)) or f"{platform.system()} {platform.processor()}"
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def _make(folder: pathlib.Path) -> None:
    """Makes the folder and sees that it can be written, is one's own, and is whole.

    Raises:
      OSError, ImportError, NotImplementedError: there can be no cache.
    """
    import filelock

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.stat()
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(f"{folder}: others may write it")
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"0" * 4096)
    with contextlib.suppress(filelock.Timeout), filelock.FileLock(folder / ".lockfile").acquire(timeout=0):
        # jax writes an entry, then its time. Of one without a time the writing was cut off, and jax would stumble over
        # it at every later entry.
        for entry in folder.glob("*-cache"):
            when = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
            if not when.exists() or when.stat().st_size != 8:
                entry.unlink()
                when.unlink(missing_ok=True)
