"""The server: FedAvg, behind a robust rule unless the run says `robust=false`."""

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from digits.task import CLIENTS, accuracy, make_model
from varangian.flower import Robust

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    model = make_model()
    model.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord({"accuracy": accuracy(model)})


def train(grid: Grid, rounds: int = 10, attackers: int = 2, robust: bool = True) -> None:
    strategy: Strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    if robust:
        strategy = Robust(strategy, aggregator="nnm+trimmed_mean", f=2)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(make_model().state_dict()),
        num_rounds=rounds,
        train_config=ConfigRecord({"attackers": attackers}),
        evaluate_fn=evaluate,
    )
    print(f"accuracy: {result.evaluate_metrics_serverapp[rounds]['accuracy']:.3f}", flush=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    train(grid, int(config["rounds"]), int(config["attackers"]), bool(config["robust"]))
