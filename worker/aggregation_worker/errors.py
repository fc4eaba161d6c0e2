"""The one base of what this project raises on purpose."""


class WorkerError(Exception):
    """Raised on purpose; the message says what is wrong and what to do."""
