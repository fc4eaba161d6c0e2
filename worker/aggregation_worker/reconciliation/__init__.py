"""What the totals should be, told by the source: a snapshot joined exactly with the stream, and what is made of it.

Importable in Lambda: nothing here knows the operators' command, the local pipeline or a terminal.
"""
