"""What `synergen bench` measures: a module a question, each with `run(setting) -> Result`.

All that a benchmark compares it measures in one run, on made-up data, alternating its sides; it reports ratios, since a
second on one machine says nothing about another.
"""
