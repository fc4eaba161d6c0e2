"""The whole pipeline on one machine."""

from pathlib import Path

# What the demo counts: the reference scenario, whatever stands in the user's own file.
SAMPLE_FILE = Path(__file__).with_name("sample.toml")
