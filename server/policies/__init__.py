"""How the vectors of workers come together to rounds: what `participation` chooses among.

`PARTICIPATION` has them by name. Each is the configuration of one way and what follows from its numbers;
the protocol itself is `round` for `sync`, and `participation` for the others.
"""

from varangian.server.policies.asap import Asap
from varangian.server.policies.asynchronous import Async
from varangian.server.policies.base import PARTICIPATION, Regime
from varangian.server.policies.fedavg import FedAvg
from varangian.server.policies.fedlaavg import FedLaAvg, Form
from varangian.server.policies.sync import Sync

__all__ = ["PARTICIPATION", "Asap", "Async", "FedAvg", "FedLaAvg", "Form", "Regime", "Sync"]
