"""The command `varangian`."""

import os
import sys

if __name__ == "__main__" and sys.path[0] in ("", os.getcwd()):
    sys.path.append(sys.path.pop(0))  # `python -m` puts the folder first, where a file could hide a library

from varangian.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
