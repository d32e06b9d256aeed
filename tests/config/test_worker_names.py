"""Workers by name in the place of their number."""

import pytest

from varangian.config import load
from varangian.config.load import loads
from varangian.launch import run
from varangian.registry import ConfigError

SMALL = ["f=1", "aggregator=median", "model=softmax", "data={synthetic: {train: 60, test: 20}}"]


def test_a_list_of_names_is_their_number_as_well():
    config = load(None, ["workers=[zoe, bob, alice, max]", "byzantine.count=1", *SMALL], whole=False)
    assert (config.workers, config.worker_names) == (4, ("alice", "bob", "max", "zoe"))
    assert (config.honest_names, config.byzantine_names) == (("alice", "bob", "max"), ("zoe",))
    assert loads(config.resolved(), whole=False) == config


def test_a_number_gives_the_names_it_always_gave():
    assert load(None, ["workers=3", "f=0", "aggregator=mean"]).worker_names == ("w00", "w01", "w02")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["workers=[alice, alice]"], "workers: should have each name once. Found 'alice'"),
        (["workers=[alice, 7]"], "Quote it: '7'"),
        (["workers=[alice, 'b c']"], "workers: should be letters, digits"),
        (["workers=[alice, '../x']"], "workers: should be letters, digits"),
        (["workers=[]"], "workers: should be 1 to 10000 names"),
        (["names=[alice, bob]", "workers=3"], "names: should be as many as `workers` says, 3. Found 2"),
        (["workers=alice"], "workers: should be an integer"),
    ],
)
def test_what_cannot_be_a_name_is_refused(settings, words):
    with pytest.raises(ConfigError) as caught:
        load(None, [*settings, "f=0", "aggregator=mean"])
    assert words in str(caught.value)


def test_records_have_the_names(tmp_path):
    records = []
    settings = ["workers=[bob, alice, carol]", "rounds=1", "backend=simulate", f"output={tmp_path}", *SMALL]
    settings += ["f=0", "aggregator=mean"]
    run(load(None, settings), observe=records.append)
    assert set(records[0].weights) == {"alice", "bob", "carol"}
