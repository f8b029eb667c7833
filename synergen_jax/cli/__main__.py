"""`python -m synergen_jax.cli` is `synergen`."""

import sys

from synergen_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
