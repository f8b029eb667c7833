"""How a table of events is read: the options of an import, and which of them go together."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import typing

from data_pipelines.files.records import MATRIX_NAME
from data_pipelines.importing import row_shapes, timestamps
from data_pipelines.importing.bad_rows import KINDS
from data_pipelines.sources.fetch import SOURCES
from data_pipelines.sources.prepare import SEARCH
from synergen_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Options:
    """How a table is read; columns are given as role -> name, and each role's own name is the default."""

    columns: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)  # of ROLES
    item_columns: typing.Mapping[str, str] = dataclasses.field(default_factory=dict)  # of item_table.ROLES
    time_unit: str = "auto"  # one of timestamps.KINDS
    drop: typing.Collection[str] = ()  # kinds of bad rows, out of problems.KINDS, or "all"
    labels: typing.Mapping[str, typing.Sequence[str]] = dataclasses.field(default_factory=dict)  # name -> actions
    tags: typing.Sequence[str] = ()  # columns of the items that become multi-hot matrices
    vectors: typing.Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)  # name -> .npy, a row an item
    text: str = (
        ""  # what `text.make` takes, or "none"; default: "tfidf" if items have titles or texts, or there are queries
    )
    min_item_events: int = 1  # items with fewer events are left out, with their events; then
    min_user_events: int = 1  # users with fewer
    part_files: bool = False  # the name of each file tells the part of a split that its rows are: `parts.of_file`
    k_core: int | None = None  # or both of them with fewer, again and again until nothing changes
    lists: str | None = None  # rows are not events but hold lists of them, side by side: `row_shapes.Shape`
    order: str = "time"  # "file": there are no times but the order in which events come

    @property
    def shape(self) -> row_shapes.Shape:
        """What a row of the table is."""
        return row_shapes.Shape(self.lists, self.order)


def check_name(name: str) -> None:
    """Refuses a name that no log of one's own may have."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"log name {name!r} may hold letters, digits and . _ - alone: give another --name")
    if name in (*SOURCES, *SEARCH):
        raise UserError(f"log name {name!r} stands for the published data set: give another --name")


def checked(items, options: Options) -> Options:
    """The options, if they are right; all kinds to drop by their names.

    Args:
      items: the table of items; None: there is none.
    """
    if options.time_unit not in timestamps.KINDS:
        raise UserError(f"--time-unit {options.time_unit!r} is none of {', '.join(timestamps.KINDS)}")
    if wrong := [kind for kind in options.drop if kind not in (*KINDS, "all")]:
        near = nearest(wrong[0], KINDS)
        raise UserError(f"--drop {wrong[0]!r} is none of {', '.join(KINDS)}, all{near}")
    if options.part_files and "part" in options.columns:
        raise UserError("--part-files and --columns part=... both tell the part of a row: leave one out")
    if options.order not in row_shapes.ORDERS:
        raise UserError(f"--order {options.order!r} is none of {', '.join(row_shapes.ORDERS)}")
    if options.order == "file" and ("time" in options.columns or options.time_unit != "auto"):
        raise UserError("--order file takes no times: give neither --columns time=... nor --time-unit, or leave it out")
    for flag, least in (("--min-item-events", options.min_item_events), ("--min-user-events", options.min_user_events)):
        if least < 1:
            raise UserError(f"{flag} must be 1 or more, not {least}")
        if least > 1 and options.k_core is not None:
            raise UserError(f"--k-core leaves out items and users alike: leave out {flag}, or --k-core")
    if options.k_core is not None and options.k_core < 1:
        raise UserError(f"--k-core must be 1 or more, not {options.k_core}")
    for flag, given in (
        ("--item-columns", options.item_columns),
        ("--tags", options.tags),
        ("--vectors", options.vectors),
    ):
        if given and items is None:
            raise UserError(f"{flag} needs --items, the table of items")
    names = [*options.tags, *options.vectors]
    if wrong := [name for name in names if not MATRIX_NAME.fullmatch(name) or names.count(name) > 1]:
        raise UserError(f"matrix {wrong[0]!r}: names hold letters, digits, - and _ alone, come once, and are not 'id'")
    if "text" in names:
        raise UserError("matrix 'text' is what --text makes: give --tags or --vectors another name")
    drop = frozenset(KINDS) if "all" in options.drop else frozenset(options.drop)
    return dataclasses.replace(options, drop=drop)
