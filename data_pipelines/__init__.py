"""From raw logs to the batches of a step: files, features, event log, sources and feed, importing.

Read event_log/ (what a log is), then feed/ (what is made of it), then sources/ and importing/ (where it comes from).
"""
