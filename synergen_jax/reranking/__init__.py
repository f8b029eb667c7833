"""The second stage: a ranker that orders what retrieval found first, by more than the model's own score.

`statistics` (what training tells of items) -> `list_features` (numbers a retrieved item) -> `ranker` and `fit`.
"""
