"""Writes the records of an event log to ArrayRecord; `tfds.builder_from_directory` reads them back anywhere."""

from __future__ import annotations

import typing

import numpy as np
import tensorflow_datasets as tfds

SPLIT = "users"


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


class Builder(tfds.core.GeneratorBasedBuilder):
    """Writes the records that it is given, in their order."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: typing.ClassVar[dict[str, str]] = {"1.0.0": "Events, requests and shown lists, one record a user."}

    def __init__(self, *, records: typing.Iterable[dict] = (), candidate_features: bool = False, **settings):
        self._records = records
        self._features = features(candidate_features)
        super().__init__(file_format="array_record", **settings)

    def _info(self) -> tfds.core.DatasetInfo:
        text = "Event logs of search and recommendation, one record a user, events sorted by time."
        return tfds.core.DatasetInfo(builder=self, description=text, features=self._features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded here
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self._records)
