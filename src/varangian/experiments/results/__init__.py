"""Results: runs read from their folders, compared and tabulated.

Folders are read and never written. The sweep and the report import it; it imports neither of them, and no
part of a running server.
"""
