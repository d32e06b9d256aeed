"""Pulls of a run with fragments: a worker that holds the parameters before gets what has changed."""

import pytest
import torch
from tests.client.rig import model, serving
from torch import nn

from varangian.server.identity.tls import Security
from varangian.server.observability.traffic import Traffic

LARGE = (60, 200, 90)
"""More numbers than travel in one message."""


def large():
    torch.manual_seed(0)
    first, second, third = LARGE
    return nn.Sequential(nn.Linear(first, second), nn.Tanh(), nn.Linear(second, third))


def answer(worker):
    generator = torch.Generator().manual_seed(worker.round)
    return worker.push(torch.randn(worker.layout.numel, generator=generator))


@pytest.mark.parametrize(
    ("make", "fragments", "options", "channel"),
    [
        (model, 2, {}, "grpc"),
        (model, 4, {}, "grpc"),
        (large, 2, {"data_port": None}, "grpc"),
        (large, 4, {"data_port": None}, "grpc"),
        (large, 2, {}, "data"),
        (large, 4, {}, "data"),
        (large, None, {}, "data"),
    ],
)
def test_a_pull_has_the_fragment_that_has_moved(make, fragments, options, channel):
    module, traffic = make(), Traffic()
    options = {**options, "rounds": 7, "traffic": traffic, "lr": 0.5, "fragments": fragments}
    with serving(module, **options) as rig, rig.connect(module, momentum=0.0) as worker:
        sizes, before = [], 0
        for round in range(7):
            assert worker.pull()
            assert worker.round == round
            assert torch.equal(worker.parameters, rig.learner.parameters)
            sizes.append(traffic.sent[channel] - before)
            before = traffic.sent[channel]
            assert answer(worker)
        assert not worker.pull()
    whole = [4 * worker.layout.numel] * 7
    if fragments is not None:
        whole = [whole[0], *(4 * rig.split.numels[rig.split.of(round)] for round in range(6))]
    around = 2048 if make is large and channel == "grpc" else 0  # what messages have beside their chunks
    assert all(sent <= size <= sent + around for size, sent in zip(sizes, whole, strict=True))


@pytest.mark.parametrize("fragments", [2, 4])
def test_over_tls_a_fragment_travels_encrypted_beside_grpc(bundles, fragments):
    module, traffic, ours = large(), Traffic(), bundles / "ours"
    options = {"rounds": 4, "traffic": traffic, "fragments": fragments}
    with (
        serving(module, security=Security(ours / "server"), **options) as rig,
        rig.connect(module, certs=ours / "w00", momentum=0.0) as worker,
    ):
        sizes, before = [], 0
        while worker.pull():
            assert torch.equal(worker.parameters, rig.learner.parameters)
            sizes.append(traffic.sent["data"] - before)
            before = traffic.sent["data"]
            assert answer(worker)
        moved = [4 * rig.split.numels[rig.split.of(round)] for round in range(3)]
        assert sizes == [4 * worker.layout.numel, *moved]


def test_who_has_missed_rounds_gets_all_fragments_of_them_and_who_is_too_late_everything():
    module, traffic = model(), Traffic()
    options = {"rounds": 9, "traffic": traffic, "fragments": 3, "quorum": 1, "deadline": 0.05}
    with (
        serving(module, "w00", "w01", **options) as rig,
        rig.connect(module, momentum=0.0) as steady,
        rig.connect(model(), "w01", momentum=0.0) as late,
    ):
        assert late.pull()
        assert steady.pull()
        numels = rig.split.numels
        for rounds, payload in ((2, numels[0] + numels[1]), (3, sum(numels))):
            for _ in range(rounds):
                assert answer(steady)
                assert steady.pull()
            before, held = traffic.sent["grpc"], late.round
            assert late.pull()
            assert late.round - held == rounds
            assert torch.equal(late.parameters, rig.learner.parameters)
            assert traffic.sent["grpc"] - before == 4 * payload


def test_parameters_that_were_written_to_are_noticed_and_pulled_as_a_whole():
    module, traffic = model(), Traffic()
    with (
        serving(module, rounds=4, traffic=traffic, fragments=2) as rig,
        rig.connect(module, momentum=0.0) as worker,
    ):
        assert worker.pull()
        assert answer(worker)
        worker.parameters.add_(1)
        before = traffic.sent["grpc"]
        assert worker.pull()
        assert torch.equal(worker.parameters, rig.learner.parameters)
        assert traffic.sent["grpc"] - before == 4 * (rig.split.numels[0] + worker.layout.numel)
