"""Files that are there whole or not at all, and rows and records in them.

Read disk.py, rows.py (text files by line), records.py (an event log's records, and what makes one valid).
"""
