"""Attacks that remember earlier rounds, and attacks inside attacks."""

import math
from dataclasses import replace

import pytest
import torch

from varangian.registry import ConfigError
from varangian.worker.attacks import (
    ATTACKS,
    Alie,
    Composite,
    Ipm,
    Knowledge,
    Mimic,
    MountedAttack,
    Replay,
    Rop,
    SignFlip,
    Silence,
    Sleeper,
    Stale,
    StoredRow,
    Xfed,
    remembers,
    why_impossible,
)
from varangian.worker.attacks.mimic import outermost
from varangian.worker.attacks.mounted import stepped

ROWS = torch.tensor([[1.0, -2.0, 0.5], [3.0, -2.0, 0.0], [5.0, -2.0, 4.0]])
REMEMBERING = [
    Mimic(warmup=3),
    Replay(age=2),
    Rop(),
    Xfed(),
    Xfed(against="own"),
    Sleeper(after=2, period=4),
    Sleeper(attack=Mimic(warmup=3), after=2, trust=0.0),
    Stale(),
    StoredRow(after=1, again=3),
    Sleeper(attack=Sleeper(attack=Replay(age=2), after=1), after=2),
]


def knows(round=0, honest=ROWS, *, model=None, n=15, f=3, names=(), seed=0):
    d = honest.shape[1]
    model = torch.arange(1.0, d + 1) * -round if model is None else model
    names = names or tuple(f"w{i:02}" for i in range(len(honest)))
    rng = torch.Generator().manual_seed(seed)
    return Knowledge(honest, n, f, rank=0, round=round, rng=rng, model=model, names=names)


def rows_of(round, k=12, d=33):
    return torch.randn(k, d, generator=torch.Generator().manual_seed(round))


def sent_by(attack, rounds, own=None, **more):
    """What an attacker sends in some rounds."""
    mounted = MountedAttack(attack, attack.needs)
    return [mounted("w", ROWS[0] if own is None else own(round), knows(round, **more)) for round in rounds]


def which(vectors, **named):
    """The name of each vector; - where nothing is sent."""
    names = [
        [n for n, v in named.items() if vector is not None and torch.equal(vector, v)] for vector in vectors
    ]
    return "".join(found[0] if found else "-" for found in names)


@pytest.mark.parametrize("attack", REMEMBERING, ids=str)
def test_an_attack_with_memory_is_pure(attack):
    """It writes to nothing it is given, and does not depend on what becomes of it later."""
    assert remembers(attack)

    def course(spoil):
        memory, sent = attack.start(), []
        for round in range(8):
            honest, own = rows_of(round), rows_of(100 + round)[0]
            given, model = (honest.clone(), own.clone()), torch.full((33,), 0.5 * round)
            seen = knows(round, honest, model=model)
            before = repr(memory)
            vector, after = attack.step(own, seen, memory)
            assert repr(memory) == before
            assert torch.equal(honest, given[0])
            assert torch.equal(own, given[1])
            assert torch.equal(seen.model, torch.full((33,), 0.5 * round))
            memory = after
            sent.append(None if vector is None else vector.clone())
            assert vector is None or (vector.shape == (33,) and bool(vector.isfinite().all()))
            if spoil:
                for tensor in (honest, own, model):
                    tensor.fill_(math.nan)
        return sent

    for plain, spoiled in zip(course(False), course(True), strict=True):
        assert (plain is None and spoiled is None) or torch.equal(plain, spoiled)


@pytest.mark.parametrize("attack", REMEMBERING, ids=str)
@pytest.mark.parametrize("honest", [torch.zeros(3, 2), torch.ones(2, 1), torch.full((3, 2), 1e15)])
def test_an_attack_with_memory_is_finite_without_spread_or_step(attack, honest):
    mounted = MountedAttack(attack, attack.needs)
    for round in range(6):
        vector = mounted("w", honest[0], knows(round, honest, model=torch.zeros(honest.shape[1])))
        assert vector is None or bool(vector.isfinite().all())


def test_replay():
    sent = sent_by(Replay(age=2), range(5), own=lambda round: torch.full((3,), float(round)))
    assert [float(vector[0]) for vector in sent] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("attack", "silent"),
    [
        (Silence(), "xxxxxx"),
        (Silence(every=1), "xxxxxx"),
        (Silence(every=3), "x..x.."),
        (Silence(rounds=(1, 4)), ".x..x."),
        (Silence(rounds=()), "......"),
        (Silence(probability=0.0), "......"),
        (Silence(probability=1.0), "xxxxxx"),
    ],
)
def test_silence(attack, silent):
    sent = [attack(ROWS[0], knows(round)) for round in range(6)]
    assert "".join("x" if vector is None else "." for vector in sent) == silent
    assert all(vector is None or torch.equal(vector, ROWS[0]) for vector in sent)


def test_silence_at_random_is_drawn_by_each_for_itself():
    attack = Silence(probability=0.25)
    silent = [attack(ROWS[0], knows(seed=seed)) is None for seed in range(2000)]
    assert sum(silent) / 2000 == pytest.approx(0.25, abs=0.03)
    assert silent == [attack(ROWS[0], knows(seed=seed)) is None for seed in range(2000)]


def test_a_sleeper_attacks_after_honest_rounds_and_in_periods():
    own, bad = ROWS[0], -10 * ROWS[0]

    def course(attack):
        return which(sent_by(attack, range(9)), h=own, a=bad)

    assert course(Sleeper(after=3)) == "hhhaaaaaa"
    assert course(Sleeper(after=3, period=5)) == "hhhaahhha"
    assert course(Sleeper(after=0)) == course(Sleeper(after=0, period=2)) == "aaaaaaaaa"
    assert course(Sleeper(attack=Silence(), after=2)) == "hh-------"


def test_a_sleeper_waits_until_the_server_follows_it():
    """The model moves against (1, 2, 3), and its own vector turns towards that in round 3."""
    towards, away = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 0.0, -1.0])
    sent = sent_by(Sleeper(after=1, trust=0.9), range(6), own=lambda round: away if round < 3 else towards)
    assert which(sent, h=away, a=-10 * towards) == "hhhaaa"


def test_an_attack_inside_follows_honest_rounds_too():
    sent = sent_by(
        Sleeper(attack=Replay(age=4), after=3), range(6), own=lambda r: torch.full((3,), float(r))
    )
    assert [float(vector[0]) for vector in sent] == [0, 1, 2, 0, 0, 1]


def test_a_stored_row_is_one_bad_vector_and_then_silence():
    own, bad = ROWS[0], -10 * ROWS[0]
    assert which(sent_by(StoredRow(), range(5)), h=own, a=bad) == "a----"
    assert which(sent_by(StoredRow(after=2), range(5)), h=own, a=bad) == "hha--"
    assert which(sent_by(StoredRow(again=3), range(8)), h=own, a=bad) == "a--a--a-"
    assert which(sent_by(StoredRow(again=3), [1, 2, 5, 6]), h=own, a=bad) == "a-a-"


def test_stale_vectors_are_pushed_at_once():
    random = torch.Generator()
    assert Stale().delay(4.0, 0, random) == 0.0
    assert Stale(wait=1.5).delay(4.0, 0, random) == 1.5
    assert Sleeper().delay(4.0, 0, random) == 4.0
    assert Sleeper(attack=Stale(wait=1.0)).delay(4.0, 0, random) == 1.0
    sent = sent_by(Stale(attack=Replay(age=1)), range(3), own=lambda r: torch.full((3,), float(r)))
    assert [float(vector[0]) for vector in sent] == [0, 0, 1]


def test_what_pushes_the_vectors_of_another_attack_remembers_as_it_does():
    assert not remembers(Stale(attack=Ipm()))
    assert torch.equal(Stale(attack=Ipm())(ROWS[0], knows()), Ipm()(ROWS[0], knows()))


def test_an_attack_asks_for_what_the_one_inside_asks_for():
    assert (Sleeper().needs, Sleeper(attack=Ipm()).needs) == ("own", "all")
    assert Sleeper(attack=Ipm()).usual == "all"
    assert why_impossible(StoredRow(attack=Alie()), 15, 1) == why_impossible(Alie(), 15, 1) is not None
    nested = Sleeper(attack=StoredRow(attack=Alie(z="optimal")))
    assert nested.needs == "all"
    assert why_impossible(nested, 15, 3, "own") is not None


def test_an_attack_inside_is_written_as_any_other():
    built = ATTACKS.build({"sleeper": {"attack": {"alie": {"z": 1.5}}, "after": 5}}, "byzantine.attack")
    assert built == Sleeper(attack=Alie(z=1.5), after=5)
    assert ATTACKS.build(ATTACKS.spec(built), "") == built
    assert ATTACKS.build({"stale": {"attack": "ipm"}}, "") == Stale(attack=Ipm())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"sleeper": {"attack": "alei"}},
            r"^a\.sleeper\.attack: there is no attack .* Did you mean 'alie'\?",
        ),
        (
            {"sleeper": {"attack": {"alie": {"zed": 1}}}},
            r"^a\.sleeper\.attack\.alie\.zed: there is no such",
        ),
        ({"stale": {"attack": "label_flip"}}, r"^a\.stale: `attack` should be an attack on vectors"),
        ({"sleeper": {"attack": None}}, r"^a\.sleeper\.attack: should be the name of an attack"),
        ({"sleeper": {"after": 5, "period": 5}}, r"`period` should be more than the 5 honest rounds"),
        ({"sleeper": {"trust": 2.0}}, r"`trust` should be a cosine"),
        ({"sleeper": {"after": -1}}, r"`after` should be a number of rounds"),
        ({"stored_row": {"again": 0}}, r"`again` should be at least 1 round"),
        ({"stored_row": {"after": -1}}, r"`after` should be a number of rounds"),
        ({"stale": {"wait": math.inf}}, r"`wait` should be a number of seconds"),
        ({"silence": {"every": 2, "rounds": [1]}}, r"only one of `every`.* Found \['every', 'rounds'\]"),
        ({"silence": {"every": 0}}, r"`every` should be at least 1 round or null"),
        ({"silence": {"probability": 1.5}}, r"`probability` should be from 0 to 1"),
        ({"silence": {"rounds": [-1]}}, r"`rounds` should be rounds from 0"),
        ({"replay": {"age": 0}}, r"`age` should be at least 1 round"),
        ({"xfed": {"recent": 0}}, r"`recent` should be at least 1 round"),
        ({"xfed": {"c": -1.0}}, r"`c` should be a positive"),
        ({"rop": {"pi": 1.5}}, r"`pi` should be from 0 to 1"),
        ({"rop": {"theta": math.inf}}, r"`theta` should be a finite number"),
        ({"mimic": {"warmup": -1}}, r"`warmup` should be a number of rounds"),
        ({"mimic": {"warmup": 2, "target": 0}}, r"`warmup` should be 0 with a `target`"),
        ({"alie": {"z": "best"}}, r"^a\.alie\.z: should be a number or 'optimal' or null"),
        ({"ipm": {"epsilon": "best"}}, r"^a\.ipm\.epsilon: should be a number or 'optimal'"),
        ({"ipm": {"epsilon": 0.0}}, r"`epsilon` should be a positive"),
    ],
)
def test_fields_are_checked(spec, message):
    with pytest.raises(ConfigError, match=message):
        ATTACKS.build(spec, "a")


def test_rop_adds_ones_without_their_part_along_the_reference():
    """Mean (3, -2, 1.5) in the first round; z = 2 root mean square distances of sqrt(35.5 / 3)."""
    mean = torch.tensor([3.0, -2.0, 1.5])
    first, _ = Rop(z=2.0).step(ROWS[0], knows(), None)
    ones = torch.ones(3)
    across = ones - (ones @ mean) / (mean @ mean) * mean
    expected = mean + 2 * math.sqrt(17.5 / 3) * across / across.norm()
    centred = ROWS - ROWS.mean(dim=0)
    assert float(centred.square().sum()) == pytest.approx(8 + 9.5)
    torch.testing.assert_close(first, expected)


def test_rop_is_beside_the_last_aggregate_and_turns():
    """The model moved by (0, 0, -2): the last aggregate is (0, 0, 1), as long as the mean then, 4."""
    rop, rows = Rop(z=1.0, lam=1.0, pi=1.0), torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    earlier = torch.tensor([[4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    _, memory = rop.step(rows[0], knows(0, earlier, model=torch.zeros(3)), None)
    moved = knows(1, rows, model=torch.tensor([0.0, 0.0, -2.0]))
    half = 1 / math.sqrt(2)
    sent, _ = rop.step(rows[0], moved, memory)
    torch.testing.assert_close(sent, torch.tensor([half, half, 4.0]))
    turned, _ = Rop(z=1.0, lam=1.0, theta=180.0).step(rows[0], moved, memory)
    torch.testing.assert_close(turned, torch.tensor([0.0, 0.0, 3.0]))
    located, _ = Rop(z=1.0, lam=1.0, pi=0.0).step(rows[0], moved, memory)
    torch.testing.assert_close(located, torch.tensor([2 + half, half, 0.0]))


def test_rop_has_the_step_of_alie_by_default():
    honest = rows_of(0)
    by_default, _ = Rop().step(honest[0], knows(0, honest, n=25, f=11), None)
    given, _ = Rop(z=1.0676).step(honest[0], knows(0, honest, n=25, f=11), None)
    torch.testing.assert_close(by_default, given, rtol=1e-3, atol=1e-3)


def test_xfed_turns_its_vector_round_by_the_usual_step():
    """Steps of 1, 3 and 2 along the first axis: median 2, deviations 1, 1, 0 with median 1.

    Its vectors have length 5, so s = 5 (1 + 2 * 1 / 2) = 10 with c = 2, along the last step or against its
    own vector (3, 4) / 5.
    """
    models = [torch.tensor([-x, 0.0]) for x in (0.0, 1.0, 4.0, 6.0)]
    own = torch.tensor([3.0, 4.0])
    for against, expected in (("step", [3.0 - 10, 4.0]), ("own", [3 - 6.0, 4 - 8.0])):
        attack = Xfed(c=2.0, against=against)
        memory = attack.start()
        for round, model in enumerate(models):
            sent, memory = attack.step(own, knows(round, own[None], model=model), memory)
            if round == 0:
                assert torch.equal(sent, own), "nothing has moved yet"
        torch.testing.assert_close(sent, torch.tensor(expected))


def test_xfed_remembers_recent_rounds_only():
    attack, memory, own = Xfed(recent=3), Xfed().start(), torch.ones(2)
    for round in range(6):
        _, memory = attack.step(own, knows(round, own[None], model=torch.full((2,), -(2.0**round))), memory)
    assert len(memory.steps) == len(memory.lengths) == 3


def test_mimic_warms_up_to_the_direction_of_most_variance_and_keeps_its_worker():
    """Worker 2 is furthest along the axis on which vectors differ in all rounds but the last."""
    drift = torch.tensor([0.0, 0.0, 0.0, 1.0]).outer(torch.tensor([0.0, 0.0, 50.0]))
    axis = torch.tensor([-1.0, 0.0, 3.0, -2.0]).outer(torch.tensor([1.0, 0.0, 0.0]))
    mounted = MountedAttack(Mimic(warmup=3), "all")
    for round in range(6):
        rows = drift if round > 2 else axis + 0.01 * rows_of(round, 4, 3)
        sent = mounted("w14", rows[0], knows(round, rows))
        assert torch.equal(sent, rows[2])
        assert outermost(rows) == (3 if round > 2 else 2)


def test_mimic_follows_the_iteration_of_the_paper():
    """Against the formula in float64: the mean and the direction are averages over rounds."""
    attack, memory, mu, z = Mimic(warmup=4), None, 0.0, None
    for round in range(4):
        rows, t = rows_of(round, 6, 5), round
        _, memory = attack.step(rows[0], knows(round, rows), memory)
        wide = rows.double()
        mu = t / (1 + t) * mu + wide.mean(dim=0) / (1 + t)
        centred = wide - mu
        if z is None:
            z = torch.linalg.svd(centred).Vh[0]
            z *= torch.sign((centred @ z)[(centred @ z).abs().argmax()])
        else:
            pulled = centred.T @ (centred @ z)
            z = t / (1 + t) * z + pulled / pulled.norm() / (1 + t)
            z /= z.norm()
        torch.testing.assert_close(memory.direction.double(), z, rtol=1e-4, atol=1e-5)
        assert memory.target == f"w{int((wide @ z).argmax()):02}"


def test_mimic_copies_another_worker_while_its_own_is_away():
    attack, rows = Mimic(warmup=1), torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    _, memory = attack.step(rows[0], knows(0, rows, names=("a", "b", "c")), None)
    sent, _ = attack.step(rows[0], knows(1, rows[1:], names=("b", "c")), memory)
    assert torch.equal(sent, rows[1])
    sent, _ = attack.step(rows[0], knows(2, -rows, names=("a", "b", "c")), memory)
    assert torch.equal(sent, -rows[0])


def test_mimic_without_warm_up_remembers_nothing():
    assert not remembers(Mimic())
    assert remembers(Mimic(warmup=1))
    assert SignFlip(scale=10.0) == Sleeper().attack


def test_a_joint_attack_inside_another_is_computed_once():
    honest, model = rows_of(0), torch.zeros(33)
    for attack, shares in (
        (Mimic(), True),
        (Mimic(warmup=2), True),
        (Composite(steps=("gaussian",)), False),
    ):
        outer, found = Stale(attack=attack), {}
        memory = outer.start()
        sent = list[torch.Tensor]()
        for rank in range(3):
            rng = torch.Generator().manual_seed(rank)
            seen = Knowledge(honest, 15, 3, rank=rank, round=0, rng=rng, model=model, found=found)
            seen = replace(seen, names=tuple(map(str, range(12))))
            sent.append(stepped(outer, honest[0], seen, memory)[0])
        assert (sent[0] is sent[1] is sent[2]) == shares
        assert torch.equal(sent[0], sent[1]) == shares
