"""Public data sets, found, checked and converted: `synergen data prepare`.

Read prepare.py, then movielens.py, trivago.py or atomic.py (RecBole's files); fetch.py gets the files,
search_queries.py generates searches.
"""
