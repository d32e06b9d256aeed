"""`varangian schema`: print the JSON Schema of a configuration file."""

import argparse
import json

from varangian.config.settings import json_schema


def command(args: argparse.Namespace) -> int:
    """Print the JSON Schema that editors check a configuration file with."""
    del args
    print(json.dumps(json_schema(), indent=2))
    return 0
