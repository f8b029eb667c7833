"""The best items for a query: in an index, and over items that are split over devices.

Read index.py (exact, and ScaNN), then full_ranking.py (ranks and first items, tile by tile).
"""
