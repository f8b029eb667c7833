"""SynerGen in JAX and Flax: personalised search and recommendation, retrieval and ranking, in one decoder."""

__version__ = "0.1.0"
