"""Commands on many hosts at once: ``--hosts``, batch files, ``lvp top``.

Owns concurrency, time limits, tables with a column for the host, and the exit status for many. What a command asks of
one host stays in the client. An error of a host is a row of its own and never ends the others.
"""
