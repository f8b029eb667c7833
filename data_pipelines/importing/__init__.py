"""Tables of one's own, checked row by row: `synergen data import`, histories and tables of items.

Read own_log.py (the story), then event_files.py (over delimited_text.py, json_lines.py, packed_text.py), event_rows.py,
timestamps.py, sorted_events.py; bad_rows.py says what is refused. beam_log.py does the same on many machines.
"""
