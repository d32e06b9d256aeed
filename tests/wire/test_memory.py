"""What a server and its workers leave behind: nothing that has to wait for the garbage collector."""

import weakref

import pytest
from tests.collecting import ended, remembered, uncollected, vectors, without
from tests.wire.kit import Run, all_worked, gradient

from varangian.aggregators import Median
from varangian.protos.layout import Layout
from varangian.server.limits.limits import Limits

LAYOUT = Layout((("weight", (40, 30)), ("bias", (3,))))
KINDS = {
    "rows": dict,
    "window": lambda: {"window": True, "rule": Median()},
    "streams": lambda: {"limits": Limits(idle=20.0, status=0.0, grace=20.0, inline=0)},
}
CASES = [
    pytest.param(kind, way, id=f"{kind}-{name}", marks=() if name in quick else pytest.mark.exhaustive)
    for kind, quick in {"rows": ("lane",), "window": ("chunks",), "streams": ()}.items()
    for name, way in {"lane": 0, "chunks": None}.items()
]


@pytest.mark.whole
@pytest.mark.parametrize(("kind", "way"), CASES)
async def test_vectors_are_freed_at_the_end_of_a_run(kind, way, monkeypatch):
    monkeypatch.setattr(Run, "data_port", way)
    pushed = []

    async def compute(name, round, parameters):
        vector = await gradient(name, round, parameters)
        pushed.append(weakref.ref(vector))
        return vector

    async def whole_run():
        run = Run(layout=LAYOUT, **KINDS[kind]())
        async with run.served() as address:
            assert set(await all_worked(run, address, compute)) == {"all 3 rounds are done"}
        return remembered([run, run.coordinator, run.learner])

    with uncollected():
        before = remembered(vectors(LAYOUT.numel))
        async with ended():
            left = await whole_run()
        assert [part() for part in left] == [None] * 3
        assert len(pushed) == 15
        assert [vector() for vector in pushed if vector() is not None] == []
        assert without(vectors(LAYOUT.numel), before) == []
