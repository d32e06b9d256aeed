"""Results: runs read from their folders, compared and tabulated.

Folders are read and never written. `read` finds runs, `study` compares them, `trust` looks into one;
`tables` and `figures` write what they say. The sweep and the report import it; it imports neither of them,
and no part of a running server.
"""
