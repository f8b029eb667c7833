"""Several processes that are one run, and runs that do not disturb each other.

Read cluster.py (who is who, agreeing, stopping), run_lock.py (one training a folder), crash_report.py (last words).
"""
