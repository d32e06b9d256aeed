"""The command `varangian`."""

import sys

from varangian.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
