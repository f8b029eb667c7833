"""The tables of experiments/results/speed.md from what visits have brought back, each row with its device.

python report.py first second                                             # prints them
python report.py first second --into experiments/results/speed.md         # between the two marks in that file
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import typing

HERE = pathlib.Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent / "ladder"), str(HERE.parent.parent)]

import command
import numpy as np
import stages
import visit
from predictions import PREDICTIONS
from visit import Record

from synergen_jax.errors import UserError
from synergen_jax.evaluation import report as tables

BEGIN, END = "<!-- what report.py writes begins here -->", "<!-- and ends here -->"
Row = dict[str, typing.Any]


def newest(records: typing.Iterable[Record]) -> list[Record]:
    """Of each measurement on each kind of device the last one that was made, or else the last that failed."""
    kept: dict[tuple[str, str, str], Record] = {}
    for record in sorted(records, key=lambda one: one["at"]):
        key = record["device"], record["stage"], record["unit"]
        if key not in kept or record["state"] == "done" or kept[key]["state"] != "done":
            kept[key] = record
    return list(kept.values())


class Found:
    """The records of a report, by stage and unit, in the order of the stages."""

    def __init__(self, records: list[Record]):
        order = {(stage.name, unit.name): n for n, (stage, unit) in enumerate(_units())}
        known = [record for record in newest(records) if (record["stage"], record["unit"]) in order]
        self.records = sorted(known, key=lambda one: (one["device"], order[one["stage"], one["unit"]]))
        self.devices = list(dict.fromkeys(one["device"] for one in self.records))

    def done(self, stage: str, *units: str) -> list[Record]:
        """What was measured of a stage, or of units whose names begin so."""
        begins = lambda one: not units or one["unit"].startswith(units)
        return [one for one in self.records if one["stage"] == stage and one["state"] == "done" and begins(one)]

    def results(self, device: str) -> dict[tuple[str, str], typing.Any]:
        """(stage, unit) -> what was found on a device."""
        done = [one for one in self.records if one["state"] == "done" and one["device"] == device]
        return {(one["stage"], one["unit"]): one["result"] for one in done}


def _units() -> list[tuple[stages.Stage, stages.Unit]]:
    return [(stage, unit) for stage in stages.STAGES for unit in stage.units]


# --- the tables -------------------------------------------------------------------------------------------------


def _row(record: Record, **more: typing.Any) -> Row:
    return {"device": record["device"]} | more


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def device_rows(found: Found) -> list[Row]:
    """Matrix products."""
    return [
        _row(one, product=name, shape=" x ".join(map(str, part["shape"])), dtype=part["dtype"])
        | {"TFLOP/s": part["tflops"], "of peak": _share(part["of_peak"])}
        for one in found.done("device")
        for name, part in one["result"]["products"].items()
    ]


def correctness_rows(found: Found) -> list[Row]:
    """Each check, its largest error and what is allowed."""
    rows = []
    for one in found.done("correctness"):
        result = one["result"]
        row = _row(one, check=one["unit"], holds="yes" if result["holds"] else "**NO**")
        if "errors" in result:
            row |= {
                "largest error": f"{np.max(list(result['errors'].values())):.1e}",
                "allowed": f"{result['tolerance']:.0e}",
            }
        for name in ("repeated", "resumed"):
            if name in result:
                same = result[name]["same to the bit"]
                row[name] = "to the bit" if same else f"differs by {result[name]['largest difference']:.0e}"
        if "metrics" in result:
            row["HR@10"] = result["metrics"]["hr@10"]
        rows.append(row)
    return rows


def step_rows(found: Found) -> list[Row]:
    """MFU of steps, blocks and HSTU."""
    rows = []
    for one in found.done("mfu", "step", "blocks", "HSTU"):
        result = one["result"]
        sizes = result["batch"] if isinstance(result["batch"], list) else [result["batch"], result.get("length", "")]
        row = _row(one, what=one["unit"], backend=result.get("backend", "xla"))
        row |= {
            "rows": " x ".join(str(size) for size in sizes if size != ""),
            "ms": 1e3 * statistics.median(result["seconds"]),
        }
        row |= {"TFLOP/s": result["tflops"], "MFU": _share(result["mfu"]), "padding": _share(result.get("padding"))}
        row |= {"with padding": _share(result.get("mfu_with_padding")), "fed / alone": result.get("fed_over_alone", "")}
        rows.append(row)
    return rows


def attention_rows(found: Found) -> list[Row]:
    """Backends side by side."""
    return [
        _row(one, what=one["unit"], tokens=row["tokens"], backend=row["backend"], ms=1e3 * row["s"]["mean"])
        | {"TFLOP/s": row["GFLOP/s"] / 1e3}
        for one in found.done("mfu", "attention")
        for row in one["result"]["rows"]
    ]


def kernel_rows(found: Found) -> list[Row]:
    """The longest kernels of a step."""
    return [
        _row(one, kernel=f"`{row['kernel'][:80]}`", calls=row["calls"], ms=row["ms"], share=_share(row["share"]))
        for one in found.done("mfu", "profile")
        for row in one["result"]["kernels"]
    ]


def ratio_rows(found: Found) -> list[Row]:
    """The ratios of the benchmarks of stage sizes, and of ranking."""
    return [
        _row(one, benchmark=one["unit"], ratio=name)
        | {"median": value["median"], "middle half": f"{value['low']:.2f} to {value['high']:.2f}"}
        for one in [*found.done("sizes"), *found.done("ranking")]
        for name, value in one["result"]["ratios"].items()
    ]


def ranking_rows(found: Found) -> list[Row]:
    """Requests a second."""
    return [
        _row(one, case=one["unit"])
        | {f"{side}, requests/s": value for side, value in one["result"]["requests_per_second"].items()}
        | {"same answers": "yes" if one["result"]["holds"] else "**NO**"}
        for one in found.done("ranking")
    ]


def torch_rows(found: Found) -> list[Row]:
    """PyTorch beside ours."""
    return [
        _row(one, attention=one["unit"].removeprefix("step, "), torch=one["result"]["torch"])
        | {"ours, ms": 1e3 * statistics.median(one["result"]["ours_seconds"])}
        | {"theirs, ms": 1e3 * statistics.median(one["result"]["seconds"])}
        | {"theirs / ours": one["result"]["theirs_over_ours"]["median"]}
        | {"loss of the first step, ours": one["result"]["ours_loss"], "theirs": one["result"]["loss"]}
        for one in found.done("torch")
    ]


def recipe_rows(found: Found) -> list[Row]:
    """Runs of the ladder that this visit made."""
    rows = []
    for one in [*found.done("recipe"), *found.done("variants")]:
        result, test = one["result"], one["result"]["metrics"]["test"] or {}
        row = _row(one, variant=result["variant"], seed=result["seed"], steps=result["steps"])
        row |= {name.upper(): test.get(name, "") for name in ("hr@10", "ndcg@10")}
        row |= {f"{part}, s": result["seconds"].get(part, "") for part in ("compile", "train", "feed", "all")}
        rows.append(row)
    return rows


def prediction_rows(found: Found) -> list[Row]:
    """What was expected, and what came."""
    rows, rehearsed = [], any(one["small"] for one in found.records)
    for device in found.devices:
        results = found.results(device)
        for one in PREDICTIONS:
            row: Row = {"device": device, "expected before": one.text, "range": f"{one.low:g} to {one.high:g}"}
            try:
                value = one.value(results)
            except (KeyError, TypeError, statistics.StatisticsError):
                rows.append(row | {"measured": "not measured", "held": ""})
                continue
            rows.append(
                row | {"measured": value, "held": "" if rehearsed else "yes" if one.low <= value <= one.high else "no"}
            )
    return rows


def missing_rows(found: Found) -> list[Row]:
    """What was not measured, and why not."""
    rows = [
        _row(one, stage=one["stage"], measurement=one["unit"], why=visit.brief(one.get("why", ""), 120))
        for one in found.records
        if one["state"] != "done"
    ]
    for device in found.devices:
        had = {(one["stage"], one["unit"]) for one in found.records if one["device"] == device}
        left: dict[str, int] = {}
        for stage, unit in _units():
            left[stage.name] = left.get(stage.name, 0) + ((stage.name, unit.name) not in had)
        rows += [
            {"device": device, "stage": name, "measurement": f"{count} more", "why": "no time was left for them"}
            for name, count in left.items()
            if count
        ]
    return rows


SECTIONS: tuple[tuple[str, typing.Callable[[Found], list[Row]]], ...] = (
    ("Correctness on the device", correctness_rows),
    ("Matrix products", device_rows),
    ("Model FLOPs utilisation", step_rows),
    ("Attention by backend, forward and backward", attention_rows),
    ("Where a step's time goes", kernel_rows),
    ("Ratios", ratio_rows),
    ("Ranking with a cache", ranking_rows),
    ("The same model in PyTorch", torch_rows),
    ("The ML-1M recipe and its variants", recipe_rows),
    ("What was expected", prediction_rows),
    ("Not measured", missing_rows),
)


def text(records: list[Record]) -> str:
    """All tables as Markdown."""
    found = Found(records)
    parts = [_about(found)]
    for title, rows_of in SECTIONS:
        if rows := rows_of(found):
            parts += [f"### {title}", tables.markdown_table(rows)]
    return "\n\n".join(parts)


def _about(found: Found) -> str:
    some = lambda name: ", ".join(dict.fromkeys(str(one.get(name) or "unknown") for one in found.records))
    jax = ", ".join(dict.fromkeys(one["versions"]["jax"] for one in found.records))
    words = (
        f"{', '.join(found.devices)}; jax {jax}; commit {some('commit')}; one device, which shows nothing of sharding."
    )
    if any(one["small"] for one in found.records):
        words = f"**A rehearsal at tiny sizes: no number here says anything.** {words}"
    return words


def write_into(path: pathlib.Path, words: str) -> None:
    """Puts the tables between the two marks of a file.

    Raises:
      UserError: it has none.
    """
    old = path.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path}: the lines {BEGIN} and {END} are not both there: put them where the tables belong")
    with tables.replacing(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{words}\n\n{END}{after}", encoding="utf-8")


def report(arguments: argparse.Namespace) -> int:
    """Reads, and prints or writes.

    Raises:
      UserError: a folder holds no visit, or some are rehearsals and others are not.
    """
    records = []
    for folder in arguments.folders:
        if not (folder / visit.RECORDS).is_file():
            raise UserError(f"{folder}: no visit: {visit.RECORDS} is not there")
        records += visit.read(folder)
    if len({one["small"] for one in records}) > 1:
        raise UserError("a rehearsal (--small) and a visit do not go into one report")
    if arguments.into is None:
        print(text(records))
    else:
        write_into(arguments.into, text(records))
    return 0


def main(argv: typing.Sequence[str] | None = None) -> int:
    """0; 2 for wrong input, in one line."""
    parser = command.parser("report.py", __doc__)
    parser.add_argument("folders", type=pathlib.Path, nargs="+", help="what visits have brought back")
    parser.add_argument("--into", type=pathlib.Path, help="a file with the two marks (default: print)")
    return command.outcome("report.py", lambda: report(parser.parse_args(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
