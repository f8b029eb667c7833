"""The import of one made-up log in several forms: time, memory and size beside CSV's, and whether logs are equal.

  python import_forms.py --events 10_000_000 --forms csv,jsonl.gz,parquet --folder forms --json forms.json

Each form is imported by `synergen data import` in a process of its own. FOLDER keeps the tables and what was measured:
the same command goes on, and a form that was measured already is not measured again. Logs are removed once they are
measured.
Ends with status 1 if two forms give different logs.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import pathlib
import shutil
import sys
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "ladder"), str(HERE.parent.parent)]

import command
import json_lines
import made_up_events
import measured
from tqdm import tqdm

from synergen_jax.errors import UserError

FORMS = (*(f"{text}{packed}" for text in ("csv", "tsv", "jsonl") for packed in ("", ".gz", ".zst")), "parquet")
MEAN = 20  # events a user
FIELDS = ("setting", "form", "wall", "cpu", "peak", "bytes", "fingerprint")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    one = command.parser("import_forms.py", __doc__)
    one.add_argument("--events", type=int, default=1_000_000)
    one.add_argument("--items", type=int, default=50_000)
    one.add_argument("--times", choices=("seconds", "iso"), default="seconds", help="how times are written")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--forms", default="csv,jsonl.gz,parquet", help=f"comma-separated, out of {', '.join(FORMS)}")
    one.add_argument("--folder", type=pathlib.Path, required=True, help="for tables and results")
    one.add_argument("--json", type=pathlib.Path, help="write what was found here, too")
    return one


# --- writing --------------------------------------------------------------------------------------------------


def write(path: pathlib.Path, arguments: argparse.Namespace) -> None:
    """The made-up log in the form that the file's name tells, whole or not at all."""
    import polars as pl

    temporary, left = path.with_name(f".{path.name}"), arguments.events
    with _writer(temporary, path) as add, tqdm(total=left, desc=path.name, unit=" rows", disable=None) as bar:
        for frame in made_up_events.batches(made_up_events.Sizes(arguments.items, MEAN), arguments.seed):
            frame = frame.head(left)
            if arguments.times == "iso":
                frame = frame.with_columns(pl.from_epoch("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
            add(frame)
            left -= len(frame)
            bar.update(len(frame))
            if not left:
                break
    temporary.replace(path)


@contextlib.contextmanager
def _writer(temporary: pathlib.Path, path: pathlib.Path) -> typing.Iterator[typing.Callable[[typing.Any], object]]:
    """Takes one table after the other, and writes them to `temporary` in the form of `path`."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        with contextlib.ExitStack() as stack:
            writers: list[pyarrow.parquet.ParquetWriter] = []

            def add(frame) -> None:
                table = frame.to_arrow()
                if not writers:
                    writers.append(stack.enter_context(pyarrow.parquet.ParquetWriter(temporary, table.schema)))
                writers[0].write_table(table)

            yield add
        return
    import pyarrow

    text, first = path.suffixes[0], True
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(temporary.open("wb"))
        if path.suffix == ".gz":
            file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb", compresslevel=4, mtime=0))
        elif path.suffix == ".zst":
            file = stack.enter_context(pyarrow.CompressedOutputStream(file, "zstd"))

        def add_text(frame) -> None:
            nonlocal first
            separator = "\t" if text == ".tsv" else ","
            rows = (
                frame.write_ndjson() if text == ".jsonl" else frame.write_csv(include_header=first, separator=separator)
            )
            first = False
            file.write(rows.encode())

        yield add_text


# --- measuring ------------------------------------------------------------------------------------------------


def measure(form: str, arguments: argparse.Namespace) -> dict[str, typing.Any]:
    """Imports one form, and removes the log."""
    path, name = arguments.folder / f"events.{form}", f"made-{form.replace('.', '-')}"
    if not path.exists():
        write(path, arguments)
    data = arguments.folder / "data"
    told = measured.run(measured.synergen("data", "import", path, "--name", name, "--text", "none", "--data-dir", data))
    log = data / "logs" / name
    about = json.loads((log / "log.json").read_text(encoding="utf-8"))
    shutil.rmtree(log)
    taken = {"wall": told.wall, "cpu": told.cpu, "peak": told.peak, "bytes": path.stat().st_size}
    return {"form": form, **taken, "fingerprint": about["fingerprint"]}


def table(found: typing.Sequence[typing.Mapping[str, typing.Any]], events: int) -> str:
    """What was measured, and ratios to the first form."""
    lines = [
        "| form | file, MB | wall, s | CPU, s | rows a CPU second | peak memory, MiB | log |",
        "|---|---|---|---|---|---|---|",
    ]
    base = found[0]
    for one in found:
        rows = f"{events / one['cpu']:,.0f}"
        mega, wall, cpu, mebi = (
            f"{one[name] / unit:,.0f} ({one[name] / base[name]:.2f})"
            for name, unit in (("bytes", 1e6), ("wall", 1), ("cpu", 1), ("peak", 2**20))
        )
        lines.append(f"| {one['form']} | {mega} | {wall} | {cpu} | {rows} | {mebi} | {one['fingerprint'][:8]} |")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """Measures what is not measured yet; 1 if the logs differ."""
    forms = list(dict.fromkeys(arguments.forms.split(",")))
    if wrong := [form for form in forms if form not in FORMS]:
        raise UserError(f"--forms {wrong[0]}: {', '.join(FORMS)} are known")
    if arguments.events < 1:
        raise UserError(f"--events {arguments.events}: one at least is needed")
    setting = {name: getattr(arguments, name) for name in ("events", "items", "times", "seed")}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "measured.jsonl"
    entries = json_lines.read(results, FIELDS, "measurement")
    if entries and entries[0]["setting"] != setting:
        raise UserError(f"{results} is of {entries[0]['setting']}, not of {setting}: give another --folder")
    found = {entry["form"]: entry for entry in entries}
    for form in tqdm([form for form in forms if form not in found], desc="forms", disable=None):
        found[form] = {"setting": setting, **measure(form, arguments)}
        json_lines.append(results, found[form])
    wanted = [found[form] for form in forms]
    same = len({one["fingerprint"] for one in wanted}) == 1
    print(table(wanted, arguments.events))
    print("the same log in every form" if same else "the forms give different logs")
    if arguments.json:
        arguments.json.write_text(json.dumps({"forms": wanted, "same": same}, indent=1) + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(command.outcome("import_forms.py", lambda: run(parser().parse_args())))
