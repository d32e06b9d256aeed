"""How the vectors of workers come together to rounds: what `participation` chooses among.

`PARTICIPATION` has them by name. Each is the configuration of one way and what follows from its numbers;
the protocol itself is `synchronous` for `sync`, and `machine` for the others.
"""

from varangian.server.participation.asap import Asap
from varangian.server.participation.asynchronous import Async
from varangian.server.participation.base import PARTICIPATION, Participation
from varangian.server.participation.fedavg import FedAvg
from varangian.server.participation.fedlaavg import FedLaAvg, Form
from varangian.server.participation.sync import Sync

__all__ = ["PARTICIPATION", "Asap", "Async", "FedAvg", "FedLaAvg", "Form", "Participation", "Sync"]
