"""The call that stays open: what ends it for good, and what does not."""

import asyncio
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest

from varangian.worker.transport import attendance
from varangian.worker.transport.attendance import Attendance


class Call:
    def __init__(self, status, code):
        self._error = status and grpc.aio.AioRpcError(
            status, grpc.aio.Metadata(), grpc.aio.Metadata(*([("varangian-code", code)] if code else []))
        )

    async def read(self):
        if self._error is not None:
            raise self._error

    def cancel(self):
        pass


@pytest.mark.parametrize(
    ("status", "code", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, None, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAMS", 2),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE", 2),
        (grpc.StatusCode.PERMISSION_DENIED, "SESSION_LOST", 1),
        (grpc.StatusCode.FAILED_PRECONDITION, "NOT_JOINED", 1),
        (grpc.StatusCode.UNIMPLEMENTED, None, 1),
    ],
)
def test_a_worker_attends_again_after_whatever_may_pass(monkeypatch, status, code, calls):
    monkeypatch.setattr(attendance, "AGAIN", 0)
    monkeypatch.setattr(attendance, "LATER", 0)
    answers = [Call(status, code), Call(None, None)]  # the second is ended by the server in order

    async def story():
        connection = SimpleNamespace(calls=SimpleNamespace(attend=lambda request, metadata: answers.pop(0)))
        present = Attendance(connection, ())
        present.begin("run")
        await asyncio.wait({present._task})
        assert 2 - len(answers) == calls

    asyncio.run(story())
