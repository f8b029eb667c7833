"""The benchmarks of `synergen bench`: one question a module, ratios of sides that take turns.

Read timing.py (how is timed), setting.py (on what), then suite.py (all of them by name) and any question.
"""
