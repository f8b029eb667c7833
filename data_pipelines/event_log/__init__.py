"""The log on disk: ArrayRecord through TFDS, with a JSON file of what it holds.

Read event_log.py, log_parts.py (what a log is written of); shared_files.py is for folders that many machines see.
"""
