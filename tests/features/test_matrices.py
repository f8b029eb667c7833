"""Further matrices: aligned with the log or named row by row, and each way to be wrong."""

import re

import numpy as np
import pytest
from small_movielens import files_100k, small  # noqa: F401  (a fixture: what passes for MovieLens)

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.features import matrices
from data_pipelines.sources import prepare
from synergen_jax.errors import UserError

IDS = ["", "a", "b", "c"]
VALUES = np.array([[1.0, 0], [0, 2], [3, 3]])


def given(folder, values, ids=None):
    np.save(folder / "x.npy", values)
    if ids is not None:
        (folder / "x.ids.txt").write_text(ids)
    return matrices.File.parse(f"image={folder / 'x.npy'}")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_aligned_rows(tmp_path, dtype):
    matrix, without = matrices.read(given(tmp_path, np.vstack([[[0, 0]], VALUES]).astype(dtype)), IDS)
    assert matrix.dtype == np.float16 and matrix.tolist() == [[0, 0], *VALUES.tolist()] and without == 0


@pytest.mark.parametrize("ids", ["c\na\nb\n", "c\r\na\r\nb", "c\na \nb\n"])
def test_named_rows(tmp_path, ids):
    matrix, without = matrices.read(given(tmp_path, VALUES, ids), IDS)
    assert matrix.tolist() == [[0, 0], [0, 2], [3, 3], [1, 0]] and without == 0


def test_items_without_a_row_are_zero_and_counted(tmp_path):
    matrix, without = matrices.read(given(tmp_path, VALUES[:1], "b\n"), IDS)
    assert matrix.tolist() == [[0, 0], [0, 0], [1, 0], [0, 0]] and without == 2


ALIGNED = np.vstack([[[0, 0]], VALUES])


@pytest.mark.parametrize(
    "values, ids, reason",
    [
        (
            VALUES,
            None,
            r"x.npy: has 3 rows, not 4: the log's 3 items after a row of zeros; or name its rows in .*x.ids.txt",
        ),
        (ALIGNED + 1, None, "row 0 must be zero: it stands for no item, and item 'a' has row 1"),
        (ALIGNED[:, 0], None, r"has shape \(4,\), not \(rows, width\)"),
        (ALIGNED[:, :0], None, r"has shape \(4, 0\)"),
        (ALIGNED.astype(np.int32), None, "holds int32, not floating-point numbers"),
        (ALIGNED.astype(complex), None, "holds complex128"),
        (ALIGNED.astype(object), None, "not a whole .npy file"),
        (np.where(ALIGNED == 2, np.nan, ALIGNED), None, "row 2 holds NaN or infinity"),
        (np.where(ALIGNED == 2, -np.inf, ALIGNED), None, "row 2 holds NaN or infinity"),
        (ALIGNED * 3e4, None, "row 3 is beyond float16"),
        (ALIGNED * 0, None, "no item has a row that is not zero"),
        (VALUES, "a\nb\n", r"has 3 rows, not the 2 ids of .*x.ids.txt"),
        (VALUES, "a\nb\na\n", "x.ids.txt:3: id 'a' comes a second time; line 1 has it"),
        (VALUES, "a\nb\nz\n", "x.ids.txt:3: the log has no item 'z'; take its row out of both files"),
        (VALUES, "a\n\nb\n", "x.ids.txt:2: id is empty"),
        (VALUES, "", "x.ids.txt: the file is empty"),
    ],
)
def test_refusals(tmp_path, values, ids, reason):
    file = given(tmp_path, values, ids)
    with pytest.raises(UserError, match=reason):
        matrices.read(file, IDS)


def test_no_matrix_file(tmp_path):
    for wrong in ("image", "image=", "=x.npy", "a b=x.npy", "../x=x.npy", "id=x.npy"):
        with pytest.raises(UserError, match=re.escape("--matrix takes NAME=FILE.npy")):
            matrices.File.parse(wrong)
    with pytest.raises(UserError, match="there is no such file"):
        matrices.File.parse(f"image={tmp_path / 'x.npy'}")
    file = given(tmp_path, ALIGNED)
    file.path.write_bytes(file.path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"not a whole .npy file"):
        matrices.read(file, IDS)
    with file.path.open("wb") as archive:
        np.savez(archive, ALIGNED)
    with pytest.raises(UserError, match="an archive"):
        matrices.read(file, IDS)


def test_matrices_of_a_prepared_log(tmp_path):
    files = files_100k(tmp_path / "files")
    make = lambda *matrix: prepare.prepare("ml-100k", source=files, data_dir=tmp_path, matrix=matrix)
    plain = make()
    file = given(tmp_path, VALUES, "7\n1\n2\n")
    spec = f"image={file.path}"
    log = make(spec)
    assert log.fingerprint != plain.fingerprint and log.spec.item_matrices == (("genres", 7), ("image", 2))
    assert EventLog.load(log.path).item_matrices["image"].tolist() == [[0, 0], [0, 2], [3, 3], [0, 0], [1, 0]]
    assert log.source["matrices"]["image"]["items_without"] == 1
    when = (log.path / "log.json").stat().st_mtime_ns
    make(spec)
    assert (log.path / "log.json").stat().st_mtime_ns == when
    (tmp_path / "x.ids.txt").write_text("1\n7\n2\n")
    assert make(spec).item_matrices["image"][1].tolist() == [1, 0]
    for wrong in ("genres", "text"):
        with pytest.raises(UserError, match=f"--matrix {wrong}: the log has a matrix of that name"):
            make(f"{wrong}={tmp_path / 'x.npy'}")
    with pytest.raises(UserError, match="a name comes twice"):
        make(spec, spec)
    assert make().fingerprint == plain.fingerprint
