import dataclasses
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests import own_parts
from torch import nn
from torch.nn.functional import cross_entropy

from varangian.aggregators import Aggregator, Krum
from varangian.config.worker_names import default_names
from varangian.worker.attacks import (
    ATTACKS,
    Alie,
    AttackError,
    DataAttack,
    Ipm,
    LabelFlip,
    Mimic,
    SignFlip,
    Uniform,
    z_max,
)
from varangian.worker.data import Cifar10, Custom, DataError, Synthetic
from varangian.worker.data.batches import BatchSampler
from varangian.worker.data.partition import Dirichlet, Extreme, PartitionError, Shared
from varangian.worker.seeds import globally_seeded
from varangian.worker.simulation.availability import Alternating, Always, Random
from varangian.worker.simulation.delays import Constant
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.flat import ModelError, load
from varangian.worker.training.models import Cnn, Mlp, ResNet18, Softmax
from varangian.worker.training.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generator")

WORKERS = default_names(7)
BYZANTINE = WORKERS[-2:]
TASK = Task(
    seed=1,
    workers=WORKERS,
    model=Mlp(hidden=8),
    data=Synthetic(features=6, train=140, test=50),
    partition=Dirichlet(),
    f=2,
    batch_size=8,
)


@dataclasses.dataclass(frozen=True)
class Drifting(own_parts.Drifting):
    """As the user's, but as one of ours: attackers of a process share its memory."""

    __module__ = "varangian.test"


def but(**changes):
    return dataclasses.replace(TASK, **changes)


def attacked(attack, **changes):
    return but(byzantine=BYZANTINE, attack=attack, **changes)


def walk(worker_compute, rounds=4):
    """Parameters of a few rounds: those of a run in which everyone is honest."""
    twin = WorkerCompute(dataclasses.replace(worker_compute.task, byzantine=(), attack=None, knows=None))
    parameters = [twin.initial()]
    for round in range(rounds - 1):
        rows = [twin.contribution(name, round, parameters[-1]) for name in WORKERS]
        parameters.append(parameters[-1] - torch.stack(rows).mean(dim=0))
    return parameters


def sent(worker_compute, workers, parameters):
    """Everything these workers send, by (name, round)."""
    return {
        (name, round): worker_compute.contribution(name, round, vector)
        for round, vector in enumerate(parameters)
        for name in workers
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("model", "features"),
    [
        (Softmax(), 6),
        (Mlp(hidden=(8, 5)), 6),
        (Cnn(width=2), (1, 8, 8)),
        (ResNet18(width=4, groups=2), (3, 8, 8)),
        (ResNet18(width=4, groups=2, norm="batch"), (3, 8, 8)),
    ],
)
def test_a_worker_sends_the_same_bits_alone_and_in_company(model, features):
    task = but(model=model, data=Synthetic(features=features, train=140, test=50))
    parameters = walk(WorkerCompute(task), rounds=3)
    together = sent(WorkerCompute(task), WORKERS, parameters)
    reverse = sent(WorkerCompute(task), WORKERS[::-1], parameters)
    assert same(together, reverse)
    for name in WORKERS[::3]:
        alone = sent(WorkerCompute(task), (name,), parameters)
        assert all(torch.equal(alone[key], together[key]) for key in alone)


@pytest.mark.parametrize("name", [*ATTACKS])
def test_an_attacker_sends_the_same_bits_alone_and_in_company(name):
    task = attacked(ATTACKS.build(name, ""))
    parameters = walk(WorkerCompute(task))
    together = sent(WorkerCompute(task), WORKERS, parameters)
    alone = sent(WorkerCompute(task), BYZANTINE[-1:], parameters)
    for key, vector in alone.items():
        silent = vector is None and together[key] is None
        assert silent or torch.equal(vector.nan_to_num(7), together[key].nan_to_num(7))


def test_attacks_leave_the_honest_alone():
    honest = sent(WorkerCompute(TASK), WORKERS, walk(WorkerCompute(TASK)))
    for attack in (SignFlip(), LabelFlip(), Ipm(), Alie()):
        task = attacked(attack)
        under_attack = sent(WorkerCompute(task), WORKERS, walk(WorkerCompute(task)))
        differ = {
            name
            for name, round in honest
            if not torch.equal(*(s[name, round] for s in (honest, under_attack)))
        }
        assert differ == set(BYZANTINE)


def test_threads_do_not_mix_workers_up():
    parameters = walk(WorkerCompute(TASK))
    expected = sent(WorkerCompute(TASK), WORKERS, parameters)
    worker_compute = WorkerCompute(TASK)
    with ThreadPoolExecutor(4) as executor:
        for round, vector in enumerate(parameters):
            found = executor.map(lambda name: worker_compute.contribution(name, round, vector), WORKERS)  # noqa: B023
            evaluated = executor.submit(worker_compute.evaluate, torch.zeros_like(vector))
            assert all(
                torch.equal(row, expected[name, round]) for name, row in zip(WORKERS, found, strict=True)
            )
            assert evaluated.result()["loss"] == pytest.approx(1.386, abs=1e-3)


class OneAtATime(nn.Linear):
    inside = 0

    def forward(self, x):
        OneAtATime.inside += 1
        time.sleep(0.002)
        alone = OneAtATime.inside == 1
        OneAtATime.inside -= 1
        if not alone:
            raise AssertionError("two computations at once")
        return super().forward(x)


@dataclasses.dataclass(frozen=True)
class Exclusive:
    def build(self, features, classes):
        return OneAtATime(features[0], classes)


def test_a_model_is_used_by_one_thread_at_a_time():
    worker_compute = WorkerCompute(but(model=Exclusive()))
    vector = worker_compute.initial()
    with ThreadPoolExecutor(4) as executor:
        sending = [executor.submit(worker_compute.contribution, name, 0, vector) for name in WORKERS]
        evaluating = [executor.submit(worker_compute.evaluate, vector) for _ in range(3)]
        assert all(work.exception() is None for work in sending + evaluating)


def direct_gradient(worker_compute, name, round, parameters):
    """By the definition, with torch's own flattening."""
    data, task = worker_compute.dataset, worker_compute.task
    shard = task.partition.split(data.train_y, len(task.workers), task.seed)[task.workers.index(name)]
    indices = BatchSampler({name: shard}, task.batch_size, task.seed).indices(name, round)
    with globally_seeded(0, device=torch.device("cpu")):
        module = task.model.build(data.features, data.classes)
    load(module, parameters)
    cross_entropy(module(data.train_x[indices]), data.train_y[indices]).backward()
    return nn.utils.parameters_to_vector([p.grad for p in module.parameters()])


@pytest.mark.parametrize("b", [0.75, 0.0])
def test_momentum_is_dampened_and_starts_from_zero(b):
    """m <- b m + (1 - b) g."""
    worker_compute = WorkerCompute(but(momentum=b))
    expected = torch.zeros(worker_compute.layout.numel)
    for round, vector in enumerate(walk(worker_compute)):
        expected = b * expected + (1 - b) * direct_gradient(worker_compute, "w03", round, vector)
        assert torch.allclose(
            worker_compute.contribution("w03", round, vector), expected, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("attack", [None, SignFlip(), LabelFlip(), Uniform(), Ipm(), Drifting(silent=9)])
def test_asking_again_changes_nothing(attack):
    task = attacked(attack) if attack else TASK
    parameters = walk(WorkerCompute(task))
    once = sent(WorkerCompute(task), WORKERS, parameters)
    worker_compute = WorkerCompute(task)
    twice = {}
    for round, vector in enumerate(parameters):
        for name in WORKERS:
            worker_compute.contribution(name, round, vector).fill_(
                7
            )  # and what was handed out is the caller's
            twice[name, round] = worker_compute.contribution(name, round, vector)
    assert same(once, twice)


def test_rounds_may_be_missed_but_not_go_back():
    worker_compute = WorkerCompute(TASK)
    vector = worker_compute.initial()
    worker_compute.contribution("w00", 3, vector)
    worker_compute.contribution("w01", 1, vector)
    with pytest.raises(ValueError, match=r"not go back\. Found round 2 of w00 after 3"):
        worker_compute.contribution("w00", 2, vector)
    worker_compute.contribution("w00", 9, vector)


@pytest.mark.parametrize("name", ["w00", WORKERS[-1]])
def test_a_server_that_was_started_again_gets_what_it_got_at_first(name):
    """An attacker, too, who follows the others: they have begun anew with it."""
    worker_compute, fresh = (WorkerCompute(attacked(Ipm(epsilon=0.5))) for _ in range(2))
    vector = worker_compute.initial()
    for round in range(3):
        worker_compute.contribution(name, round, vector)
    for part in worker_compute.parts():
        worker_compute.forget(part)
    for round in range(2):
        again, first = (each.contribution(name, round, vector) for each in (worker_compute, fresh))
        assert torch.equal(again, first)


def honest_rows(task, workers, parameters):
    """What these workers send in the last round when all are honest."""
    table = sent(
        WorkerCompute(dataclasses.replace(task, byzantine=(), attack=None, knows=None)), workers, parameters
    )
    return torch.stack([table[name, len(parameters) - 1] for name in workers])


@pytest.mark.parametrize("rank", [0, 1])
def test_an_omniscient_attack_knows_what_the_honest_send(rank):
    """The mean over honest workers in other processes, from nothing but seed and data."""
    task = attacked(Ipm(epsilon=0.5))
    parameters = walk(WorkerCompute(task))
    attack = sent(WorkerCompute(task), (BYZANTINE[rank],), parameters)[BYZANTINE[rank], 3]
    assert torch.equal(attack, -0.5 * honest_rows(task, WORKERS[:-2], parameters).mean(dim=0))


def test_mimic_repeats_an_honest_worker():
    task = attacked(Mimic(target=3))
    parameters = walk(WorkerCompute(task))
    attack = sent(WorkerCompute(task), BYZANTINE, parameters)
    for name in BYZANTINE:
        assert torch.equal(attack[name, 3], honest_rows(task, WORKERS[:-2], parameters)[3])


def test_attackers_with_all_data_leave_every_sample_to_the_honest():
    """Honest workers send what they would without the others; attackers draw from all samples."""
    data = {"byzantine_data": "all", "partition": Extreme()}
    task = attacked(SignFlip(), **data)
    alone = but(workers=WORKERS[:-2], f=0, partition=Extreme())
    start = WorkerCompute(alone).initial()
    for name in WORKERS[:-2]:
        expected = WorkerCompute(alone).contribution(name, 0, start)
        assert torch.equal(WorkerCompute(task).contribution(name, 0, start), expected)
    shared = attacked(SignFlip(), partition=Shared())
    assert torch.equal(*(WorkerCompute(one).contribution("w06", 0, start) for one in (task, shared)))
    assert but(**data).holders == WORKERS


@pytest.mark.parametrize(
    ("knows", "seen"), [(None, BYZANTINE), ("colluders", BYZANTINE), ("all", WORKERS[:-2])]
)
def test_alie_sees_the_workers_it_should(knows, seen):
    task = attacked(Alie(), knows=knows)
    parameters = walk(WorkerCompute(task))
    rows = honest_rows(task, seen, parameters)
    expected = rows.mean(dim=0) - z_max(7, 2) * rows.std(dim=0, correction=0)
    assert torch.equal(sent(WorkerCompute(task), BYZANTINE, parameters)["w06", 3], expected)


def test_sign_flip_turns_the_own_momentum_round():
    task = attacked(SignFlip(scale=3.0))
    parameters = walk(WorkerCompute(task))
    assert torch.equal(
        sent(WorkerCompute(task), BYZANTINE, parameters)["w05", 3],
        -3 * honest_rows(task, ("w05",), parameters)[0],
    )


def test_label_flip_is_honest_work_on_wrong_labels():
    task = attacked(LabelFlip(), momentum=0.0)
    worker_compute = WorkerCompute(task)
    vector = worker_compute.initial()
    flipped = WorkerCompute(dataclasses.replace(task, byzantine=(), attack=None))
    flipped.dataset.train_y.copy_(3 - flipped.dataset.train_y)
    assert torch.equal(
        worker_compute.contribution("w06", 0, vector), flipped.contribution("w06", 0, vector)
    )
    assert not torch.equal(
        worker_compute.contribution("w00", 0, vector), flipped.contribution("w00", 0, vector)
    )


@dataclasses.dataclass(frozen=True)
class Recolour:
    """A data attack with random numbers."""

    def poisons(self, x, y, classes, rng):
        return x + torch.randn(x.shape, generator=rng), y


def test_a_data_attack_draws_from_its_own_stream():
    assert isinstance(Recolour(), DataAttack)
    first, again = (
        sent(WorkerCompute(attacked(Recolour())), WORKERS, walk(WorkerCompute(TASK))) for _ in range(2)
    )
    assert same(first, again)


@dataclasses.dataclass(frozen=True)
class Dropout:
    def build(self, features, classes):
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(features[0], classes, bias=False))


def test_dropout_is_the_same_in_every_process_and_other_in_every_round():
    """With one sample, the gradient of a dropped feature is zero."""
    task = but(model=Dropout(), momentum=0.0, batch_size=1, data=Synthetic(features=32))
    vector = WorkerCompute(task).initial()
    first, again = (
        sent(WorkerCompute(task), workers, [vector] * 2) for workers in (WORKERS, WORKERS[::-1])
    )
    assert same(first, again)
    dropped = [first[key].view(-1, 32)[0] == 0 for key in [("w00", 0), ("w00", 1), ("w01", 0)]]
    assert [4 < int(mask.sum()) < 28 for mask in dropped] == [True] * 3
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])


@dataclasses.dataclass(frozen=True)
class Unused:
    def build(self, features, classes):
        module = nn.Linear(features[0], classes)
        module.spare = nn.Parameter(torch.ones(3))
        return module


def test_an_unused_parameter_has_a_gradient_of_zero():
    worker_compute = WorkerCompute(but(model=Unused()))
    assert worker_compute.layout.entries[-1] == ("spare", (3,))
    assert worker_compute.contribution("w00", 0, worker_compute.initial())[-3:].tolist() == [0, 0, 0]


def test_initial_parameters_are_a_function_of_the_seed():
    first, again, other = (WorkerCompute(but(seed=seed)).initial() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.dtype, first.shape) == (torch.float32, (WorkerCompute(TASK).layout.numel,))


def test_training_and_evaluating_do_not_change_what_a_run_starts_from():
    worker_compute = WorkerCompute(TASK)
    before = worker_compute.initial()
    worker_compute.contribution("w00", 0, before + 1)
    worker_compute.evaluate(before + 2)
    assert torch.equal(worker_compute.initial(), before)


def test_evaluation():
    worker_compute = WorkerCompute(
        but(data=Synthetic(features=6, train=140, test=2100))
    )  # more than two batches
    vector = worker_compute.initial()
    with globally_seeded(0, device=torch.device("cpu")):
        module = worker_compute.task.model.build((6,), 4)
    load(module, vector)
    with torch.no_grad():
        scores = module(worker_compute.dataset.test_x)
    loss, accuracy = worker_compute.evaluate(vector).values()
    assert loss == pytest.approx(float(cross_entropy(scores, worker_compute.dataset.test_y)), rel=1e-5)
    assert accuracy == int((scores.argmax(dim=1) == worker_compute.dataset.test_y).sum()) / 2100


def test_evaluating_nan_is_no_error():
    worker_compute = WorkerCompute(TASK)
    loss, accuracy = worker_compute.evaluate(torch.full((worker_compute.layout.numel,), torch.nan)).values()
    assert loss != loss
    assert 0 <= accuracy < 1


def test_a_task_survives_the_trip_to_another_process():
    task = attacked(Alie(z=1.5), knows="all")
    assert pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": ()}, "`workers` should be different names"),
        ({"workers": ("w01", "w00")}, "ascending order"),
        ({"workers": ("w00", "w00")}, "different names"),
        ({"byzantine": ("w07",), "attack": Uniform()}, "some of the workers"),
        ({"byzantine": ("w06", "w05"), "attack": Uniform()}, "in their order"),
        ({"f": -1}, "at least 0 and less than 7"),
        ({"f": 7}, "at least 0 and less than 7"),
        ({"batch_size": 0}, "`batch_size` should be at least 1"),
        ({"momentum": 1.0}, "`momentum` should be at least 0"),
        ({"byzantine": BYZANTINE}, "`attack` should be given"),
        (
            {"byzantine": BYZANTINE, "attack": Ipm(), "knows": "own"},
            r"Ipm\(epsilon=0.5, .*\) cannot be mounted: it needs",
        ),
        ({"byzantine": BYZANTINE[:1], "attack": Alie()}, "at least 2 vectors"),
        ({"byzantine": WORKERS, "attack": Ipm()}, "no honest worker"),
    ],
)
def test_a_task_that_makes_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        but(**changes)


def test_every_problem_of_a_task_is_told():
    with pytest.raises(ValueError, match=r"(?s)`f` should.*`batch_size` should.*`momentum` should"):
        but(f=9, batch_size=0, momentum=2.0)


def test_an_attack_that_nobody_mounts_is_not_checked():
    assert but(attack=Ipm(), knows="own").sight == "own"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data": Cifar10("nowhere")}, DataError, "train-"),
        ({"data": Custom("nowhere:f")}, DataError, "nowhere"),
        ({"model": Cnn()}, ModelError, "takes images"),
        ({"data": Synthetic(train=6)}, PartitionError, "at least 7 training samples"),
        ({"device": "abacus"}, ValueError, r"one that torch knows.*'abacus'"),
    ],
)
def test_parts_that_do_not_fit(changes, error, words):
    with pytest.raises(error, match=words):
        WorkerCompute(but(**changes))


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"'cuda:0'.*no GPU"):
        WorkerCompute(but(device="cuda:0"))


def test_an_unknown_worker():
    with pytest.raises(ValueError, match="no worker 'w99' among 7"):
        WorkerCompute(TASK).contribution("w99", 0, WorkerCompute(TASK).initial())


def test_parameters_of_another_model():
    with pytest.raises(ValueError, match="takes a vector of"):
        WorkerCompute(TASK).contribution("w00", 0, torch.zeros(3))


# Workers that come and go


def played(crews, rounds=6):
    """What is sent in each round, from parameters that change, by whoever has which names."""
    sent = {}
    for round in range(rounds):
        parameters = torch.full((TASK_LAYOUT.numel,), 0.01 * round)
        for names_, worker_compute in crews:
            for name in names_:
                if worker_compute.task.timetable.available(name, round) or worker_compute.task.listens(
                    name
                ):
                    sent[name, round] = worker_compute.answer(name, round, parameters)
    return sent


TASK_LAYOUT = WorkerCompute(TASK).layout


def test_who_is_away_sends_nothing():
    task = but(availability=Alternating(period=2))
    sent = played([(WORKERS, WorkerCompute(task))], rounds=2)
    assert sorted(sent) == [(name, 0) for name in WORKERS[:3]] + [(name, 1) for name in WORKERS[3:]]
    assert WorkerCompute(task).answer("w06", 0, torch.zeros(TASK_LAYOUT.numel)) is None


@pytest.mark.parametrize("sight", ["colluders", "all"])
@pytest.mark.parametrize("availability", [Alternating(period=3), Random(chance=0.4)])
def test_what_attackers_see_of_those_who_come_and_go_is_the_same_in_any_process(sight, availability):
    task = attacked(Alie(z=1.0), availability=availability, knows=sight)
    together = played([(WORKERS, WorkerCompute(task))])
    apart = played([((name,), WorkerCompute(task)) for name in WORKERS])
    assert together.keys() == apart.keys()
    for key, vector in together.items():
        assert (vector is None) == (apart[key] is None)
        assert vector is None or torch.equal(vector, apart[key]), key
    assert any(vector is not None for (name, _), vector in together.items() if name in BYZANTINE)


def test_attackers_see_only_those_who_take_part():
    task = attacked(Ipm(), availability=Alternating(period=2), knows="all")
    assert [task.seen(round) for round in (0, 1)] == [WORKERS[:3], WORKERS[3:5]]
    alone = WorkerCompute(
        but(byzantine=WORKERS[3:], f=4, attack=Ipm(epsilon=2.0), availability=Alternating(period=2))
    )
    alone = WorkerCompute(dataclasses.replace(alone.task, knows="all"))
    parameters = torch.zeros(TASK_LAYOUT.numel)
    own = WorkerCompute(TASK).contribution("w05", 1, parameters)
    # Where no honest worker takes part there is nobody to look at but oneself.
    assert torch.equal(alone.contribution("w05", 1, parameters), -2.0 * own)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("attack", [Drifting(silent=3), own_parts.Drifting(silent=3)], ids=["ours", "own"])
@pytest.mark.parametrize("availability", [Always(), Alternating(period=4), Random(chance=0.5)], ids=str)
def test_what_attackers_remember_is_the_same_in_any_process(availability, attack, momentum):
    rule = Aggregator(Krum(f=2))
    task = attacked(attack, availability=availability, momentum=momentum, aggregator=rule)
    together = played([(WORKERS, WorkerCompute(task))], 9)
    apart = played([((name,), WorkerCompute(task)) for name in WORKERS], 9)
    assert together.keys() == apart.keys()
    for key, vector in together.items():
        assert (vector is None) == (apart[key] is None)
        assert vector is None or torch.equal(vector, apart[key]), key
    for round in range(9):
        if task.timetable.available("w06", round):
            assert (together["w06", round] is None) == (round % 3 == 2)
    assert any(vector is not None for (name, _), vector in together.items() if name in BYZANTINE)


def test_what_an_attacker_knows(monkeypatch):
    found = []

    def noted(attack, own, knows):
        found.append(knows)
        return own

    monkeypatch.setattr(Ipm, "__call__", noted)
    task = attacked(Ipm(), availability=Alternating(period=4), f=1, aggregator=Aggregator(Krum(f=1)))
    parameters = torch.full((TASK_LAYOUT.numel,), 0.25)
    for round, knows in ((0, "all"), (2, "all")):
        WorkerCompute(dataclasses.replace(task, knows=knows)).contribution("w05", round, parameters)
    there, few = found
    assert torch.equal(there.model, parameters)
    assert few.names == WORKERS[3:5]
    assert few.rule is None, "Krum takes no round of four"
    together = dataclasses.replace(task, availability=Always())
    WorkerCompute(together).contribution("w05", 0, parameters)
    assert (found[-1].rule.aggregator, found[-1].rule.f) == (together.aggregator, 1)
    assert found[-1].names == WORKERS[:5]
    monkeypatch.setattr(Alie, "__call__", noted)
    WorkerCompute(dataclasses.replace(together, attack=Alie())).contribution("w05", 0, parameters)
    assert (found[-1].rule, found[-1].names) == (None, BYZANTINE)


def test_where_nothing_is_sent_nothing_is_encoded():
    """The next delta starts where the last one ended that was sent."""
    task = attacked(own_parts.Drifting(silent=2), deltas=True, momentum=0.0)
    plain, deltas = WorkerCompute(dataclasses.replace(task, deltas=False)), WorkerCompute(task)
    parameters = torch.zeros(TASK_LAYOUT.numel)
    sent = []
    for round in range(3):
        sent.append(plain.contribution("w06", round, parameters))
        delta = deltas.contribution("w06", round, parameters)
        assert (delta is None) == (round == 1)
        deltas.confirm("w06", round)
    assert torch.allclose(delta, sent[2] - sent[0], atol=1e-6)


def test_an_attacker_chooses_when_it_pushes():
    task = attacked(own_parts.Drifting(seconds=9.0), delays=Constant(step=1.0, workers=()))
    assert [task.delay(name, 0) for name in ("w00", "w06")] == [9.0, 9.0]
    hurried = attacked(own_parts.Drifting(), delays=Constant(step=1.0, workers=()))
    assert [hurried.delay(name, 0) for name in ("w00", "w06")] == [9.0, 0.0]
    with pytest.raises(AttackError, match="Drifting' failed: ZeroDivisionError"):
        task.delay("w06", 2)
    with pytest.raises(AttackError, match=r"should return seconds, at least 0\. Found -1\.0"):
        attacked(own_parts.Drifting(seconds=-1.0)).delay("w06", 0)
    assert attacked(SignFlip(), delays=Constant(step=1.0, workers=())).delay("w06", 0) == 9.0


def test_who_listens():
    away = but(availability=Alternating())
    assert not away.listens("w06")
    assert not dataclasses.replace(away, byzantine=BYZANTINE, attack=SignFlip()).listens("w06")
    colluding = dataclasses.replace(away, byzantine=BYZANTINE, attack=Alie())
    assert colluding.listens("w06")
    assert not colluding.listens("w00")
    assert not dataclasses.replace(colluding, momentum=0.0).listens("w06")
    remembering = dataclasses.replace(colluding, attack=own_parts.Drifting(), momentum=0.0)
    assert remembering.listens("w06")
    assert not dataclasses.replace(remembering, availability=Always()).listens("w06")
