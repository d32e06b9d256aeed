"""Attacks as a process mounts them: their memory, and rounds that are asked for again."""

import dataclasses
from typing import ClassVar

import pytest
import torch

from varangian.worker.attacks import (
    ATTACKS,
    TOGETHER,
    Alie,
    AttackError,
    Ipm,
    Knowledge,
    MountedAttack,
    SignFlip,
    on_vectors,
)

ROWS = torch.tensor([[1.0, -2.0], [3.0, -2.0], [5.0, -2.0]])


def knows(round=0, honest=ROWS, rank=0, **more):
    more = {"n": 5, "f": 2, "model": torch.zeros(2), **more}
    rng = torch.Generator().manual_seed(rank)
    return Knowledge(honest, rank=rank, round=round, rng=rng, **more)


@pytest.mark.parametrize(
    "attack",
    [attack for name in ATTACKS if on_vectors(attack := ATTACKS.build(name, ""))],
    ids=lambda attack: type(attack).__name__,
)
def test_an_attack_keeps_nothing_of_what_is_written_over(attack):
    """The batched simulation uses the memory of vectors and models again, and so do servers."""
    sent = []
    for reused in (True, False):
        mounted, buffers = MountedAttack(attack, "all"), None
        for round in range(6):
            drawn = torch.randn(11, 8, generator=torch.Generator().manual_seed(round))
            if buffers is None or not reused:
                buffers = drawn.clone()
            buffers.copy_(drawn)
            for rank, name in enumerate("abc"):
                given = knows(round, buffers[:9], rank, n=12, f=3, model=buffers[10])
                vector = mounted(name, buffers[9], given)
                sent.append(None if vector is None else vector.clone().nan_to_num(7))
            assert torch.equal(buffers, drawn)
    half = len(sent) // 2
    for one, other in zip(sent[:half], sent[half:], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@dataclasses.dataclass(frozen=True)
class Summing:
    """Sends the sum of all honest means so far, and is silent in every third round."""

    __module__ = "varangian.test"  # one of ours

    needs: ClassVar[str] = "all"
    joint: ClassVar[bool] = True

    def start(self):
        return torch.zeros(2)

    def step(self, own, knows, memory):
        memory = memory + knows.honest.mean(dim=0)
        return None if knows.round % 3 == 2 else memory, memory


@dataclasses.dataclass(frozen=True)
class Counting:
    """Code of a user that sends how many rounds it remembers, and writes to what it is given."""

    needs: ClassVar[str] = "own"
    fails: tuple[int, ...] = ()
    short: tuple[int, ...] = ()

    def start(self):
        return 0

    def step(self, own, knows, memory):
        if knows.round in self.fails:
            raise KeyError(knows.round)
        if knows.round in self.short:
            return own[:1], memory
        own *= 7
        knows.honest.fill_(7)
        knows.model.fill_(7)
        return torch.full_like(own, memory + 1), memory + 1


def test_a_joint_attack_is_computed_once_a_round(monkeypatch):
    calls, compute = [], Ipm.__call__

    def counted(attack, own, knows):
        calls.append(knows.rank)
        return compute(attack, own, knows)

    monkeypatch.setattr(Ipm, "__call__", counted)
    mounted = MountedAttack(Ipm(), "all")
    sent = [mounted(name, ROWS[0], knows(rank=rank)) for rank, name in enumerate("abc")]
    assert calls == [0]
    assert all(torch.equal(vector, sent[0]) for vector in sent)
    other = mounted("b", ROWS[0], knows(1, 2 * ROWS))
    assert torch.equal(other, 2 * sent[0])
    again = mounted("a", ROWS[0], knows(0))
    assert torch.equal(again, sent[0]), "without memory rounds come in any order"


@dataclasses.dataclass(frozen=True)
class Apart:
    """Code of a user: two attackers send other vectors, and know of each other."""

    needs: ClassVar[str] = "all"
    joint: ClassVar[bool] = True
    many: int = 2

    def __call__(self, own, knows):
        return (knows.honest[0], None, own)[: self.many]


@dataclasses.dataclass(frozen=True)
class Ours(Apart):
    __module__ = "varangian.test"


@pytest.mark.parametrize("attack", [Apart(), Ours()])
def test_attackers_who_act_together_may_send_other_vectors(attack):
    mounted = MountedAttack(attack, "all")
    for _ in range(2):
        assert torch.equal(mounted("a", ROWS[0], knows(rank=0)), ROWS[0])
        assert mounted("b", ROWS[0], knows(rank=1)) is None
    with pytest.raises(AttackError, match=r"return the vectors of 2 attackers\. Found a tuple of 3"):
        MountedAttack(Apart(many=3), "all")("a", ROWS[0], knows())


def test_an_attacker_who_sees_nobody_else_sends_its_own():
    mounted = MountedAttack(Ipm(epsilon=2.0), "all")
    for name, own in zip("ab", ROWS, strict=False):
        assert torch.equal(mounted(name, own, knows(honest=own[None]), alone=True), -2 * own)


def test_each_attacker_sends_its_own_unless_the_attack_is_joint():
    mounted = MountedAttack(SignFlip(scale=1.0), "own")
    for name, own in zip("ab", ROWS, strict=False):
        assert torch.equal(mounted(name, own, knows(honest=own[None])), -own)
    assert not MountedAttack(Alie(), "own").shared, "each sees another vector"


def test_attackers_share_a_memory_that_steps_once_a_round():
    mounted = MountedAttack(Summing(), "all")
    for round in range(5):
        expected = None if round == 2 else (round + 1) * ROWS.mean(dim=0)
        for name in ("a", "b", "a"):
            found = mounted(name, ROWS[0], knows(round))
            assert found is None if expected is None else torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"not go back\. Found round 3 of b after 4"):
        mounted("b", ROWS[0], knows(3))


def test_what_one_attacker_alone_sees_is_not_remembered_by_all():
    mounted = MountedAttack(Summing(), "all")
    mounted("a", ROWS[0], knows(0))
    for name, own in zip("ab", ROWS, strict=False):
        alone = mounted(name, own, knows(1, own[None]), alone=True)
        assert torch.equal(alone, ROWS.mean(dim=0) + own)
    assert torch.equal(mounted("b", ROWS[0], knows(3)), 2 * ROWS.mean(dim=0))


def test_what_all_attackers_know_is_put_back_and_forgotten():
    mounted, mean = MountedAttack(Summing(), "all"), ROWS.mean(dim=0)
    for round in range(2):
        mounted("a", ROWS[0], knows(round))
    kept = mounted.state(TOGETHER)
    assert torch.equal(mounted("b", ROWS[0], knows(3)), 3 * mean)
    mounted.restore(TOGETHER, kept)
    assert mounted.round(TOGETHER) == 1
    assert torch.equal(mounted("b", ROWS[0], knows(1)), 2 * mean)
    assert torch.equal(mounted("b", ROWS[0], knows(3)), 3 * mean)
    mounted.restore(TOGETHER, None)
    assert torch.equal(mounted("a", ROWS[0], knows(0)), mean)


def test_an_attacker_has_a_memory_of_its_own_and_code_of_the_user_writes_to_copies():
    mounted, own = MountedAttack(Counting(), "own"), ROWS[0].clone()
    asked = [("a", 0), ("a", 0), ("b", 1), ("a", 3)]
    found = [mounted(name, own, knows(round, own[None])) for name, round in asked]
    assert [vector.tolist() for vector in found] == [[1, 1], [1, 1], [1, 1], [2, 2]]
    assert torch.equal(own, ROWS[0])
    mounted.restore("a", None)
    assert mounted("a", own, knows(0, own[None])).tolist() == [1, 1]
    assert mounted("b", own, knows(2, own[None])).tolist() == [2, 2]


def test_code_of_the_user_that_fails_is_one_sentence_and_steps_nothing():
    mounted = MountedAttack(Counting(fails=(1,), short=(2,)), "own")
    own = ROWS[0].clone()
    assert mounted("a", own, knows(0, own[None])).tolist() == [1, 1]
    with pytest.raises(AttackError, match=r"Counting' failed: KeyError: 1 \(.*line"):
        mounted("a", own, knows(1, own[None]))
    with pytest.raises(AttackError, match=r"Counting' should return a tensor of shape \[2\]. Found sha"):
        mounted("a", own, knows(2, own[None]))
    assert mounted("a", own, knows(3, own[None])).tolist() == [2, 2]
