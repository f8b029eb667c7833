"""Histories of users that last: events by original ids, kept in SQLite or in PostgreSQL.

Read store.py (what an event is, and what a store promises), opening.py (which of the two), then sqlite.py, over
writer.py (many appends, one commit) and files.py (whose the file is), and postgres.py; both read over pool.py.
"""
