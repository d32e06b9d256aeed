"""The fixture of the command line, for benchmarks that are commands."""

from tests.cli.conftest import varangian as varangian
