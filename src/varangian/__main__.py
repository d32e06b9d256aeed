"""The command `varangian`."""


def main() -> int:
    """Run the command line; returns the exit code."""
    raise NotImplementedError("varangian.cli arrives next")
