"""The limit of open files is raised as far as it goes, and otherwise there is a sentence."""

import subprocess
import sys

import pytest

from varangian.protos.network import descriptors

TRIAL = """
import resource, sys
from varangian.protos.network import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[1])))
print(descriptors.why_too_few("the server", 40, data_channel=True))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("hard", "sentence", "soft"),
    [
        (1000, "None", 152),
        (
            64,
            "the server needs up to 152 open files for 40 workers, and this process may have 64. Raise the",
            64,
        ),
    ],
)
def test_a_limit_is_raised_or_told_of(hard, sentence, soft):
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(hard)], capture_output=True, text=True, check=True
    )
    told, limit = done.stdout.splitlines()
    assert told.startswith(sentence)
    assert ("`ulimit -n 152`" in told) == (hard == 64)
    assert int(limit) == soft


def test_a_server_may_need_a_file_for_each_connection_that_it_takes():
    calls = descriptors.BASE + 4 * 10 + 32
    assert descriptors.server_descriptors(10, data_channel=False) == calls
    assert descriptors.server_descriptors(10, data_channel=True) == calls + 4 * 10 + 64
    assert descriptors.most_workers(descriptors.server_descriptors(10, data_channel=True)) == 10
    assert descriptors.most_workers(3) == 0
    assert str(descriptors.connections(10)) in descriptors.describe_limit(10, data_channel=True)
