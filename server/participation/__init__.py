"""Participation: which workers take part in a round, and which rows the rule is given for it.

One file for each, registered by name in `PARTICIPATION` and named by the setting `participation`. The
configuration, `launch` and the command line ask a participation and never for its type; it stands on the
protocol and the rows of the server.
"""

from varangian.server.participation.asap import Asap
from varangian.server.participation.asynchronous import Async
from varangian.server.participation.base import DEFAULT, PARTICIPATION, Participation
from varangian.server.participation.fedavg import FedAvg
from varangian.server.participation.fedlaavg import FedLaAvg
from varangian.server.participation.sync import Sync

__all__ = ["DEFAULT", "PARTICIPATION", "Asap", "Async", "FedAvg", "FedLaAvg", "Participation", "Sync"]
