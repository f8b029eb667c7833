"""The Transformer: encode a context once, read it with any number of questions, append to it.

Read synergen.py with blocks.py and heads.py, then embed.py and lookup.py (ids to vectors), rope.py (time), attention.py
with its backends; oracle.py is the same model, written the slow way.
"""
