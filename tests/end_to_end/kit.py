"""Commands as processes of their own, and what they say."""

import os
import re
import threading
import time

from tests.extent import patience

PATIENCE = patience(60)
ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
SMALL = ["data=synthetic", "model=softmax", "workers=5", "f=1", "rounds=5", "worker.batch_size=8"]


class Served:
    """A `varangian server` that runs, and all that it says on its standard error."""

    def __init__(self, process):
        self.process, self.lines = process, []
        self._reader = threading.Thread(target=lambda: self.lines.extend(process.stderr))
        self._reader.start()

    def address(self):
        """The address at which it serves, as soon as it does."""
        assert eventually(lambda: ADDRESS.search(self.said())), self.said()
        return ADDRESS.search(self.said())[0]

    def said(self):
        return "".join([*self.lines])

    def all_said(self):
        """All that it has said, once it has ended."""
        self._reader.join()
        return self.said()


def session_ends(leader):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def eventually(holds):
    until = time.monotonic() + PATIENCE
    while not (held := holds()) and time.monotonic() < until:
        time.sleep(0.05)
    return held
