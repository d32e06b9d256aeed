"""A server of a program over real sockets, with workers in a thread."""

import pytest
from tests.extent import patience
from tests.serving.own import net, workers

import varangian


@pytest.fixture
def served(tmp_path):
    """Serve a small module to workers until its run is over."""

    def serve(module=None, vector=None, start=None, layout=None, **settings):
        module = net() if module is None else module
        known = {
            "workers": 3,
            "f": 1,
            "rounds": 4,
            "aggregator": "median",
            "output": str(tmp_path / "runs"),
        }
        server = varangian.Server(module, **{**known, **settings})
        notes = []
        with server.start(note=notes.append, **(start or {})) as running:
            proofs = {name: running.token(name) for name in server.config.worker_names}
            more = {"layout": layout} | ({} if vector is None else {"vector": vector})
            with workers(running.address, proofs, module, **more) as (seen, reasons):
                result = running.result(patience(60))
        return result, module, seen, reasons, notes

    return serve
