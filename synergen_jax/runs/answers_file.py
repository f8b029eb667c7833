"""A table of answers, written in parts, so that a killed command goes on where it stopped, in bounded memory."""

from __future__ import annotations

import collections.abc
import contextlib
import json
import os
import pathlib
import shutil
import typing

from tqdm import tqdm

from synergen_jax.errors import UserError
from synergen_jax.processes import run_lock
from synergen_jax.runs import workdir

if typing.TYPE_CHECKING:
    import polars as pl

PART = 4096  # questions whose answers are a part
FORMS = (".parquet", ".jsonl")
Columns = dict[str, typing.Any]
"""Name -> values of each row, as polars takes them."""


class Table:
    """A file of answers that is about to be written.

    Args:
      out: ends in .parquet or .jsonl. A file that is there is replaced at the end.
      about: what decides the answers, as JSON: parts of a killed command with the same are kept, of another are refused.
      count: how many questions there are.
      schema: polars' type of each column.

    Raises:
      UserError: another ending; the parts of another command lie there.
    """

    def __init__(self, out: pathlib.Path, about: dict[str, typing.Any], count: int, schema: dict[str, typing.Any]):
        if out.suffix not in FORMS:
            raise UserError(f"--out {out}: a name that ends in .parquet or .jsonl is wanted")
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: give the name of a file")
        self.out, self._schema, self._count = out, schema, count
        self._about = json.loads(json.dumps(about | {"part": PART, "columns": {k: str(v) for k, v in schema.items()}}))
        self.folder = out.with_name(f".{out.name}.parts")
        self._starts = range(0, count, PART)
        if (self.folder / "asked.json").exists():
            self._refuse_others()

    def _refuse_others(self) -> None:
        try:
            was = json.loads((self.folder / "asked.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            was = None
        if was != self._about:
            odd = [key for key in self._about if not isinstance(was, dict) or was.get(key) != self._about[key]]
            raise UserError(
                f"{self.folder} holds what an unfinished command wrote that asked otherwise ({', '.join(odd)}): remove that "
                "folder, or give another --out"
            )

    def write(self, rows: collections.abc.Callable[[int, int], Columns]) -> int:
        """Writes the answers to all questions; returns how many of them were there already.

        Args:
          rows: the rows for the questions start .. stop - 1.

        Raises:
          UserError: the disk is full, or another process writes the same table.
        """
        import polars as pl

        instead = f"give another --out, or make room: the same command goes on from what is there in {self.folder}"
        with workdir.reporting(self.out.parent, instead):
            self.folder.mkdir(parents=True, exist_ok=True)
            with run_lock.alone(self.folder), self._unless_empty():
                self._remove_leftovers()
                workdir.write_json(self.folder / "asked.json", self._about)
                there = [start for start in self._starts if self._part(start).exists()]
                done = sum(self._stop(start) - start for start in there)
                with tqdm(total=self._count, initial=done, desc="answer", unit=" asked", disable=None) as bar:
                    for start in self._starts:
                        if not self._part(start).exists():
                            frame = pl.DataFrame(rows(start, self._stop(start)), schema=self._schema, strict=False)
                            self._save(frame, self._part(start))
                            bar.update(self._stop(start) - start)
                self._join()
            shutil.rmtree(self.folder, ignore_errors=True)
        return done

    @contextlib.contextmanager
    def _unless_empty(self) -> collections.abc.Iterator[None]:
        """A block that leaves no folder behind if it fails before the first part."""
        try:
            yield
        except BaseException:
            if not any(self._part(start).exists() for start in self._starts[:1]):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _remove_leftovers(self) -> None:
        """Removes what a killed process left half-written."""
        for path in self.folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _part(self, start: int) -> pathlib.Path:
        return self.folder / f"part-{start // PART:06d}{self.out.suffix}"

    def _stop(self, start: int) -> int:
        return min(start + PART, self._count)

    def _save(self, frame: pl.DataFrame, path: pathlib.Path) -> None:
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            if path.suffix == ".parquet":
                frame.write_parquet(file)
            else:
                frame.write_ndjson(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def _join(self) -> None:
        """All parts one after the other, as one file, which then takes its place."""
        whole = self.folder / "whole.tmp"
        if self.out.suffix == ".parquet":
            import pyarrow.parquet

            schema = pyarrow.parquet.read_schema(self._part(0))
            with whole.open("wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
                for start in self._starts:
                    writer.write_table(pyarrow.parquet.read_table(self._part(start)))
        else:
            with whole.open("wb") as file:
                for start in self._starts:
                    with self._part(start).open("rb") as part:
                        shutil.copyfileobj(part, file)
        whole.replace(self.out)
