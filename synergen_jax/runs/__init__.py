"""A run: a config and a log, put together. Here alone, and in cli/ above, library and pipelines meet.

Read run.py (what follows from config and log; opening a trained run), train.py, evaluate.py, ask.py; workdir.py says
what lies in a run's folder. family.py sweeps, plan.py plans in processes of their own.
"""
