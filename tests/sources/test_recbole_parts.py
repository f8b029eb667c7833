"""RecBole's .train.inter, .valid.inter and .test.inter: one log, with the split that they are."""

import numpy as np
import pytest
from small_movielens import EVENTS, atomic_100k

from data_pipelines.feed import splits
from data_pipelines.sources import prepare
from synergen_jax.cli import main
from synergen_jax.config import DataConfig
from synergen_jax.errors import UserError

HEAD = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def folder_of(path, part, rows=EVENTS, head=HEAD, name="films"):
    """A folder of three files, the n-th row in that of the n-th part."""
    atomic_100k(path)
    (path / "ml-100k.inter").unlink()
    (path / "ml-100k.item").rename(path / f"{name}.item")
    for one in (".train", ".valid", ".test"):
        lines = ["\t".join(map(str, row)) + "\n" for row, of in zip(rows, part) if of == one]
        (path / f"{name}{one}.inter").write_text(head + "".join(lines))
    return path


#     user, item, rating, time: 10 2 5 300, 10 7 4 100, 2 2 1 50, 10 1 3 100, 2 7 5 50, 10 3 2 100
MIXED = (".test", ".train", ".train", ".valid", ".valid", ".train")


def test_three_files_are_one_log_and_its_split(tmp_path, capsys):
    folder = folder_of(tmp_path / "files", MIXED)
    (folder / "films.user").write_text("user_id:token\n")
    command = ["data", "prepare", str(folder), "--data-dir", str(tmp_path), "--text", "none"]
    for _ in range(2):  # converted, then found again
        assert main.main(command) == 0
        said = capsys.readouterr().out
        assert "parts: 3 training, 2 validation, 1 test, for data.split given" in said
        assert "not read: films.user\n" in said
    log = prepare.prepare(str(folder), data_dir=tmp_path, encoder="none")
    assert log.name == "films" and log.user_ids == ["2", "10"] and log.item_columns
    items = [[log.item_ids[item] for item in log[user]["item"]] for user in range(2)]
    assert items == [["2", "7"], ["7", "3", "1", "2"]]  # of one moment: by part, then as in the file
    assert log.given_split.tolist() == [[1, 2], [2, 3]]
    made = splits.split(log, DataConfig(split="given"))
    assert made.train_stop.tolist() == [1, 2] and made.test.tolist() == [[2, 2], [3, 4]]
    whole = atomic_100k(tmp_path / "whole")
    (whole / "ml-100k.inter").rename(whole / "whole.inter")
    (whole / "ml-100k.item").rename(whole / "whole.item")
    plain = prepare.prepare(str(whole), data_dir=tmp_path, encoder="none")
    assert plain.given_split is None and plain.fingerprint != log.fingerprint
    assert np.array_equal(plain.lengths, log.lengths) and plain.item_ids == log.item_ids


def test_parts_that_moved_are_another_log(tmp_path):
    one = prepare.prepare(str(folder_of(tmp_path / "a", MIXED)), data_dir=tmp_path / "1")
    part = (".test", ".train", ".train", ".valid", ".valid", ".valid")
    other = prepare.prepare(str(folder_of(tmp_path / "b", part)), data_dir=tmp_path / "2")
    assert one.fingerprint != other.fingerprint and other.given_split.tolist() == [[1, 2], [1, 3]]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda folder: (folder / "films.inter").write_text(HEAD), ": films.inter beside films.train.inter: move away what is not to be read, the one or the three"),
        (lambda folder: (folder / "z.train.inter").write_text(HEAD), ": z.train.inter beside films.train.inter: move away what is not to be read, the one or the three"),
        (lambda folder: (folder / "films.valid.inter").unlink(), ": there is no films.valid.inter, where NAME.train.inter, .valid.inter and .test.inter are wanted; a part that stands alone must be called films.inter"),
        (lambda folder: (folder / "films.test.inter").write_text(HEAD.replace("rating", "score") + "10\t2\t5\t300\n"), "/films.test.inter:1: column rating is not in all of the three files"),
        (lambda folder: (folder / "films.test.inter").write_text(HEAD + "10\t2\t5\t99\n"), ": user '10': a test event of 1970-01-01 00:01:39 UTC (films.test.inter line 2) comes before a training event of 1970-01-01 00:01:40 UTC (films.train.inter line 2); in each user, training must come before validation and that before test, in time: mend the parts, or import without them and set data.split"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, change, reason):
    change(folder := folder_of(tmp_path / "files", MIXED))
    with pytest.raises(UserError) as raised:
        prepare.prepare(str(folder), data_dir=tmp_path / "data")
    assert str(raised.value) == f"{folder}{reason}"
    assert not list((tmp_path / "data").glob("logs/*"))
