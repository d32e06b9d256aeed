"""The benchmarks of the wire measure what has arrived, and nothing else. No test here looks at a time."""

import itertools
import json
import multiprocessing
import os

import pytest

from varangian.bench import small
from varangian.bench.wire import measure
from varangian.bench.wire.ways import catalogue, ours, processes
from varangian.bench.wire.ways.base import Job, digests
from varangian.bench.wire.ways.catalogue import WAYS
from varangian.bench.wire.ways.processes import BrokenWay, Pair
from varangian.bench.wire.ways.usage import processor_time

SMALL = Job(2, 300_001)
"""More than a message, no round number, and an odd one."""


@pytest.fixture(scope="module")
def prepared():
    """Processes that begin with torch and gRPC loaded: most of the time to start one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([ours.__name__])
    return context


@pytest.fixture
def quickly(prepared, monkeypatch):
    monkeypatch.setattr(processes, "START", prepared)


@pytest.fixture
def pair(quickly):
    pairs = []

    def started(target, job=SMALL):
        pairs.append(Pair(target, job))
        pairs[-1].connect()
        pairs[-1].begin()
        return pairs[-1]

    yield started
    for pair in pairs:
        pair.close()


def test_vectors_are_all_different_and_never_change():
    first, second = SMALL.vectors(), SMALL.vectors()
    assert digests(first) == digests(second)
    assert len(set(digests(first))) == 2
    assert all((vector >= 0.5).all() and (vector < 1.5).all() for vector in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("tcp", "grpc", "tls", "chunks") else pytest.mark.exhaustive)
        for name in WAYS
        if name not in ("flower", "ray")
    ],
)
def test_every_way_moves_the_right_bytes(name, pair):
    if reason := WAYS[name].absent():
        pytest.skip(reason)
    moved = pair(WAYS[name].target)
    for _ in range(2):
        found = moved.round()
        assert moved.check() is None
    assert found.seconds > 0
    assert found.cpu >= 0


@pytest.mark.slow
@pytest.mark.parametrize("direction", [(ours.Chunks, ours.Push), (ours.Pull, ours.PullChunks)])
def test_a_payload_that_goes_another_way_is_not_measured(direction):
    serving, connecting = (way() for way in direction)
    server = serving.serve(SMALL)
    try:
        workers = connecting.connect(server.address, SMALL)
        try:
            server.ready()
            with pytest.raises(ConnectionError, match="payloads went another way"):
                workers.round()
        finally:
            workers.close()
    finally:
        server.close()


def test_what_goes_over_grpc_alone_is_told_apart():
    whole = {name: way for name, way in WAYS.items() if way.kind == "chunks"}
    assert [*whole] == ["chunks", "chunks-tls", "chunks-pull"]
    assert all(way.title.endswith("over gRPC") for way in whole.values())
    from varangian.bench.wire import picture  # takes a second: it needs matplotlib

    assert {way.kind for way in WAYS.values()} == picture.COLOURS.keys() == picture.GROUPS.keys()


def test_wrong_bytes_are_noticed(pair, monkeypatch):
    moved = pair("tcp:Tcp")
    moved.round()
    way = processes.load_way("tcp:Tcp")
    expected = ["of something else" if i else entry for i, entry in enumerate(way.expected(SMALL, 1))]
    monkeypatch.setattr(type(way), "expected", lambda self, job, rounds: expected)
    assert moved.check() == "what arrived from worker 1 is not what it sent"


def test_rows_from_an_earlier_round_are_not_taken_for_new_ones(pair):
    moved = pair("tcp:Tcp")
    moved.round()
    assert moved.check() is None
    assert moved.check() == "what arrived from worker 0 is not what it sent"


def test_what_does_not_start_says_why(quickly):
    broken = Pair("tcp:NoSuchThing", SMALL)
    try:
        with pytest.raises(BrokenWay, match="the server could not start: AttributeError"):
            broken.connect()
    finally:
        broken.close()


class Slow:
    """A pipe whose other end answers at the last of so many looks."""

    def __init__(self, looks):
        self.looks = looks

    def poll(self, seconds):
        self.looks -= 1
        return self.looks == 0

    def recv(self):
        return "ok", "an address"


@pytest.mark.parametrize(
    ("seconds", "moves", "words"),
    [
        (3000, True, None),
        (100, False, None),
        (3000, False, "the server could not start in 120 s, and has done nothing for 120 s"),
        (4000, True, "the server could not start in 3600 s"),
    ],
)
def test_a_process_may_be_slow_but_not_stand_still(monkeypatch, seconds, moves, words):
    side = object.__new__(processes.Side)
    side._role, side._process = "server", multiprocessing.current_process()
    side._pipe = Slow(int(seconds / processes.LOOK))
    ticks = itertools.count() if moves else itertools.repeat(7)
    monkeypatch.setattr(processes, "processor_time", lambda process: next(ticks))
    if words is None:
        assert side.answer("start") == "an address"
    else:
        with pytest.raises(BrokenWay, match=f"^{words}$"):
            side.answer("start")


def test_processor_time_is_read_from_the_system():
    assert processor_time(os.getpid()) > 0
    assert processor_time(None) is None


@pytest.mark.exhaustive  # its parts are tested above
@pytest.mark.slow
def test_the_command_prints_and_writes(varangian, tmp_path):
    code, out, err = varangian(
        *("bench", "wire", "--sizes", "300KB", "--workers", "1", "--repeats", "2", "--only", "ours"),
        *("--json", "wire.json", "--png", "wire.png"),
    )
    assert (code, err) == (0, "1 x 0.3 MB: 1 ways ...\n")
    assert out.startswith("1 x 0.3 MB")
    assert (tmp_path / "wire.png").read_bytes().startswith(b"\x89PNG")
    (setting,) = json.loads((tmp_path / "wire.json").read_text())["found"]
    tcp, grpc, ours = setting["lines"]
    assert (tcp["name"], grpc["name"], ours["name"]) == ("tcp", "grpc", "ours")
    assert ours["status"] == "measured"
    assert tcp["speed"]["x_tcp"] == grpc["speed"]["x_grpc"] == 1.0
    assert ours["speed"]["x_grpc"] > 0
    assert len(ours["speed"]["seconds"]) == 2


@pytest.mark.slow
def test_what_is_too_large_or_not_installed_says_so(varangian, monkeypatch):
    monkeypatch.setattr(measure, "available", lambda: 2 * WAYS["tcp"].memory(Job(1, 1000)))
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    code, out, _ = varangian("bench", "wire", "--sizes", "4KB", "--workers", "1", "--only", "ours", "ray")
    assert code == 0
    told = [line for line in out.splitlines() if "not measured" in line]
    assert ["Varangian push" in line and "GB of memory" in line for line in told].count(True) == 1
    assert any("ray is not installed" in line for line in told)


def test_an_unknown_way(varangian):
    code, _, err = varangian("bench", "wire", "--only", "pigeon")
    assert code == 1
    assert err.startswith("varangian: There is no way 'pigeon' of moving gradients, but tcp,")


@pytest.mark.parametrize("size", ["45", "0MB", "xMB", "-1MB", "MB"])
def test_a_size_that_is_none(varangian, size):
    code, _, err = varangian("bench", "wire", f"--sizes={size}")
    assert code == 2
    assert f"should be a whole number of KB, MB or GB, as 45MB. Found '{size}'" in err


@pytest.mark.slow
def test_a_round_is_measured_with_and_without_a_pace(quickly, varangian, tmp_path):
    code, out, _ = varangian(
        *("bench", "round", "-n", "7", "-d", "70000", "--rules", "median", "--repeats", "1"),
        *("--pace", "20MB/s", "--json", "round.json"),
    )
    assert code == 0
    paced, free = json.loads((tmp_path / "round.json").read_text())["timings"]
    assert (paced["pace"], free["pace"]) == (20_000_000, None)
    least = 7 * 280_000 / 20e6 * 0.9  # the bucket is no decoration
    assert paced["receive"] > least
    assert paced["round"] > least
    assert paced["round"] >= paced["tail"]
    assert "median" in out


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("lines", [["TCP"], pytest.param(["TCP", "TLS"], marks=pytest.mark.exhaustive)])
def test_a_small_round_is_measured_beside_a_bare_pair_of_calls(varangian, tmp_path, monkeypatch, lines):
    monkeypatch.setattr(small, "WAYS", {line: small.WAYS[line] for line in lines})
    argv = ("bench", "round", "--small", "-n", "3", "-d", "8", "--repeats", "1", "--json", "small.json")
    code, out, _ = varangian(*argv)
    assert code == 0
    timings = json.loads((tmp_path / "small.json").read_text())["timings"]
    assert [timing["line"] for timing in timings] == lines
    for timing in timings:
        assert timing["ratio"] > 0
        assert f"{timing['ratio']:.2f}" in out


def test_a_rule_that_takes_no_such_rows(varangian):
    code, _, err = varangian("bench", "round", "-n", "2", "--rules", "krum")
    assert code == 1
    assert "krum takes no 2 rows" in err
