"""Commands that shell scripts call, each in one process that stays: every start of Python and boto3 takes a second.

    made = "from awscli.clidriver import create_clidriver; main = create_clidriver().main"
    with shell_command("aws", made, interpreter, environment) as aws:
        subprocess.run(["bash", "-c", aws + "aws sqs list-queues"])

The process is this file, run by the command's own interpreter; so it imports nothing but the command. A call comes
through the pipe `call`, as the working directory and the arguments, each ended by a zero byte. What it prints is in
`out` and `err` when its exit status comes through the pipe `status`.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def shell_command(
    name: str, made: str, interpreter: Sequence[str], environment: Mapping[str, str], options: str = ""
) -> Iterator[str]:
    """The definition of a shell function that calls the `main` which Python code makes, with these options first."""
    with tempfile.TemporaryDirectory() as folder:
        for pipe in ("call", "status"):
            os.mkfifo(Path(folder, pipe))
        serving = [*interpreter, __file__, folder, made]
        with subprocess.Popen(serving, stdin=subprocess.PIPE, env=environment):  # ends with its standard input
            at = shlex.quote(folder)
            yield (
                f"""{name}() {{ printf '%s\\0' "$PWD" {options} "$@" > {at}/call; read -r status < {at}/status; """
                f"""cat {at}/out; cat {at}/err >&2; return "$status"; }}\n"""
            )


def serve(folder: Path, made: str) -> None:
    """Carries out one call after another."""
    names: dict[str, Any] = {}
    exec(made, names)
    main = names["main"]
    while True:
        directory, *sys.argv[1:] = (folder / "call").read_text().split("\0")[:-1]
        os.chdir(directory)
        with (
            (folder / "out").open("w") as out,
            (folder / "err").open("w") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                status = main()
            except SystemExit as end:
                status = end.code
        (folder / "status").write_text(f"{status or 0}\n")


def _end_with_standard_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    serve(Path(sys.argv[1]), sys.argv[2])
