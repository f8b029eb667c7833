"""What the scripts of this folder share: their options, and how they tell what they found."""

from __future__ import annotations

import argparse
import collections.abc
import json
import pathlib
import sys
import typing

from synergen_jax.errors import UserError

Found = dict[str, typing.Any]


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A command line with the options that all have."""
    one = argparse.ArgumentParser(name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    one.add_argument("--threads", type=int, default=1, help="of LightGBM")
    one.add_argument("--seed", type=int, default=0, help="of LightGBM, of what is held back, and of the bootstrap")
    one.add_argument("--data-dir", help="where logs lie (default: as `synergen`)")
    one.add_argument("--json", type=pathlib.Path, help="write what was found here, too")
    return one


def main(
    one: argparse.ArgumentParser,
    measured: collections.abc.Callable[[argparse.Namespace], Found],
    text: collections.abc.Callable[[Found], str],
) -> int:
    """Measures, prints, and gives 2 where the input is wrong."""
    arguments = one.parse_args()
    try:
        found = measured(arguments)
    except UserError as error:
        print(f"{one.prog}: {error}", file=sys.stderr)
        return 2
    print(text(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0
