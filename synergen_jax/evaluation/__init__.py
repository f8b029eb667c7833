"""How good a model is: the protocol, its metrics, what it is held against, and how that is told.

Read protocol.py with model_answers.py (what a model says of each target), then metrics.py, baselines.py and slices.py;
findings.py makes texts and pages of it, report.py tables and plots of anything.
"""
