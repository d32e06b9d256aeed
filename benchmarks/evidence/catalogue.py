"""The tables of the evidence, the most important first; each is a grid beside this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results" / "evidence"
ADVICE = ROOT / "src/varangian/experiments/advice/evidence.json"
"""The summary that `varangian advise` reads."""


@dataclass(frozen=True)
class Table:
    """A table: one sweep, and what it is for."""

    name: str
    """Of the grid `benchmarks/evidence/NAME.yaml` and of the results."""
    title: str
    says: str
    """Its question, and its peculiarities, as a paragraph."""
    needs: Literal["cifar10", "byzfl"] | None = None
    advises: bool = True
    """Whether `varangian advise` goes by it."""
    costs: bool = False
    """Whether it says what each attack costs the server: time, missed rounds, refusals."""

    @property
    def grid(self) -> Path:
        return HERE / f"{self.name}.yaml"

    @property
    def results(self) -> Path:
        return RESULTS / f"{self.name}.json"


TABLES = (
    Table(
        "first-look",
        "First look",
        "A few rules under a few attacks, two seeds each: minutes, to see that everything works.",
    ),
    Table(
        "digits",
        "Digits, momentum at the workers",
        "The table of record: 22 rules and combinations under the strongest attacks, two seeds.",
    ),
    Table(
        "poisoning",
        "Label poisoning, where the mean wins",
        "Attackers flip the labels of a part of their own samples (`rate`) and follow the "
        "protocol otherwise. `byzantine.data: share`, as in the paper (Peng, Li, Vlaski and Ling, "
        "JMLR 26(27), 2025): poisoned workers have shares of the training data like everybody. The "
        "mean is order-optimal where data differ enough.",
    ),
    Table(
        "cifar10",
        "CIFAR-10, a small CNN",
        "Three convolutions of 16, 32 and 64 channels, 200 rounds with batches of 32, one "
        "seed: far from trained out, so compare with the mean without attackers in the same "
        "table.",
        needs="cifar10",
    ),
    Table(
        "server-momentum",
        "Digits, momentum at the server",
        "The same training with the momentum moved from the workers (0.9 there, learning rate 1) "
        "to the server (0.9 there, learning rate 0.1): without attackers the mean takes the same "
        "steps, up to their order of rounding, so the difference is what momentum before the rule "
        "is worth.",
    ),
    Table(
        "screening",
        "Every rule under every attack",
        "All rules and combinations under all attacks of the catalogue, with one seed: it finds "
        "the attacks that hurt, and the rules that stand them, for the tables with more seeds. A "
        "cell is one run, and with skewed data another seed may differ by ten points.",
        advises=False,
    ),
    Table(
        "digits-more",
        "Digits, one attacker, and mildly skewed data",
        "The same as the table before, where less happens: f = 1, and a Dirichlet partition with "
        "alpha = 1, for some of the rules and attacks; one seed.",
    ),
    Table(
        "overdeclared",
        "The price of an f that is too large",
        "Three of 15 attack, and the rule is told f = 3, 4 or 6: what it costs to declare more.",
    ),
    Table(
        "per-block",
        "A rule for each layer",
        "The same rules for whole vectors and, with `per_block: true`, for each parameter tensor by "
        "itself. `one_block` puts the whole deviation of min-max into one tensor, the last bias or "
        "(`block: 0`) the first weights; the other attacks spread theirs.",
        advises=False,
    ),
    Table(
        "partial",
        "Partial participation with stored vectors",
        "FedLaAvg with worker momentum, a rule over the latest vectors of all workers, is DeMoA "
        "(Otsuka, Takezawa and Yamada, arXiv 2509.02970) but for the selection: here workers take "
        "turns, there each is drawn by chance. As there a tenth of the workers is selected (3 of "
        "30) and a fifth attacks (6); data and model are smaller (there CIFAR-10 and ResNet-18). "
        "Beside it FedAvg, where the rule has the three selected vectors and can be told f = 1 at "
        "most, though in two rounds of ten all three are attackers'; and all 30 in every round. "
        "With momentum attackers know their own vectors alone; without, those of all.",
        advises=False,
    ),
    Table(
        "protocol",
        "Attacks on the protocol",
        "Six workers in processes, over sockets. One of them attacks the protocol: it is late, repeats or "
        "contradicts itself, lies about its vector, or comes and goes. Its attack costs time, as long as "
        "rounds wait for it (`server.deadline` is 3 s here and `server.wait_floor` 0.5 s, the defaults are "
        "60 s and 10 s), but no f: none of these attacks proves a fault. Times are of single runs on a "
        "busy machine: hundredths of a second say nothing.",
        advises=False,
        costs=True,
    ),
    Table(
        "flag-tolerance",
        "Flag Aggregator: tolerance",
        "The first experiment of the Flag Aggregator paper, f = 1, 2, 3 of 15 under uniform "
        "noise, on a CNN in place of ResNet-18, 200 rounds, one seed.",
        needs="cifar10",
        advises=False,
    ),
    Table(
        "flag-batch",
        "Flag Aggregator: batch size",
        "Its second experiment on digits: samples of a worker in a step, with three attackers of 15.",
        advises=False,
    ),
    Table(
        "flag-lambda",
        "Flag Aggregator: lambda",
        "The weight of differences between rows (lambda), with the released and the paper's form "
        "of them; seven workers, one attacks.",
        advises=False,
    ),
    Table(
        "flag-scaling",
        "Flag Aggregator: scaling",
        "15, 30 and 60 workers, a fifth of which attack.",
        advises=False,
    ),
    Table(
        "byzfl",
        "ByzFL's code in the same harness",
        "Rules of the library ByzFL as it publishes them, beside ours of the same name: same "
        "runs, same seeds. Its CAF is left out at f = 6: with six equal vectors it does not end. "
        "`pip install --no-deps byzfl scipy` makes them available.",
        needs="byzfl",
        advises=False,
    ),
)


def table(name: str) -> Table:
    """The table of this name.

    Raises:
        KeyError: there is none.
    """
    return next((one for one in TABLES if one.name == name), None) or _unknown(name)


def _unknown(name: str) -> Table:
    raise KeyError(f"there is no table {name!r}. Tables: {', '.join(one.name for one in TABLES)}")
