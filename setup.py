"""Which packages there are: those that are found, and the configs of experiments/, which are installed inside the library.

pyproject.toml can name packages or have them found, not both.
"""

import setuptools

CONFIGS = {"synergen_jax.experiments": "experiments", "synergen_jax.experiments.families": "experiments/families"}

setuptools.setup(
    packages=setuptools.find_packages(include=["synergen_jax*", "data_pipelines*"]) + list(CONFIGS),
    package_dir=CONFIGS,
)
