"""Simulated workers that come and go, and those who are late."""

import pytest

from varangian.config.build import task
from varangian.registry import ConfigError

HALVES = ["availability={alternating: {period: 2}}", "workers=6", "server.quorum=3", "server.deadline=5"]


DEADLINE_ONLY = ["server.wait_factor=null", "server.wait_rounds=null"]


def wait(record):
    return record.seconds["wait"]


def test_a_round_closes_at_its_deadline_without_those_who_are_away(carried_out):
    result, records, notes = carried_out(*HALVES, "rounds=4")
    assert result.outcome == "finished"
    halves = [("w03", "w04", "w05"), ("w00", "w01", "w02")]
    assert [record.missing for record in records] == halves * 2
    assert [wait(record) for record in records] == [5.0] * 4, "of virtual time"
    assert notes == []


def test_a_delay_below_the_deadline_costs_time_and_changes_nothing(carried_out):
    delays = "delays={lognormal: {median: 1, most: 4}}"
    slow, records, _ = carried_out(delays, "server.deadline=5")
    swift, others, _ = carried_out()
    assert slow.digest == swift.digest
    assert all(record.missing == () and 0 < wait(record) <= 4 for record in records)
    assert [wait(record) for record in others] == [0.0] * 5


def test_a_deadline_that_sets_itself_follows_the_delays_and_repeats_itself(carried_out):
    slow = "delays={steps: {step: 2, factor: 40, workers: [0]}}"
    settings = [slow, "rounds=8", "server.deadline=auto", *DEADLINE_ONLY]
    _, records, _ = carried_out(*settings, "server.deadline_floor=1", "server.deadline_ceiling=100")
    assert [record.deadline for record in records] == [*[100.0] * 3, *[pytest.approx(2.6)] * 5]
    assert [record.missing for record in records] == [*[()] * 3, *[("w00",)] * 5]
    first, _, _ = carried_out("delays={lognormal: {median: 8}}", "rounds=8", "server.deadline=auto")
    again, _, _ = carried_out("delays={lognormal: {median: 8}}", "rounds=8", "server.deadline=auto")
    assert first.digest == again.digest


def test_who_is_late_for_a_round_is_missing_and_comes_back_for_a_later_one(carried_out):
    settings = ["delays={pareto: {least: 3, alpha: 1, most: 9, workers: [0]}}", "rounds=12", *DEADLINE_ONLY]
    _, records, _ = carried_out(*settings, "server.deadline=5")
    assert {record.missing for record in records} == {(), ("w00",)}
    assert all((wait(record) == pytest.approx(5)) == (record.missing != ()) for record in records)
    _, records, _ = carried_out(*settings, "server.deadline=10")
    assert {record.missing for record in records} == {()}


def missed(table, rounds, deadline):
    """By hand: in which rounds w00 is missing, when nobody else is ever late."""
    opened = free = 0.0
    for round in range(rounds):
        closes, begins = opened + deadline, max(opened, free)
        if begins < closes:
            free = begins + table.delay("w00", round)
        if closes <= free:
            yield round
        opened = min(closes, free)


def test_who_is_busy_with_one_round_does_not_begin_another(carried_out, small):
    pareto = "delays={pareto: {least: 1, alpha: 0.7, most: 40, workers: [0]}}"
    settings = [pareto, "rounds=40", *DEADLINE_ONLY]
    table = task(small(*settings)).timetable
    _, records, _ = carried_out(*settings, "server.deadline=5")
    expected = [*missed(table, 40, 5.0)]
    assert [record.round for record in records if record.missing] == expected
    # What it began in the middle of a round it sometimes ends in that round.
    assert expected != [round for round in range(40) if table.delay("w00", round) >= 5.0]
    assert 5 < len(expected) < 35


def test_a_worker_that_is_late_for_every_round_sets_the_pace_of_a_few_only(carried_out):
    slow = "delays={steps: {step: 1, factor: 40, workers: [0]}}"
    _, records, _ = carried_out(slow, "rounds=30")
    assert [wait(record) for record in records[:5]] == pytest.approx([39, 10, 10, 10, 1])
    assert [record.waited_for for record in records[:5]] == [(), *[("w00",)] * 3, ()]
    assert records[4].not_waited_for == {"w00": "missed the last 3 rounds"}
    assert records[4].because is not None
    assert "only w00 missed the last 3 rounds" in records[4].because
    _, records, _ = carried_out(slow, "rounds=3", *DEADLINE_ONLY)
    assert [wait(record) for record in records] == pytest.approx([39, 40, 40])


@pytest.mark.parametrize(
    "way",
    ["fedavg", "async", *(pytest.param(way, marks=pytest.mark.exhaustive) for way in ("fedlaavg", "asap"))],
)
def test_so_it_is_with_the_other_ways(carried_out, way):
    slow = "delays={steps: {step: 1, factor: 1000, workers: [0]}}"
    settings = [f"participation={way}", slow, "rounds=60", "workers=6", "f=1", "aggregator=trimmed_mean"]
    settings += ["participation.asap.graph=complete"] if way == "asap" else []
    _, now, _ = carried_out(*settings)
    _, before, _ = carried_out(*settings, *DEADLINE_ONLY)
    assert sum(map(wait, now)) <= sum(map(wait, before))
    assert sum("w00" in record.waited_for for record in now) <= 5


def test_a_shortfall_that_is_skipped_lasts_until_the_deadline(carried_out):
    settings = ["availability={diurnal: {trace: [1, 0]}}", "server.shortfall=skip", "server.deadline=2"]
    _, records, _ = carried_out(*settings, "workers=5", "rounds=6", "seed=3")
    assert any(record.skipped for record in records)
    assert all(wait(record) == 2.0 for record in records if record.missing)


def test_a_run_that_can_only_wait_says_so_and_ends(carried_out, monkeypatch):
    """What the check before a run would have found, had it looked so far ahead."""
    settings = ["availability={random: {chance: 0.6}}", "server.quorum=3", "seed=3"]
    with pytest.raises(ConfigError, match="too few for its quorum"):
        carried_out(*settings)
    monkeypatch.setattr("varangian.config.checks.availability.MAX_LOOKUPS", 1)
    result, records, _ = carried_out(*settings)
    assert (result.outcome, result.rounds) == ("failed", len(records))
    assert f"round {len(records)} would wait for ever" in result.reason


@pytest.mark.parametrize(
    "settings",
    [
        [*HALVES, "byzantine.attack=ipm", "byzantine.count=1"],
        ["availability={random: {chance: 0.7}}", "server.shortfall=skip", "rounds=12"],
        ["delays={pareto: {least: 1, most: 9}}", "server.deadline=4", "server.shortfall=skip"],
    ],
)
def test_the_same_seed_gives_the_same_run(carried_out, settings):
    (one, first, _), (two, second, _) = carried_out(*settings), carried_out(*settings)
    assert one.digest == two.digest
    assert [(r.missing, wait(r)) for r in first] == [(r.missing, wait(r)) for r in second]
