"""A trained model that is asked: encode a history once, then retrieve, rank and append.

Read recommender.py.
"""
