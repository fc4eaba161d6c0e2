"""Draws the pictures of README.md anew, into `.github/images`.

uv run python -m tests.pictures          # all
uv run python -m tests.pictures prices   # one
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.pictures import architecture, demo, prices

IMAGES = Path(__file__).parents[2] / ".github" / "images"
PICTURES: dict[str, Callable[[], str]] = {
    "architecture": architecture.draw,
    "demo": demo.draw,
    "prices": prices.draw,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}")
    names = parser.parse_args(arguments).names
    if unknown := set(names) - PICTURES.keys():
        parser.error(f"no such picture: {', '.join(sorted(unknown))}")
    IMAGES.mkdir(exist_ok=True)
    for name in names or PICTURES:
        (IMAGES / f"{name}.svg").write_text(PICTURES[name]())


if __name__ == "__main__":
    main()
