"""Draws the pictures of README.md anew, into `.github/images`.

uv run python -m tests.pictures          # all
uv run python -m tests.pictures prices   # one
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

IMAGES = Path(__file__).parents[2] / ".github" / "images"
# Each is drawn by the module of its name, which is loaded for it alone: the CDK takes seconds.
PICTURES = ("architecture", "demo", "prices")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    names = parser.parse_args(arguments).names
    if unknown := set(names) - {*PICTURES}:
        parser.error(f"no such picture: {', '.join(sorted(unknown))}")
    IMAGES.mkdir(exist_ok=True)
    for name in names or PICTURES:
        (IMAGES / f"{name}.svg").write_text(import_module(f"tests.pictures.{name}").draw())


if __name__ == "__main__":
    main()
