"""The pictures of README.md, each drawn from what it shows: `python -m tests.pictures`."""
