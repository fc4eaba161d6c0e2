"""What `aggregator demo` shows, of a real run."""

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.aggregator import aggregator, without_settings


def draw() -> str:
    """The picture as SVG; the command draws it itself.

    Raises:
        subprocess.CalledProcessError: the demo failed.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "demo.svg"
        subprocess.run(aggregator("demo", "--svg", str(file)), env=without_settings(), capture_output=True, check=True)
        return file.read_text()
