"""Public data sets, found, checked and converted: `synergen data prepare`.

Read prepare.py, then movielens.py, trivago.py or recbole.py (RecBole's atomic files); fetch.py gets the
files, search_queries.py generates searches, tmdb.py those of keywords and actors.
"""
