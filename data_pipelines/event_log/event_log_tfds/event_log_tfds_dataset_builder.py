"""Writes the records of an event log to ArrayRecord; `tfds.builder_from_directory` reads them back anywhere."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import shutil
import typing

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_builder, splits

from data_pipelines.event_log.stored_records import encode

SPLIT = "users"
SHARD = 256 << 20  # bytes


def features(candidate_features: bool = False) -> tfds.features.FeaturesDict:
    """One user a record. Arrays are stored as little-endian bytes: an int64 list decodes three times slower.

    With `candidate_features` there is one more array, `shown_feature`, row after row.
    """

    def array(dtype):
        return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    return tfds.features.FeaturesDict(
        {
            "user_id": tfds.features.Text(),
            "item": array(np.int32),
            "action": array(np.int32),
            "query": array(np.int32),
            "request": array(np.int32),
            "time": array(np.int64),
            "shown_request": array(np.int32),
            "shown_item": array(np.int32),
            "shown_action": array(np.int32),
        }
        | ({"shown_feature": array(np.float32)} if candidate_features else {})
    )


class Builder(dataset_builder.FileReaderBuilder):
    """Writes the records that it is given, in their order; where `shards` hold them already, it takes these.

    Records go straight to their shards. A `GeneratorBasedBuilder` keeps all records in memory before it writes the first,
    and asks for TensorFlow above a gibibyte of them.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: typing.ClassVar[dict[str, str]] = {"1.0.0": "Events, requests and shown lists, one record a user."}

    def __init__(
        self,
        *,
        records: typing.Iterable[dict] = (),
        shards: typing.Sequence[pathlib.Path] = (),
        candidate_features: bool = False,
        **settings,
    ):
        self._records, self._shards = records, shards
        self._features = features(candidate_features)
        super().__init__(file_format="array_record", **settings)

    def _info(self) -> tfds.core.DatasetInfo:
        text = "Event logs of search and recommendation, one record a user, events sorted by time."
        return tfds.core.DatasetInfo(builder=self, description=text, features=self._features, disable_shuffling=True)

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        del dl_manager, download_config  # nothing is downloaded here
        folder = pathlib.Path(self.data_dir)
        if self._shards:
            lengths, total = _take(folder, self._shards, self._records)
        else:
            lengths, total = write_shards(folder, map(encode, self._records))
        template = tfds.core.ShardedFileTemplate(
            data_dir=tfds.core.Path(folder), dataset_name=self.name, split=SPLIT, filetype_suffix="array_record"
        )
        for number in range(len(lengths)):
            (folder / f"part-{number}").rename(template.sharded_filepath(shard_index=number, num_shards=len(lengths)))
        split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=lengths, num_bytes=total, filename_template=template)
        self.info.set_splits(splits.SplitDict([split]))


def _take(
    folder: pathlib.Path, shards: typing.Sequence[pathlib.Path], records: typing.Iterable[dict]
) -> tuple[list[int], int]:
    """Moves shards to part-0, part-1, ... once their records have been gone through; as `write_shards`."""
    from array_record.python.array_record_module import ArrayRecordReader

    count, lengths, total = sum(1 for _ in records), [], 0
    for number, shard in enumerate(shards):
        reader = ArrayRecordReader(str(shard))
        lengths.append(reader.num_records())
        reader.close()
        total += shard.stat().st_size
        shutil.move(shard, folder / f"part-{number}")
    if sum(lengths) != count:
        raise RuntimeError(f"{sum(lengths)} records in {len(shards)} shards, not {count}")
    return lengths, total


def write_shards(folder: pathlib.Path, records: typing.Iterable[bytes]) -> tuple[list[int], int]:
    """Writes part-0, part-1, ... of about SHARD bytes each; the number of records in each, and bytes in all."""
    lengths, total, records = [], 0, iter(records)
    for first in records:
        with contextlib.closing(open_shard(folder / f"part-{len(lengths)}")) as shard:
            count = written = 0
            for record in itertools.chain([first], records):
                shard.write(record)
                count, written = count + 1, written + len(record)
                if written >= SHARD:
                    break
        lengths.append(count)
        total += written
    return lengths, total


def open_shard(path: pathlib.Path):
    """A writer of an ArrayRecord file from which single records are read quickly."""
    from array_record.python.array_record_module import ArrayRecordWriter

    return ArrayRecordWriter(str(path), "group_size:1")
