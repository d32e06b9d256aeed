"""The app in Flower's simulation engine, without a SuperLink: `python simulate.py`. It needs ray."""

import argparse
import os
import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [HERE, os.environ.get("PYTHONPATH")])
)  # of the actors
sys.path.insert(0, HERE)

from digits import client_app, server_app  # noqa: E402
from digits.task import CLIENTS  # noqa: E402
from flwr.app import Context  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=10)
parser.add_argument("--attackers", type=int, default=2)
parser.add_argument("--robust", action=argparse.BooleanOptionalAction, default=True)
args = parser.parse_args()
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    server_app.train(grid, args.rounds, args.attackers, args.robust)


cpus = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2, "include_dashboard": False}}
run_simulation(app, client_app.app, CLIENTS, backend_config=cpus)
