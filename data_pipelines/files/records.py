"""What a record of an event log holds, what makes it valid, and the fingerprint over all of a log."""

from __future__ import annotations

import hashlib
import json
import re
import typing

import numpy as np

from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError

EVENT_FIELDS = ("item", "action", "query", "request", "time")
SHOWN_FIELDS = ("shown_request", "shown_item", "shown_action")
DTYPES = {name: np.dtype("<i8" if name == "time" else "<i4") for name in EVENT_FIELDS + SHOWN_FIELDS}
FEATURES = "shown_feature"  # float32 (shown, F), in the records of logs that have candidate features
MATRIX_NAME = re.compile(r"(?!id$)[A-Za-z0-9][A-Za-z0-9_-]*")  # "id" are the learned vectors


def validate(record: typing.Mapping[str, typing.Any], sizes: LogSpec, where: str) -> None:
    """Refuses a record that is not a user's events in order: `where` and the row are named."""

    def refuse(reason: str, rows: typing.Any = None) -> typing.NoReturn:
        at = "" if rows is None else f", row {int(np.argmax(rows))}"
        raise UserError(f"{where}{at}: {reason}")

    if not isinstance(record.get("user_id"), str) or not record["user_id"]:
        refuse(f"user_id must be text, not {record.get('user_id')!r}")
    where = f"{where} (user {record['user_id']!r})"
    if missing := [name for name in DTYPES if name not in record]:
        refuse(f"{', '.join(missing)} missing")
    fields = {name: np.asarray(record[name]) for name in DTYPES}
    for name, values in fields.items():
        if values.ndim != 1 or (values.dtype.kind not in "iu" and values.size):
            refuse(f"{name} must be a row of whole numbers, not {values.dtype} of shape {values.shape}")
        if name != "time" and values.size and ((wrong := (values < 0) | (values >= 2**31)).any()):
            refuse(f"{name} {values[wrong][0]} does not lie within 0 .. 2^31 - 1", wrong)
    for names in (EVENT_FIELDS, SHOWN_FIELDS):
        if len({len(fields[name]) for name in names}) > 1:
            refuse("lengths differ: " + ", ".join(f"{name} {len(fields[name])}" for name in names))
    if not len(fields["item"]):
        refuse("a user without events")

    bounds = {"item": sizes.items, "action": sizes.actions, "query": sizes.queries}
    bounds |= {"shown_item": sizes.items, "shown_action": sizes.actions}
    filled = {name: values for name, values in fields.items() if values.size}  # most users were shown no lists
    of = lambda *names: [(name, filled[name]) for name in names if name in filled]
    for name, values in of(*bounds):
        if (wrong := values >= bounds[name]).any():
            refuse(f"{name} {values[wrong][0]} is not below {bounds[name]}", wrong)
    for name, values in of("action", "request", "shown_request", "shown_item"):
        if (wrong := values == 0).any():
            refuse(f"{name} is 0, which stands for none", wrong)
    if (wrong := (fields["item"] == 0) & (fields["query"] == 0)).any():
        refuse("an event with neither an item nor a query", wrong)
    time = fields["time"]
    if (wrong := time <= 0).any():
        refuse(f"time {time[wrong][0]} is not above 0", wrong)
    for name, values in of("time", "request", "shown_request"):
        if (wrong := values[1:] < values[:-1]).any():
            refuse(f"{name} goes down", np.append(False, wrong))
    if time[-1] - time[0] >= 2**31:
        refuse(f"events span {time[-1] - time[0]} seconds; at most 2^31 - 1 (68 years) can be told apart")
    if "shown_request" in filled and (wrong := ~np.isin(fields["shown_request"], fields["request"])).any():
        refuse(f"shown_request {fields['shown_request'][wrong][0]} has no event", wrong)
    if sizes.candidate_features:
        values = np.asarray(record.get(FEATURES, ()))
        wanted = (len(fields["shown_item"]), len(sizes.candidate_features))
        if values.shape != wanted or values.dtype.kind not in "fiu":
            refuse(f"{FEATURES} must be numbers of shape {wanted}, not {values.dtype} of shape {values.shape}")
        if (wrong := ~np.isfinite(values.astype(np.float32)).all(axis=1)).any():
            refuse(f"{FEATURES} holds a value that is not finite in float32", wrong)


def validate_tables(
    name: str,
    tables: dict[str, list[str]],
    labels: dict[str, list[int]],
    item_matrices: dict[str, np.ndarray],
    query_matrices: dict[str, np.ndarray],
    item_columns: typing.Mapping[str, typing.Sequence[str]],
    candidate_features: typing.Sequence[str] = (),
) -> None:
    """Refuses tables that do not fit each other."""
    if "" in candidate_features or len(set(candidate_features)) < len(candidate_features):
        raise UserError(f"{name}: candidate_features must be distinct and not empty, not {candidate_features}")
    for key, values in tables.items():
        if not values or values[0] != "":
            raise UserError(f"{name}: {key}[0] must be '', the id that stands for none")
        if wrong := [value for value in values if not isinstance(value, str)]:
            raise UserError(f"{name}: {key} must be text, not {wrong[0]!r}")
    for key in ("item_ids", "actions"):
        if "" in tables[key][1:] or len(set(tables[key])) < len(tables[key]):
            raise UserError(f"{name}: {key} must be distinct and not empty")
    items = len(tables["item_ids"])
    if items < 2 or len(tables["actions"]) < 2:
        raise UserError(f"{name}: a log needs at least one item and one action")
    for key in ("titles", "texts"):
        if len(tables[f"item_{key}"]) != items:
            raise UserError(f"{name}: {len(tables[f'item_{key}'])} item {key} for {items} item ids")
    if not labels:
        raise UserError(f"{name}: at least one label is needed")
    for key, ids in labels.items():
        if not ids or not all(0 < action < len(tables["actions"]) for action in ids):
            raise UserError(f"{name}: label {key!r} needs actions within 1 .. {len(tables['actions']) - 1}, not {ids}")
    for rows, matrices in ((items, item_matrices), (len(tables["queries"]), query_matrices)):
        for key, matrix in matrices.items():
            if not MATRIX_NAME.fullmatch(key):
                raise UserError(f"{name}: matrix name {key!r} may hold letters, digits, - and _ alone, and not be 'id'")
            if matrix.ndim != 2 or len(matrix) != rows or not matrix.shape[1]:
                raise UserError(f"{name}: matrix {key!r} has shape {matrix.shape}, not ({rows}, width)")
            if not np.isfinite(matrix).all() or matrix[0].any():
                raise UserError(f"{name}: matrix {key!r} must be finite in float16, and its row 0 zero")
    for key, columns in item_columns.items():
        if key not in item_matrices or len(columns) != item_matrices[key].shape[1]:
            raise UserError(f"{name}: item_columns {key!r} do not name the columns of an item matrix")


class Fingerprint:
    """A running sha256 over all that gives ids and records their meaning."""

    def __init__(self, **vocabularies: typing.Any):
        self._hash = hashlib.sha256()
        self._part(json.dumps(vocabularies, sort_keys=True).encode())

    def _part(self, data: bytes) -> None:
        self._hash.update(len(data).to_bytes(8, "little"))
        self._hash.update(data)

    def matrix(self, name: str, matrix: np.ndarray) -> None:
        """Adds a semantic matrix."""
        self._part(json.dumps([name, matrix.shape]).encode())
        self._part(np.ascontiguousarray(matrix, "<f2").tobytes())

    def candidate_features(self, names: typing.Sequence[str]) -> None:
        """Adds the names of candidate features."""
        self._part(json.dumps(["candidate_features", *names]).encode())

    def given_split(self, stops: np.ndarray) -> None:
        """Adds where each user's training ends and test begins, in a log whose data give a split."""
        self._part(json.dumps(["given_split", stops.shape]).encode())
        self._part(np.ascontiguousarray(stops, "<i4").tobytes())

    def record(self, record: dict[str, typing.Any]) -> None:
        """Adds a user's record."""
        self._part(record["user_id"].encode())
        for name, dtype in DTYPES.items():
            self._part(np.ascontiguousarray(record[name], dtype).tobytes())
        if FEATURES in record:
            self._part(np.ascontiguousarray(record[FEATURES], "<f4").tobytes())

    def hexdigest(self) -> str:
        """The fingerprint so far."""
        return self._hash.hexdigest()
