"""What the totals should be according to the source: a snapshot joined exactly with the stream, and its uses.

Importable in Lambda: nothing here knows the operators' command, the local pipeline or a terminal.
"""
