"""What workers remember from round to round, as it is kept in a file and put back in another process."""

import dataclasses
import logging
from collections import deque
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from tests import own_parts

from varangian.config.worker_names import default_names
from varangian.state_file import flatten, unflatten
from varangian.worker.attacks import ATTACKS, Push, SignFlip, Unpackable, packed, unpacked
from varangian.worker.attacks.memory import pack, unpack
from varangian.worker.data import Synthetic
from varangian.worker.data.partition import Shared
from varangian.worker.training.compute import ATTACKERS, WorkerCompute
from varangian.worker.training.models import Mlp
from varangian.worker.training.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generator")

WORKERS = default_names(5)
TASK = Task(
    seed=1,
    workers=WORKERS,
    model=Mlp(hidden=4),
    data=Synthetic(features=4, train=60, test=10),
    partition=Shared(),
    f=2,
    batch_size=4,
)
REMEMBERING = {
    "replay": {"replay": {"age": 2}},
    "rop": "rop",
    "xfed": "xfed",
    "mimic": {"mimic": {"warmup": 2}},
    "sleeper of rop": {"sleeper": {"attack": "rop", "after": 2}},
    "stored_row": "stored_row",
    "composite": {"composite": {"steps": ["gaussian 0.5 memory", "replay 2", "toward 1"]}},
}


def through_a_file(tree):
    plain, tensors = flatten(tree)
    return unflatten(plain, {name: tensor.clone() for name, tensor in tensors.items()})


def sent(worker_compute, rounds, counted=()):
    """The vectors of all workers that are hosted, after which some count."""
    found = {}
    for round in rounds:
        parameters = worker_compute.initial() * (1 + round)
        for name in worker_compute.hosted:
            found[name, round] = worker_compute.contribution(name, round, parameters)
            if round in counted:
                worker_compute.confirm(name, round)
    return found


def assert_goes_on(task, hosted, counted=()):
    """Another process with the history of the first sends the same, from the last round on."""
    straight, resumed = WorkerCompute(task), WorkerCompute(task)
    straight.hosted = resumed.hosted = hosted
    before = sent(straight, range(4), counted)
    assert straight.parts()
    for part in straight.parts():
        resumed.restore(part, through_a_file(straight.state(part)))
        assert resumed.rounds(part) == straight.rounds(part)
    again = sent(resumed, [3])
    for key, vector in again.items():
        assert (vector is None and before[key] is None) or torch.equal(vector, before[key])
    expected = sent(straight, [4, 5])
    for key, vector in sent(resumed, [4, 5]).items():
        assert (vector is None and expected[key] is None) or torch.equal(vector, expected[key])


@pytest.mark.parametrize("attack", REMEMBERING)
def test_attackers_go_on_with_what_they_have_seen(attack):
    built = ATTACKS.build(REMEMBERING[attack], "byzantine.attack")
    task = dataclasses.replace(TASK, byzantine=WORKERS[-2:], attack=built, knows="all")
    assert_goes_on(task, WORKERS[-2:])


def test_an_attacker_alone_keeps_the_momenta_of_those_that_it_sees():
    attack = ATTACKS.build("mimic", "byzantine.attack")
    task = dataclasses.replace(TASK, byzantine=WORKERS[-2:], attack=attack, knows="all")
    assert_goes_on(task, WORKERS[-1:])
    one = WorkerCompute(task)
    one.hosted = WORKERS[-1:]
    assert one.parts() == (WORKERS[-1], ATTACKERS)


def test_a_colluder_alone_keeps_the_momenta_of_the_others():
    attack = ATTACKS.build("min_max", "byzantine.attack")
    task = dataclasses.replace(TASK, byzantine=WORKERS[-3:], f=2, attack=attack, knows="colluders")
    assert_goes_on(task, WORKERS[-1:])


@pytest.mark.parametrize("counted", [(0, 1, 2, 3), (0, 2), ()], ids=["all", "some", "none"])
def test_deltas_go_on_from_what_was_counted(counted):
    assert_goes_on(dataclasses.replace(TASK, deltas=True), WORKERS[:2], counted)


def test_a_delta_is_unconfirmed_until_it_counts():
    worker_compute = WorkerCompute(dataclasses.replace(TASK, deltas=True))
    assert worker_compute.unconfirmed("w00") is None
    vector = worker_compute.contribution("w00", 3, worker_compute.initial())
    round, delta = worker_compute.unconfirmed("w00")
    assert round == 3
    assert torch.equal(delta, vector)
    worker_compute.confirm("w00", 3)
    assert worker_compute.unconfirmed("w00") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.0},
        {"momentum": 0.0, "byzantine": WORKERS[-2:], "attack": SignFlip()},
        {"momentum": 0.0, "byzantine": WORKERS[-2:], "attack": ATTACKS.build("ipm", "a"), "knows": "all"},
    ],
)
def test_where_no_round_needs_an_earlier_one_nothing_is_kept(changes):
    assert WorkerCompute(dataclasses.replace(TASK, **changes)).parts() == ()


class Foreign(NamedTuple):
    x: int


class Odd:
    """A memory that no file can keep."""


@dataclasses.dataclass(frozen=True)
class Keeper:
    """An attack of the user that says itself how its memory is kept."""

    needs: ClassVar[str] = "own"

    def start(self) -> Odd:
        return Odd()

    def step(self, own: torch.Tensor, knows: Any, memory: Odd) -> tuple[torch.Tensor, Odd]:
        return own, memory

    def pack(self, memory: Odd) -> dict[str, int]:
        return {"odd": 1}

    def unpack(self, tree: dict[str, int]) -> Odd:
        assert tree == {"odd": 1}
        return Odd()


PUSH = Push(3, b"\x00\xff", 2, 1, b"layout", b"digest")
PLAIN = [None, True, 3, 2.5, float("inf"), "text", b"bytes", (1, (2, [3])), {(0, 1): "a", "b": None, 2: ()}]


@pytest.mark.parametrize("memory", [*PLAIN, deque([PUSH, PUSH], maxlen=3), deque()], ids=str)
def test_what_is_packed_comes_back(memory):
    back = unpacked(through_a_file(packed(memory)))
    assert back == memory
    assert type(back) is type(memory)


def test_a_record_of_another_module_is_not_packed_nor_made():
    with pytest.raises(Unpackable, match="it has a Foreign"):
        packed((1, Foreign(2)))
    for name in ("subprocess:Popen", "collections:OrderedDict", f"{__name__}:Foreign"):
        tree = {"kind": "record", "class": name, "fields": ["x"], "items": [1]}
        with pytest.raises(Unpackable, match="which this attack does not have"):
            unpack(tree, SignFlip())
    assert unpack(pack((1, Foreign(2)), Forgetful()), Forgetful()) == (1, Foreign(2))


@pytest.mark.parametrize("tree", [{"kind": "code"}, {"kind": "record", "items": []}, {"other": 1}])
def test_a_tree_that_is_no_memory_is_refused(tree):
    with pytest.raises(Unpackable):
        unpack(tree, SignFlip())


def test_an_attack_of_the_user_may_pack_its_memory_itself():
    assert isinstance(unpack(through_a_file(pack(Odd(), Keeper())), Keeper()), Odd)


def test_a_memory_that_cannot_be_kept_is_said_once(caplog):
    caplog.set_level(logging.WARNING)
    task = dataclasses.replace(
        TASK, byzantine=WORKERS[-1:], f=1, attack=Forgetful(), momentum=0.0, knows="own"
    )
    worker_compute = WorkerCompute(task)
    sent(worker_compute, range(2))
    assert worker_compute.parts() == WORKERS[-1:]
    for _ in range(2):
        assert worker_compute.state(WORKERS[-1])["attack"] is None
    (line,) = caplog.messages
    assert line.endswith("cannot be kept; after a restart it begins with start(): it has a Odd")


@dataclasses.dataclass(frozen=True)
class Forgetful:
    """An attack of the user with a memory of a class of its own."""

    needs: ClassVar[str] = "own"

    def start(self) -> Odd:
        return Odd()

    def step(self, own: torch.Tensor, knows: Any, memory: Odd) -> tuple[torch.Tensor, Odd]:
        return own, memory


def test_the_attack_of_the_users_own_parts_goes_on():
    task = dataclasses.replace(
        TASK, byzantine=WORKERS[-2:], attack=own_parts.Drifting(), knows="all", momentum=0.0
    )
    assert_goes_on(task, WORKERS[-2:])
