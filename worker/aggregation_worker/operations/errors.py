"""What ends an `aggregator` command, in words for the person who typed it."""


class CommandError(Exception):
    """Ends a command with exit status 2 and one line that says what is wrong and what to do."""
