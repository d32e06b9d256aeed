"""States of a worker on its disk, and the one to which it goes back with its server."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from varangian.protos.contract import Terms
from varangian.state_file import StateFileError
from varangian.worker.checkpoints.slots import ROOM, Label, Slot, slots_of
from varangian.worker.checkpoints.store import SPARE, PartStore, borders, has_state, keep_states

RUN = "run-1"
TERMS = Terms(every=5, keep=1)
LABEL = Label(RUN, 0, 3, 1)


def tree(round):
    return {"round": round, "vector": torch.full((3,), float(round)), "rest": [None, 1.5, b"x"]}


def opened(folder, terms=TERMS, round=0, **options):
    """The store as a process that starts finds it, and what it goes back to."""
    store = PartStore(folder, **options)
    return store, store.rewind(RUN, terms, round)


def filled(folder, rounds, terms=TERMS):
    store, _ = opened(folder, terms)
    for round in rounds:
        store.put(round, tree(round))
    return store


def at(folder, terms=TERMS, round=0):
    """The round of the state to which a new process goes back; None: there is none."""
    _, found = opened(folder, terms, round)
    if found is None:
        return None
    assert found.tree["round"] == found.label.round
    assert torch.equal(found.tree["vector"], tree(found.label.round)["vector"])
    return found.label.round


def test_borders_are_multiples_and_where_the_server_was_resumed():
    assert borders(5, 0, 12, 0) == (5, 10)
    assert borders(5, 5, 10, 7) == (7, 10)
    assert borders(5, 6, 9, 6) == ()
    assert borders(0, 0, 100, 33) == (33,)
    assert borders(5, 4, 5, 5) == (5,)


@given(every=st.integers(0, 7), after=st.integers(0, 40), more=st.integers(0, 40), at=st.integers(0, 80))
def test_borders_are_all_and_only_those(every, after, more, at):
    upto = after + more
    wanted = [c for c in range(after + 1, upto + 1) if c == at or (every and c % every == 0)]
    assert list(borders(every, after, upto, at)) == wanted


def test_a_worker_alone_goes_on_from_its_newest_state(tmp_path):
    filled(tmp_path, range(8))
    assert at(tmp_path, round=7) == 7
    assert at(tmp_path, round=9) == 7


def test_two_slots_do_where_nothing_is_to_be_kept(tmp_path):
    filled(tmp_path, range(20), Terms())
    assert len(slots_of(tmp_path)) == 2


def test_there_are_never_more_slots_than_borders_and_two(tmp_path):
    filled(tmp_path, range(200), Terms(every=1, keep=3))
    assert len(slots_of(tmp_path)) <= 3 + SPARE + 2


def test_files_are_for_their_owner_alone(tmp_path):
    filled(tmp_path / "w00", [0])
    assert (tmp_path / "w00").stat().st_mode & 0o777 == 0o700
    assert slots_of(tmp_path / "w00")[0].path.stat().st_mode & 0o777 == 0o600


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), every=st.integers(1, 4), keep=st.integers(1, 3))
def test_the_state_of_each_border_that_a_server_may_go_back_to_is_there(tmp_path, data, every, keep):
    """Any rounds, some missed; any number of times back to a border, as another process or the same."""
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    folder, terms, here, computed = tmp_path / "store", Terms(every=every, keep=keep), 0, []
    least = 0
    store, _ = opened(folder, terms)
    for _ in range(data.draw(st.integers(1, 4))):
        for missed in data.draw(st.lists(st.integers(0, 3), max_size=8)):
            here += missed
            computed.append(here)
            store.put(here, tree(here))
            here += 1
        last = computed[-1] if computed else 0
        # What it has deleted once is not there when it has gone back.
        least = max(least, last - last % every - (keep + SPARE - 1) * every)
        possible = {terms.resumed_at, *(c for c in range(0, last + 1, every) if c >= least)}
        to = data.draw(st.sampled_from(sorted(possible)))
        terms = replace(terms, epoch=terms.epoch + 1, resumed_at=to)
        if data.draw(st.booleans()):
            store = PartStore(folder)
        found = store.rewind(RUN, terms, to)
        before = max((round for round in computed if round < to), default=None)
        if found is None:
            assert before is None, "a state that was there is gone"
        else:
            assert found.tree["round"] == found.label.round in (before, to)
        computed = [round for round in computed if round < to]
        if found is not None and found.label.round == to:
            computed.append(to)
        here = to


def test_a_state_of_an_earlier_start_is_not_that_of_a_later_round(tmp_path):
    """The server went back to round 5 and on to 9 while this worker was away, which had computed 7."""
    filled(tmp_path, range(8))
    assert at(tmp_path, replace(TERMS, epoch=1, resumed_at=5), round=9) == 4


def test_no_state_is_taken_for_that_of_a_round_that_was_not_its_next(tmp_path):
    filled(tmp_path, range(20))
    assert at(tmp_path, replace(TERMS, epoch=1, resumed_at=13)) is None
    assert at(tmp_path, replace(TERMS, epoch=1, resumed_at=13), round=14) is None, "not later either"


def test_what_is_written_half_is_not_there(tmp_path):
    store = filled(tmp_path, range(4))
    newest = max(slots_of(tmp_path), key=lambda slot: slot.label().round)
    older = next(slot for slot in slots_of(tmp_path) if slot.path != newest.path)
    with open(older.path, "r+b") as stream:  # a kill in the middle of round 4: its label is still to come
        stream.seek(ROOM)
        stream.write(b"\0" * 100)
    assert at(tmp_path, round=4) == 3
    store.put(4, tree(4))
    assert at(tmp_path, round=4) == 4


def test_a_damaged_state_is_not_used(tmp_path):
    filled(tmp_path, range(4))
    for slot in slots_of(tmp_path):
        content = bytearray(slot.path.read_bytes())
        content[-1] ^= 1
        slot.path.write_bytes(content)
    assert at(tmp_path, round=4) is None


def test_a_state_of_another_run_is_not_used(tmp_path):
    filled(tmp_path, range(4))
    assert PartStore(tmp_path).rewind("run-2", TERMS, 4) is None


def test_a_branch_begins_with_the_state_of_its_parent(tmp_path):
    filled(tmp_path / "run-1" / "w00", range(12))
    store, terms = PartStore(tmp_path / "run-2" / "w00"), replace(TERMS, parent=RUN, resumed_at=10)
    found = store.rewind("run-2", terms, 10, slots_of(tmp_path / "run-1" / "w00"))
    assert found.tree["round"] in (9, 10)
    again = PartStore(tmp_path / "run-2" / "w00").rewind("run-2", terms, 10)
    assert again.tree["round"] == found.tree["round"]
    assert at(tmp_path / "run-1" / "w00", round=12) == 11, "that of the parent stays"


def test_where_a_repetition_changes_something_the_state_before_it_is_used(tmp_path):
    filled(tmp_path / "line@w00", range(8))
    store = PartStore(tmp_path / "line@w00")
    assert store.rewind(RUN, TERMS, 7).label.round == 6


def test_a_confirmation_stays_with_its_state(tmp_path):
    store = filled(tmp_path, range(3))
    store.confirm(2)
    _, found = opened(tmp_path, round=3)
    assert found.label.confirmed == 2
    store.put(3, tree(3))
    _, found = opened(tmp_path, round=3)
    assert found.label.confirmed is None


def test_after_a_state_that_could_not_be_kept_the_one_before_is_not_taken_for_it(tmp_path):
    filled(tmp_path, range(3)).end(3)
    assert at(tmp_path, round=4) is None
    filled(tmp_path, range(3)).end(3)
    assert at(tmp_path, round=3) == 2


def test_kept_states_are_synced(tmp_path):
    synced = []
    store, _ = opened(tmp_path, sync=synced.append)
    for round in range(11):
        store.put(round, tree(round))
    assert len(synced) == 2
    assert all(isinstance(path, Path) and path.parent == tmp_path for path in synced)


def test_of_a_run_that_is_over_the_newest_state_and_those_of_its_checkpoints_are_left(tmp_path):
    filled(tmp_path, range(20), replace(TERMS, keep=3))
    assert [has_state(tmp_path, RUN, round) for round in (3, 5, 10, 20)] == [False, True, True, True]
    keep_states(tmp_path, RUN, [10, 20])
    assert len(slots_of(tmp_path)) == 2
    assert [has_state(tmp_path, RUN, round) for round in (5, 10, 20)] == [False, True, True]
    assert not has_state(tmp_path, "another", 20)
    assert at(tmp_path, replace(TERMS, epoch=1, resumed_at=20), round=20) == 19
    keep_states(tmp_path, RUN, [])
    assert len(slots_of(tmp_path)) == 1
    keep_states(tmp_path / "none", RUN, [10])


def test_a_store_keeps_the_states_of_the_last_checkpoints(tmp_path):
    filled(tmp_path, range(20), replace(TERMS, keep=2)).tidy()
    assert [has_state(tmp_path, RUN, round) for round in (10, 15, 20)] == [False, True, True]
    assert len(slots_of(tmp_path)) == 2


@pytest.mark.parametrize("place", [0, 40, ROOM - 1])
def test_a_changed_label_is_none(tmp_path, place):
    slot = Slot(tmp_path / "slot-0")
    slot.write(LABEL, tree(3))
    content = bytearray(slot.path.read_bytes())
    content[place] ^= 1
    slot.path.write_bytes(content)
    assert slot.label() is None


def test_a_label_of_another_state_is_noticed(tmp_path):
    slot = Slot(tmp_path / "slot-0")
    label = slot.write(LABEL, tree(3))
    slot.relabel(replace(label, order=2))
    with pytest.raises(StateFileError, match="its label is that of another state"):
        slot.read(slot.label())


@pytest.mark.parametrize("size", [0, 10, ROOM, ROOM + 5])
def test_a_short_file_is_no_state(tmp_path, size):
    slot = Slot(tmp_path / "slot-0")
    label = slot.write(LABEL, tree(3))
    with open(slot.path, "r+b") as stream:
        stream.truncate(size)
    if (found := slot.label()) is not None:
        assert found == label
        with pytest.raises(StateFileError):
            slot.read(found)
