"""Atheris on our own codec: coverage of frames, codec and layout leads it. Needs `pip install atheris`.

python tests/hostile/fuzz_codec.py -runs=1000000 -max_len=400
"""

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

with atheris.instrument_imports(include=["varangian.protos"]):
    from tests.hostile.probes import PROBES


def one(data):
    """The first byte chooses the probe."""
    if data:
        PROBES[data[0] % len(PROBES)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
