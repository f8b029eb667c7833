"""The records of a log on disk: the bytes of each, and where they are read at a cost that does not grow with their number.

Bytes are those of TFDS's features: an `Example` of bytes alone. TFDS's own coding of them takes five times as long.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import pathlib
import threading
import typing

import numpy as np

from data_pipelines.files.records import DTYPES, FEATURES

OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # what ArrayRecord recommends for random access
BUFFER = 32_768  # bytes of a file that are read for one record, at least


@functools.cache
def _example():
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # protobuf makes it at run time


def encode(record: typing.Mapping[str, typing.Any]) -> bytes:
    """The bytes of a record whose arrays have the types of the files; features are row after row."""
    example = _example()()
    feature = example.features.feature
    for name, value in record.items():
        feature[name].bytes_list.value.append(value.encode() if name == "user_id" else value.tobytes())
    return example.SerializeToString()


def decode(raw: bytes, candidate_features: typing.Sequence[str] = ()) -> dict[str, typing.Any]:
    """The record that `encode` was given, features in rows of as many as there are names."""
    found = _example().FromString(raw).features.feature
    record = {name: np.frombuffer(found[name].bytes_list.value[0], dtype) for name, dtype in DTYPES.items()}
    if candidate_features:
        flat = np.frombuffer(found[FEATURES].bytes_list.value[0], "<f4")
        record[FEATURES] = flat.reshape(len(record["shown_item"]), len(candidate_features))
    return {"user_id": found["user_id"].bytes_list.value[0].decode(), **record}


class StoredRecords:
    """The bytes of each record of a folder that TensorFlow Datasets wrote, by number. Threads may share it.

    TFDS's own data source asks ArrayRecord for a list of one number, which takes a time that grows with the file: 8 ms
    a record among a million, where a range of one takes 12 microseconds at any place.
    """

    def __init__(self, folder: pathlib.Path):
        import tensorflow_datasets as tfds

        split = tfds.builder_from_directory(folder).info.splits["users"]
        self._paths = [str(path) for path in split.filepaths]
        self._stops = list(itertools.accumulate(split.shard_lengths))
        self._readers: list[typing.Any] = [None] * len(self._paths)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, number: int) -> bytes:
        shard = bisect.bisect_right(self._stops, number)
        place = number - (self._stops[shard - 1] if shard else 0)
        return self._reader(shard).read(place, place + 1)[0]

    def _reader(self, shard: int):
        if self._readers[shard] is None:
            with self._lock:
                if self._readers[shard] is None:
                    from array_record.python.array_record_module import ArrayRecordReader

                    path = self._paths[shard]
                    self._readers[shard] = ArrayRecordReader(path, OPTIONS, file_reader_buffer_size=BUFFER)
        return self._readers[shard]
