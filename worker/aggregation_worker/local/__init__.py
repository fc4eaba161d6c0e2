"""The whole pipeline on one machine."""

from pathlib import Path

# What the demo counts: the reference scenario, whatever the user's own file says.
SAMPLE_FILE = Path(__file__).with_name("sample.toml")
