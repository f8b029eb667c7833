"""Texts and matrices as vectors of items and queries.

Read text.py (encoders), then matrices.py (vectors of one's own).
"""
