"""Runs ministack in this process until standard input ends, then removes its state directory and exits.

Started by `ministack` as a script of its own. The pipe to standard input closes when the starting process ends, in
whatever way, so no server is ever left behind; that holds on every platform, unlike a parent-death signal.
"""

import decimal
import os
import runpy
import shutil
import signal
import sys
import threading

_GRACE_SECONDS = 3.0
# ministack adds with Python's default context, of 28 digits, and then refuses an update whose result DynamoDB could not
# hold. The sum of DynamoDB's largest number and its smallest has 256 digits.
_DIGITS = 300


def _exit_when_input_ends(state_directory: str) -> None:
    sys.stdin.buffer.read()
    killer = threading.Timer(_GRACE_SECONDS, _exit_now, [state_directory])
    killer.daemon = True
    killer.start()
    signal.raise_signal(signal.SIGTERM)


def _exit_now(state_directory: str) -> None:
    shutil.rmtree(state_directory, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Serves with the environment's settings; the only argument is the state directory."""
    state_directory = sys.argv.pop(1)
    # Of every thread to come, and of this one.
    decimal.DefaultContext.prec = _DIGITS
    decimal.getcontext().prec = _DIGITS
    # Until the server is up and handles the signal itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    threading.Thread(target=_exit_when_input_ends, args=[state_directory], daemon=True).start()
    try:
        runpy.run_module("ministack", run_name="__main__")
    finally:
        shutil.rmtree(state_directory, ignore_errors=True)


if __name__ == "__main__":
    main()
