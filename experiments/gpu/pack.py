"""All that travels to a machine with a GPU, in one file: the checkout, ML-1M in one file, and wheels of what may lack there.

  python pack.py ml-1m --out visit.tar --python 3.12
  tar xf visit.tar && cd visit && python -m pip install --no-index --no-deps wheels/*.whl      # there
  python experiments/gpu/visit.py --data ml-1m.npz --out first

Needs git and pip, and the log prepared. Files travel as they are now, changed or new, but for those that git ignores.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import typing

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[1:1] = [str(HERE.parent / "ladder"), str(ROOT)]

import command
import ladder

from synergen_jax.errors import UserError, first_line, writing

LIMIT = 40.0  # MB that may travel
# Beside jax, flax, optax, orbax, numpy and what these bring. Tokamax and what it needs are for its backend alone; of xprof,
# 32 MB that it imports and does not use here, worker.py has a stand-in. 0.0.17 is lowered for a card under jax 0.11 and 0.12.
WHEELS = (
    *("jaxtyping", "wadler-lindig", "tqdm"),
    *("tokamax==0.0.17", "einshape", "qwix", "immutabledict", "typeguard==2.13.3", "tensorboardx", "packaging"),
    *("pydantic", "annotated-types", "typing-inspection"),
)


class Part(typing.NamedTuple):
    """A file that travels."""

    kind: str
    path: pathlib.Path
    name: str  # in the archive


def checkout() -> list[Part]:
    """The files that git knows, and new ones that it does not ignore."""
    words = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{ROOT} is no checkout of git: {first_line(RuntimeError(done.stderr))}")
    return [Part("checkout", ROOT / name, name) for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def wheels(python: str, folder: pathlib.Path) -> list[Part]:
    """Wheels for Linux on x86-64, downloaded without what they need: it is named in WHEELS.

    Raises:
      UserError: pip finds one not, or cannot download.
    """
    for names in (WHEELS, _core(python, folder)):
        _download(python, folder, names)
    return [Part("wheels", path, f"wheels/{path.name}") for path in sorted(folder.glob("*.whl"))]


def _core(python: str, folder: pathlib.Path) -> typing.Iterator[str]:
    """pydantic's compiled half, of the version that it names."""
    import email
    import zipfile

    for path in folder.glob("pydantic-*.whl"):
        with zipfile.ZipFile(path) as wheel:
            name = next(one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
            needs = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist", [])
        yield next(one.partition(";")[0].strip() for one in needs if one.startswith("pydantic-core"))


def _download(python: str, folder: pathlib.Path, names: typing.Iterable[str]) -> None:
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (28, 27, 17)] + ["--platform=manylinux2014_x86_64"]
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    words += ["--python-version", python, "--implementation", "cp", *platforms, *names]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        why = next(
            (line for line in done.stderr.splitlines() if line.startswith("ERROR")),
            first_line(RuntimeError(done.stderr)),
        )
        raise UserError(f"wheels for Python {python}: {why}")


def pack(log: str, data_dir: pathlib.Path | None, python: str, out: pathlib.Path) -> dict[str, float]:
    """Writes the archive, whole or not at all; MB of each kind of part.

    Raises:
      UserError: the log is not prepared, a wheel is not to be had, or it is more than may travel.
    """
    import array_log

    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate

    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder, f"{pathlib.Path(log).name}.npz")
        array_log.write(EventLog.load(locate(log, data_dir)), data)
        parts = [*checkout(), Part("data", data, data.name), *wheels(python, pathlib.Path(folder))]
        sizes: dict[str, float] = {}
        for part in parts:
            sizes[part.kind] = sizes.get(part.kind, 0.0) + part.path.stat().st_size / 1e6
        if sum(sizes.values()) > LIMIT:
            told = ", ".join(f"{kind} {size:.1f}" for kind, size in sizes.items())
            raise UserError(f"{sum(sizes.values()):.1f} MB would travel ({told}), more than {LIMIT:.0f}")
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        with writing(out), contextlib.ExitStack() as stack:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(temporary.unlink, missing_ok=True)
            with tarfile.open(temporary, "w") as archive:
                for part in parts:
                    archive.add(part.path, f"visit/{part.name}", recursive=False)
                told = (ladder.commit() or "unknown").encode()
                about = tarfile.TarInfo("visit/COMMIT")
                about.size = len(told)
                archive.addfile(about, io.BytesIO(told))
            temporary.replace(out)
    return sizes


def main(argv: typing.Sequence[str] | None = None) -> int:
    """0; 2 for wrong input, in one line."""
    parser = command.parser("pack.py", __doc__)
    parser.add_argument("log", help="name of the prepared log (ml-1m), or its folder")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the file, a .tar")
    parser.add_argument("--python", default="3.12", help="Python of the machine with the GPU (default: 3.12)")
    parser.add_argument("--data-dir", type=pathlib.Path, help="where logs lie (default: that of `synergen`)")

    def run() -> int:
        asked = parser.parse_args(argv)
        sizes = pack(asked.log, asked.data_dir, asked.python, asked.out)
        print("\n".join(f"{kind:>10} {size:6.1f} MB" for kind, size in (sizes | {"all": sum(sizes.values())}).items()))
        return 0

    return command.outcome("pack.py", run, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
