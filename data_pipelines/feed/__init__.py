"""From a log to batches, as a pure function of (seed, step).

Read splits.py (what trains), windows.py (what a window holds), examples.py (as arrays), packing.py (several in a row),
feed.py (Grain); kept.py remembers records, feed_workers.py ends processes.
"""
