"""Runs of a program that has set another default type, device or mode of torch."""

from contextlib import contextmanager

import pytest
import torch
from tests.serving.own import net

import varangian


@contextmanager
def default_type(kind):
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "float64": lambda: default_type(torch.float64),
    "bfloat16": lambda: default_type(torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
}
"""What a program may have set around its calls; `meta` stands for a GPU, which has another memory, too."""


def trained(tmp_path, settings):
    """Two rounds of a server and three workers, all made by this thread; the digest of the parameters."""
    module, modules = net(), [net() for _ in range(3)]

    def go():
        server = varangian.Server(
            module, workers=3, f=1, rounds=2, aggregator="nnm+median", output=str(tmp_path), **settings
        )
        with server.start() as running:
            workers = [
                varangian.connect(running.address, own, token=running.token(name), momentum=0.5)
                for own, name in zip(modules, server.config.worker_names, strict=True)
            ]
            going_on = [worker.pull() for worker in workers]
            while all(going_on):
                vectors = [(1 + place) * worker.parameters for place, worker in enumerate(workers)]
                pushes = [one.push_async(vector) for one, vector in zip(workers, vectors, strict=True)]
                accepted = [push.result().accepted for push in pushes]
                assert all(accepted)
                going_on = [worker.pull() for worker in workers]
            for worker in workers:
                worker.close()
            return running.result(60).digest

    return go


OWN = {"optimizer": lambda ps: torch.optim.Adam(ps, 1e-3)}
INT8 = {"wire__dtype": "int8"}


@pytest.mark.parametrize(
    ("named", "settings"),
    [("float64", OWN), ("bfloat16", INT8), ("device", OWN), ("inference", INT8)],
    ids=DEFAULTS,
)
def test_a_server_and_its_workers_compute_the_same(tmp_path, settings, named):
    plain = trained(tmp_path, settings)()
    go = trained(tmp_path, settings)
    with DEFAULTS[named]():
        assert go() == plain


@pytest.mark.parametrize("named", ["device", "inference"])
def test_a_simulation_computes_the_same(tmp_path, named):
    settings = {"backend": "simulate", "workers": 7, "f": 2, "rounds": 2, "data": "synthetic"}
    settings |= {"byzantine": {"count": 2, "attack": "alie"}, "output": str(tmp_path)}
    plain = varangian.run(settings).digest
    with DEFAULTS[named]():
        assert varangian.run(settings).digest == plain


def test_models_by_name_have_float32(tmp_path):
    settings = {"backend": "simulate", "workers": 3, "f": 0, "aggregator": "mean", "rounds": 2}
    with default_type(torch.float64):
        assert varangian.run(settings, data="synthetic", output=str(tmp_path)).outcome == "finished"
