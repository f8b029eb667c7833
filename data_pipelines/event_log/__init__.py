"""The log on disk: ArrayRecord through TFDS, with a JSON file of what it holds.

Read event_log.py; shared_files.py is for folders that many machines see.
"""
