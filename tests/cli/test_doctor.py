"""`varangian doctor`: what it says of set-ups that are in order, and of broken ones."""

import builtins
import contextlib
import errno
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest
from tests.cli.kit import answering
from tests.ports import free_port

from varangian import __version__
from varangian.aggregators.kernels import library
from varangian.cli.commands.doctor import disk, machine
from varangian.cli.commands.doctor.connection import (
    check_addresses,
    check_dates,
    check_payloads,
    check_proxies,
    check_skew,
    duration,
    hidden,
)
from varangian.cli.commands.doctor.finding import Finding, fail, note, passed, within
from varangian.cli.commands.doctor.report import show
from varangian.cli.commands.doctor.run import check_listen_host
from varangian.protos.network.dial import PROXY
from varangian.resources import available_memory
from varangian.server.identity.tls import Security

EVERYWHERE = ("versions", "files", "cores", "clock")
"""Checks of every machine."""
HERE = (*EVERYWHERE, "kernels")
"""Checks of a machine where rules are computed."""
CERTIFICATE = ("certificate", "expiry", "revocation", "key")
SMALL = ("workers=4", "f=1", "data=synthetic", "server.port=0")
LINE = re.compile(r"(PASSED|NOTE|FAIL) +(\w+)  ")


@pytest.fixture
def varangian(varangian):
    """The command line: exit code, and both outputs together."""

    def run(*argv):
        code, *outputs = varangian(*argv)
        return code, "".join(outputs)

    return run


@pytest.fixture
def made(varangian):
    pytest.importorskip("cryptography")
    assert varangian("certs", "init", "ca")[0] == 0
    return varangian


@pytest.fixture(autouse=True)
def frugal(monkeypatch, tmp_path):
    """Little is written, to this folder, whatever the home of the user and the drivers of the machine."""
    monkeypatch.setattr(disk, "MOST", 1)
    for module, name in ((disk, "SLOW"), (disk, "LITTLE"), (disk, "LITTLE_TEMPORARY"), (machine, "ENOUGH")):
        monkeypatch.setattr(module, name, 0)  # the tests may run anywhere
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(machine, "DRIVERS", ())
    monkeypatch.setattr(library, "opened", lambda: (object(), ""))
    monkeypatch.setattr(library, "level", lambda: 1)


def doctor(varangian, *options):
    """Exit code, the worst result of each check, and all that was said."""
    code, said = varangian("doctor", "--timeout", "5", *options)
    found = dict[str, str]()
    for line in filter(None, map(LINE.match, said.splitlines())):
        found[line[2]] = min(line[1], found.get(line[2], "PASSED"))  # in the order of the alphabet
    return code, found, said


def test_a_doctor_finds_nothing_wrong(varangian, bundles):
    code, found, said = doctor(varangian)
    assert (code, found) == (0, dict.fromkeys((*HERE, "memory", "output", "temporary"), "PASSED"))
    assert said.endswith("\n\n8 checks: 8 passed, 0 to note, 0 failed\n")
    shown = ("--certs", str(bundles / "ours/w00"))
    with answering(Security(bundles / "ours").credentials(), now=round(1000 * time.time())) as address:
        code, found, said = doctor(varangian, "--server", address, *shown)
    way = ("address", "server", "skew", "release", "payloads")
    names = (*EVERYWHERE, "memory", "state", "temporary", *CERTIFICATE, *way)
    assert (code, found) == (0, dict.fromkeys(names, "PASSED"))
    assert "the worker w00" in said
    assert "answers with TLS: round 2 of 9" in said
    assert "over gRPC, as the server has no data port, under TLS 1.3 like every call" in said


def test_a_doctor_says_why_there_are_no_kernels_in_c(varangian, monkeypatch):
    monkeypatch.setattr(library, "opened", lambda: (None, "there was no compiler"))
    code, found, said = doctor(varangian)
    assert (code, found["kernels"]) == (0, "NOTE")
    assert "there are none in C: there was no compiler. Rules are slower in plain torch" in said
    monkeypatch.undo()
    monkeypatch.setenv(library.VARIABLE, "v2")
    library.opened.cache_clear()
    finding = machine.check_kernels()
    assert (finding.result, "VARANGIAN_KERNELS should be one of" in finding.sentence) == ("FAIL", True)


def test_a_doctor_says_what_to_do(varangian, bundles, copied):
    code, found, said = doctor(varangian, "--certs", str(bundles / "ours/expired"))
    assert (code, found["certificate"]) == (1, "FAIL")
    assert "varangian certs issue --force" in said
    loose = copied("ours/w00")
    (loose / "key.pem").chmod(0o644)
    code, found, said = doctor(varangian, "--certs", str(loose))
    assert (code, found["key"]) == (1, "FAIL")
    assert f"chmod 600 {loose / 'key.pem'}" in said
    with answering(Security(bundles / "theirs").credentials()) as address:
        code, found, said = doctor(varangian, "--server", address, "--certs", str(bundles / "ours/w00"))
    assert (code, found["server"]) == (1, "FAIL")
    assert "bundles of the same authority?" in said
    for server in ("nowhere", "no-such-host.invalid:1"):
        assert doctor(varangian, "--server", server)[1]["address"] == "FAIL"


def test_a_doctor_finds_a_revoked_certificate_whose_list_lies_beside_it(made, tmp_path):
    made("certs", "issue", "ca", "--server", "localhost")
    made("certs", "issue", "ca", "alice", "bob")
    made("certs", "revoke", "ca", "alice")
    code, found, said = doctor(made, "--certs", "ca/alice")
    assert (code, found["revocation"]) == (1, "FAIL")
    assert "varangian certs issue DIR alice --force" in said
    assert doctor(made, "--certs", "ca/bob")[1]["revocation"] == "PASSED"
    made("certs", "issue", "ca", "alice", "--force")
    assert doctor(made, "--certs", "ca/alice")[1]["revocation"] == "PASSED"
    made("certs", "revoke", "ca", "server")
    assert doctor(made, "--certs", "ca/server")[1]["revocation"] == "FAIL"
    (tmp_path / "ca/bob/revoked").write_text("hello")
    assert doctor(made, "--certs", "ca/bob")[1]["revocation"] == "FAIL"


def test_a_certificate_that_ends_soon_is_a_finding(made):
    made("certs", "issue", "ca", "w00", "--days", "2")
    code, found, said = doctor(made, "--certs", "ca/w00")
    assert (code, found["expiry"]) == (1, "FAIL")
    assert re.search(r"in 2\.0 days, on 20..-..-..\. Renew it", said)


def test_two_releases_are_a_finding(varangian):
    with answering(None, software="varangian 0.0.1") as address:
        code, found, said = doctor(varangian, "--server", address)
    assert (code, found["server"], found["release"]) == (1, "PASSED", "FAIL")
    assert "'0.0.1'" in said


@contextlib.contextmanager
def data_port():
    """One that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_doctor_tries_the_port_for_payloads(varangian, bundles):
    with data_port() as port, answering(None, data_port=port) as address:
        code, found, said = doctor(varangian, "--server", address)
    assert (code, found["payloads"]) == (0, "PASSED")
    assert f"beside gRPC, over port {port}, in clear text" in said
    ours = Security(bundles / "ours").credentials()
    shown = ("--certs", str(bundles / "ours/w00"))
    with data_port() as port, answering(ours, data_port=port) as address:
        code, found, said = doctor(varangian, "--server", address, *shown)
    assert found["payloads"] == "PASSED"
    assert f"over port {port}, encrypted by AES256_GCM_HKDF (streaming AEAD)" in said
    assert "data_port: null" not in said


@pytest.mark.parametrize(
    ("address", "far"), [("10.0.0.5", False), ("fe80::1%eth0", False), ("9.9.9.9", True)]
)
def test_beyond_a_local_network_a_doctor_advises_tls_for_everything(address, far):
    bundle = mock.Mock()
    with data_port() as port:
        finding = check_payloads("127.0.0.1", ["127.0.0.1", address], port, bundle, 5)
    assert finding.passed
    assert ("server.data_port: null" in finding.sentence) is far


@pytest.mark.parametrize("port", [1, 70_000])
def test_without_a_port_for_payloads_a_doctor_finds_no_fault(varangian, bundles, port):
    ours = Security(bundles / "ours").credentials()
    with answering(ours, data_port=port) as address:
        code, found, said = doctor(varangian, "--server", address, "--certs", str(bundles / "ours/w00"))
    assert (code, found["payloads"], found["server"]) == (0, "NOTE", "PASSED")
    assert f"The data port {port} of 127.0.0.1 should be reachable from here" in said
    assert "Payloads will travel over gRPC" in said


def test_a_doctor_says_why_payloads_cannot_be_sealed(varangian, bundles, monkeypatch):
    monkeypatch.setattr(
        "varangian.cli.commands.doctor.connection.why_unavailable",
        lambda: "the package is too old: do this",
    )
    ours = Security(bundles / "ours").credentials()
    with data_port() as port, answering(ours, data_port=port) as address:
        code, found, said = doctor(varangian, "--server", address, "--certs", str(bundles / "ours/w00"))
    assert (code, found["payloads"]) == (0, "NOTE")
    assert "the package is too old: do this. Payloads will travel over gRPC" in said


def test_a_program_reads_json(varangian, bundles):
    code, said = varangian("doctor", "--format", "json", "--certs", str(bundles / "ours/expired"))
    found = json.loads(said)
    assert (code, found["varangian"], found["result"]) == (1, __version__, "FAIL")
    assert [one["what"] for one in found["findings"]][:5] == list(HERE)
    (bad,) = (one for one in found["findings"] if one["result"] == "FAIL")
    assert bad["what"] == "certificate"
    assert "should not have expired" in bad["sentence"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_report_on_a_terminal_is_coloured_and_broken_into_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    findings = [
        passed("a", "good"),
        note("b", "look " * 20, "Do it."),
        fail("c", "bad\x1b[2J\n", "Mend it."),
    ]
    out = Terminal()
    assert not show(findings, "auto", out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "\x1b[32mPASSED\x1b[0m  a             good"
    assert lines[1].startswith("\x1b[33mNOTE  \x1b[0m  b             look look")
    assert lines[2].startswith(" " * 22 + "look")
    assert max(len(line) for line in lines[2:]) <= 80
    assert "c             bad\\x1b[2J\\n. Mend it." in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    assert show(findings[:2], "rich", out)
    assert "\x1b" not in out.getvalue()


def test_work_that_hangs_is_left_behind():
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 seconds"):
        within(0.05, never.wait)
    never.set()
    assert within(60, lambda: 7) == 7
    with pytest.raises(OSError, match="gone"):
        within(60, mock.Mock(side_effect=OSError("gone")))


# A run on this machine


def test_a_run_that_can_start_here(varangian, tmp_path):
    rows = f"server.rows_folder={tmp_path}"
    code, found, said = doctor(varangian, *SMALL, "server.data_port=null", "worker.per_process=4", rows)
    names = (*HERE, "settings", "data", "memory", "threads", "output", "rows", "temporary", "ports")
    assert (code, found) == (0, dict.fromkeys(names, "PASSED"))
    assert "4 workers, f = 1: the rule's condition holds with" in said
    assert "1 worker processes about " in said
    assert "server.port: the server can listen on any free port of 127.0.0.1" in said


def test_at_a_worker_no_port_is_opened(varangian):
    with answering(None) as address:
        code, found, said = doctor(varangian, "--server", address, *SMALL, "server.port=1")
    assert (code, "ports" in found, "output" in found) == (0, False, False)
    assert (found["memory"], found["state"]) == ("PASSED", "PASSED")
    assert "a worker process takes about " in said


def test_settings_that_are_wrong_are_findings(varangian, tmp_path):
    code, found, said = doctor(varangian, "aggregator=krumm", "workers=4", "f=1")
    assert (code, found["settings"], found["output"]) == (1, "FAIL", "PASSED")
    assert "Did you mean 'krum'?" in said
    (tmp_path / "run.yaml").write_text("workers: 4\nf: 9\n")
    assert doctor(varangian, "run.yaml")[1]["settings"] == "FAIL"
    code, found, said = doctor(varangian, "none.yaml")
    assert (code, found["settings"]) == (1, "FAIL")
    assert "none.yaml" in said


def test_settings_of_the_environment_are_those_of_a_run(varangian, monkeypatch):
    monkeypatch.setenv("VARANGIAN_SETTINGS", "workers=4 f=9")
    code, found, _ = doctor(varangian)
    assert (code, found["settings"]) == (1, "FAIL")


def test_a_port_that_another_process_has(varangian):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, found, said = doctor(varangian, *SMALL, f"server.port={port}")
    assert (code, found["ports"]) == (1, "FAIL")
    assert f"127.0.0.1:{port} for itself. Another process listens there." in said
    assert f"`ss -ltnp 'sport = :{port}'` names it" in said
    assert "server.data_port: the server can listen on any free port of 127.0.0.1" in said


def test_a_host_that_only_this_machine_can_reach(monkeypatch):
    def resolve(host, port, type):
        address = {"ps.example": "127.0.1.1", "far.example": "10.0.0.5"}[host]
        return [(socket.AF_INET, type, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    (found,) = check_listen_host("ps.example")
    assert found.result == "NOTE"
    assert "ps.example is 127.0.1.1, which only programs on this machine can reach" in found.sentence
    for host in ("far.example", "*", "localhost"):
        assert list(check_listen_host(host)) == []


def test_a_folder_that_takes_no_files(varangian, tmp_path):
    (tmp_path / "file").touch()
    code, found, said = doctor(varangian, *SMALL, "output=file/runs")
    assert (code, found["output"]) == (1, "FAIL")
    assert f"{tmp_path}/file/runs should take files. The system says: Not a directory." in said
    assert "Choose another place with output=DIR" in said


def test_a_full_disk(tmp_path):
    """The system refuses files of more than a few bytes, as of a user who has used up all of a share."""
    program = (
        "import resource, signal, sys; from pathlib import Path; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "sys.dont_write_bytecode = True; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from varangian.cli.commands.doctor.disk import check_output; "
        "print(check_output(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("FAIL    output")
    assert os.strerror(errno.EFBIG) in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("free", "speed", "given", "result", "said"),
    [
        (9e9, 1e9, (), "PASSED", "9.0 GB free, 1.0 GB a second"),
        (9e8, 1e9, (), "NOTE", "That is little"),
        (9e9, 1e6, (), "NOTE", "That is slow"),
        (9e9, 1e9, (10**10,), "FAIL", "and the run may keep 10 GB there"),
        (9e9, 1e8, (10**9, 2 * 10**9), "NOTE", "each checkpoint of 2.0 GB takes 20 s to write"),
    ],
)
def test_room_and_speed(monkeypatch, tmp_path, free, speed, given, result, said):
    monkeypatch.setattr(disk, "_measure", lambda folder, blocks: (int(free), speed))
    monkeypatch.setattr(disk, "SLOW", 20e6)
    monkeypatch.setattr(disk, "LITTLE", 10**9)
    found = disk.check_output(tmp_path, *given)
    assert found.result == result
    assert said in found.text


@pytest.mark.parametrize(
    ("free", "speed", "needed", "result", "said"),
    [
        (9e9, 1e9, None, "PASSED", "9.0 GB free, 1.0 GB a second"),
        (9e9, 1e9, 8 * 10**9, "PASSED", "the vectors of a round take 8.0 GB"),
        (9e9, 1e9, 10**10, "FAIL", "and the vectors of a round take 10 GB"),
        (9e9, 1e6, 10**9, "NOTE", "That is slow"),
    ],
)
def test_room_for_the_rows(monkeypatch, tmp_path, free, speed, needed, result, said):
    monkeypatch.setattr(disk, "_measure", lambda folder, blocks: (int(free), speed))
    monkeypatch.setattr(disk, "SLOW", 20e6)
    found = disk.check_rows(tmp_path, needed)
    assert found.result == result
    assert said in found.text
    missing = disk.check_rows(tmp_path / "missing", needed)
    assert (missing.result, "there is no such folder" in missing.text) == ("FAIL", True)


def test_nothing_is_left_in_a_folder_that_was_tried(tmp_path):
    assert disk.check_output(tmp_path / "a/b").passed
    assert not list(tmp_path.iterdir())


def test_no_folder_for_temporary_files(monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    found = disk.check_temporary()
    assert found.result == "FAIL"
    assert "Set TMPDIR" in found.todo


def test_too_little_memory(varangian, monkeypatch):
    """As a control group with 300 MB has it."""
    files = {
        "/proc/self/cgroup": "0::/\n",
        "/sys/fs/cgroup/memory.max": "300000000\n",
        "/sys/fs/cgroup/memory.current": "200000000\n",
    }
    room = available_memory(files.get)
    assert room == 100_000_000
    for where in ("run", "machine"):
        monkeypatch.setattr(f"varangian.cli.commands.doctor.{where}.available_memory", lambda: room)
    code, found, said = doctor(varangian, *SMALL)
    assert (code, found["memory"]) == (1, "FAIL")
    assert "the server needs up to " in said
    monkeypatch.setattr(machine, "ENOUGH", 10**9)
    assert doctor(varangian)[1]["memory"] == "NOTE"


def test_too_few_processes_and_cores(varangian, monkeypatch):
    monkeypatch.setattr("varangian.cli.commands.doctor.run.free_processes", lambda: 20)
    monkeypatch.setattr("varangian.cli.commands.doctor.run.cores", lambda: 0.5)
    code, found, said = doctor(varangian, *SMALL, "worker.per_process=1")
    assert (code, found["processes"], found["threads"]) == (1, "FAIL", "NOTE")
    assert "this control group allows 20 more" in said
    assert "share 0.5 processors: they take turns" in said


def test_a_clock_that_was_never_set():
    assert machine.check_clock(time.time()).passed
    found = machine.check_clock(0.0)
    assert found.result == "FAIL"
    assert "the clock shows 1970-01-01 00:00:00 UTC" in found.sentence


GPU = ["NVIDIA H200", 10**11, 15 * 10**10]


@pytest.mark.parametrize(
    ("found", "wanted", "driver", "result", "said"),
    [
        (
            {"built": "12.6", "gpus": [GPU], "warnings": []},
            None,
            "x",
            "PASSED",
            "NVIDIA H200, 100 GB of 150",
        ),
        (
            {"built": "12.6", "gpus": [GPU], "sum": 4.0, "warnings": []},
            "cuda",
            "x",
            "PASSED",
            "NVIDIA H200",
        ),
        ({"built": None, "sum": 4.0, "warnings": []}, "mps", None, "PASSED", "torch computes on mps"),
        ({"built": None, "warnings": []}, None, "x", "NOTE", "built for processors alone"),
        (
            {"built": None, "error": "AssertionError: no", "warnings": []},
            "cuda",
            "x",
            "FAIL",
            "processors alone",
        ),
        (
            {"built": "12.6", "error": "RuntimeError: no", "warnings": []},
            "cuda",
            None,
            "FAIL",
            "--gpus all",
        ),
        (
            {"built": "13.0", "error": "RuntimeError: no", "warnings": ["The NVIDIA driver is too old"]},
            "cuda:0",
            "/dev/x",
            "FAIL",
            "torch says: RuntimeError: no. torch says: The NVIDIA driver is too old.",
        ),
        (
            {
                "built": "12.6",
                "gpus": [GPU],
                "error": "RuntimeError: invalid device ordinal",
                "warnings": [],
            },
            "cuda:7",
            "x",
            "FAIL",
            "invalid device ordinal",
        ),
    ],
)
def test_what_is_said_of_a_gpu(found, wanted, driver, result, said):
    judged = machine.judge_gpu(found, wanted, driver)
    assert judged.result == result
    assert said in judged.text


def test_a_gpu_that_a_variable_hides(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = machine.judge_gpu({"built": "12.6", "error": "no", "warnings": []}, "cuda", "x")
    assert "CUDA_VISIBLE_DEVICES=-1 hides it" in found.sentence


@pytest.mark.parametrize(
    ("program", "seconds", "said"),
    [
        ('print(\'{"sum": 4.0, "warnings": []}\')', 60, "torch computes on cuda"),
        ("raise SystemExit(3)", 60, "torch ended with code 3"),
        ("import time; time.sleep(600)", 0.05, "torch found no end with it within 0.05 s"),
    ],
)
def test_a_device_is_tried_in_a_process_of_its_own(monkeypatch, program, seconds, said):
    monkeypatch.setattr(machine, "TRIAL", program)
    (found,) = machine.check_gpu("cuda", seconds)
    assert found.passed is ("computes" in said)
    assert said in found.sentence


def test_without_a_driver_and_a_wish_no_device_is_tried():
    assert list(machine.check_gpu(None)) == []
    assert list(machine.check_gpu("cpu")) == []


@pytest.mark.exhaustive  # what is made of the answer has quick tests above
def test_torch_is_asked_for_a_device():
    (found,) = machine.check_gpu("meta")  # one that every torch has, and that computes nothing
    assert found.result == "FAIL"
    assert "torch should compute on meta" in found.sentence


# Certificates


def test_all_bundles_of_a_folder_are_examined(made):
    made("certs", "issue", "ca", "--server", "ps.example")
    made("certs", "issue", "ca", "w00", "w01", "w02", "--days", "20")
    code, found, said = doctor(made, "--certs", "ca")
    assert (code, {found[name] for name in CERTIFICATE}) == (0, {"PASSED"})
    assert "4 bundles in ca: server server, worker w00, worker w01, worker w02, of cluster " in said
    assert "all 4; the first, w00: in 20.0 days" in said
    made("certs", "issue", "ca", "w01", "--days", "1", "--force")
    code, found, said = doctor(made, "--certs", "ca")
    assert (code, found["expiry"]) == (1, "FAIL")
    assert "w01: in 1.0 days" in said
    assert "w00: in" not in said


def test_a_folder_of_bundles_of_workers_is_enough(made):
    made("certs", "issue", "ca", "w00", "w01")
    assert doctor(made, "--certs", "ca")[0] == 0


def test_bundles_of_two_authorities(made, varangian):
    made("certs", "issue", "ca", "w00")
    assert varangian("certs", "init", "other")[0] == 0
    assert varangian("certs", "issue", "other", "w01", "--into", "ca")[0] == 0
    code, found, said = doctor(made, "--certs", "ca")
    assert (code, found["certificate"]) == (1, "FAIL")
    assert "should have bundles of one authority. Found 2: w00 of " in said


@pytest.mark.parametrize(
    ("host", "covered"),
    [("ps.example", True), ("a.nodes.example", True), ("a.b.nodes.example", False), ("10.0.0.5", False)],
)
def test_the_name_that_workers_call_is_on_the_certificate(made, host, covered):
    made("certs", "issue", "ca", "--server", "ps.example", "*.nodes.example")
    _, found, said = doctor(made, "--certs", "ca/server", "--server", f"{host}:1", "--timeout", "0.2")
    assert found["names"] == ("PASSED" if covered else "FAIL")
    assert (f"varangian certs issue DIR --server {host}" in said) is not covered


def test_names_on_certificates_are_those_of_the_run(made):
    made("certs", "issue", "ca", "w01", "w77")
    code, found, said = doctor(made, "--certs", "ca/w77", *SMALL)
    assert (code, found["names"]) == (1, "FAIL")
    assert "w77 should be among the workers of the run: w00, w01, w02, w03" in said
    assert doctor(made, "--certs", "ca/w01", *SMALL)[1]["names"] == "PASSED"


# The way to a server


@pytest.mark.parametrize(
    ("ahead", "secure", "result", "said"),
    [
        (0.5, True, "PASSED", "within 2 s"),
        (-30, True, "NOTE", "30.0 s behind that of the server"),
        (3600, False, "NOTE", "60.0 minutes ahead of that of the server"),
        (3600, True, "FAIL", "certificates run out 60.0 minutes earlier here than there"),
        (
            -86400,
            True,
            "FAIL",
            "behind that of the server: certificates that are new count 24.0 hours later",
        ),
    ],
)
def test_two_clocks(ahead, secure, result, said):
    (found,) = check_skew(10**12, 10**9 + ahead, secure=secure)
    assert found.result == result
    assert said in found.text


def test_an_earlier_release_does_not_say_what_its_clock_shows():
    assert list(check_skew(0, time.time(), secure=True)) == []


def test_the_clock_of_a_server_that_answers(varangian, bundles):
    ours, shown = Security(bundles / "ours").credentials(), ("--certs", str(bundles / "ours/w00"))
    with answering(ours, now=round(1000 * (time.time() - 86400))) as address:
        code, found, said = doctor(varangian, "--server", address, *shown)
    assert (code, found["server"], found["skew"]) == (1, "PASSED", "FAIL")
    assert "24.0 hours ahead of that of the server" in said
    with answering(None, now=round(1000 * (time.time() - 86400))) as address:
        code, found, said = doctor(varangian, "--server", address)
    assert (code, found["skew"]) == (0, "NOTE")


def test_a_time_in_its_largest_unit():
    assert [duration(seconds) for seconds in (1, 119, 120, 7200, 172_800)] == [
        "1.0 s",
        "119.0 s",
        "2.0 minutes",
        "2.0 hours",
        "2.0 days",
    ]


def test_dates_of_a_certificate_that_is_refused(bundles, monkeypatch):
    """The clock here is years ahead of what is on the server's certificate."""
    bundle = mock.Mock(path=bundles / "ours/w00")
    with answering(Security(bundles / "ours").credentials()) as address:
        where = ("127.0.0.1", int(address.rpartition(":")[2]))
        assert list(check_dates(where, bundle, 5)) == []
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 10 * 365 * 86400)
        (found,) = check_dates(where, bundle, 5)
    assert found.result == "FAIL"
    assert "the server's certificate is valid from 20" in found.sentence
    assert list(check_dates(("127.0.0.1", 1), bundle, 5)) == []


@contextlib.contextmanager
def silent():
    """A port whose queue is full, so that the system answers no further connection."""
    with socket.socket() as listener, contextlib.ExitStack() as opened:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            one = opened.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_an_address_that_does_not_answer_costs_time(monkeypatch):
    with silent() as port:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip("this system queues more connections than it is told")
        with socket.create_server(("127.0.0.2", port)):
            (found,) = check_addresses(["127.0.0.1", "127.0.0.2"], port, 0.3)
    assert found.result == "NOTE"
    assert (
        f"127.0.0.1:{port} does not answer within 0.3 s, 127.0.0.2:{port} takes connections" in found.text
    )
    assert "A connection may wait for IPv4 first" in found.todo


def test_an_address_that_refuses_costs_none():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (found,) = check_addresses(["127.0.0.1", "127.0.0.2"], port, 5)
        assert list(check_addresses(["127.0.0.1"], port, 5)) == []
    assert found.passed
    assert f"127.0.0.2:{port} refuses, which costs no time" in found.sentence
    assert list(check_addresses(["127.0.0.1", "127.0.0.2"], port, 5)) == []


def proxies(host, through=None):
    return list(check_proxies(f"{host}:50051", host, through, 5))


def test_a_proxy_that_does_not_answer(monkeypatch):
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    proxy = f"http://alice:secret@127.0.0.1:{port}"
    with socket.create_server(("127.0.0.1", port)):
        (found,) = proxies("ps.example", proxy)
        assert found.passed
        assert "secret" not in found.sentence
    (found,) = proxies("ps.example", proxy)
    assert found.result == "FAIL"
    assert "and it does not answer: Connection refused." in found.sentence
    assert "secret" not in found.text
    for bad in ("http://", "http://x:y"):
        assert proxies("ps.example", bad)[0].result == "FAIL"


def test_passwords_in_variables_are_not_shown(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://alice:secret@proxy.example:3128")
    monkeypatch.delenv(PROXY, raising=False)
    for host in ("ps.example", "127.0.0.1"):
        (found,) = proxies(host)
        assert "https_proxy=http://...@proxy.example:3128" in found.sentence
        assert "secret" not in found.sentence
    assert hidden("proxy.example:3128") == "proxy.example:3128"
    assert hidden("alice:secret@proxy.example:3128") == "...@proxy.example:3128"
    assert hidden("http://alice:se@c/ret@proxy.example:3128") == "http://...@proxy.example:3128"


def test_a_host_that_no_proxy_names_is_called_directly(monkeypatch):
    monkeypatch.setenv(PROXY, "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "localhost,.example")
    (found,) = proxies("ps.example")
    assert found.result == "NOTE"
    assert "no_proxy=.example says that ps.example is called directly" in found.sentence


def test_behind_a_proxy_the_name_need_not_be_known_here(varangian, monkeypatch):
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(PROXY, "http://127.0.0.1:1")
    code, found, _ = doctor(varangian, "--server", "no-such-host.invalid:1", "--timeout", "0.5")
    assert (code, found["proxy"], found["address"], found["server"]) == (1, "FAIL", "NOTE", "FAIL")


def test_a_server_that_has_something_to_say(varangian):
    with answering(None, warnings="the certificate ends in 2 days\x1b[2J\n", finished=True) as address:
        code, found, said = doctor(varangian, "--server", address)
    assert (code, found["server"]) == (0, "NOTE")
    assert "answers without TLS: the run has finished, 9 rounds, 1 of 3 workers are connected" in said
    assert "it says: 'the certificate ends in 2 days\\x1b[2J'" in said


def test_a_line_of_the_report():
    assert str(Finding("key", "FAIL", "bad", "Mend it.")) == "FAIL    key           bad. Mend it."


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("server.metrics_token=none", "server.metrics_token: none should be a readable file"),
        ("server.metrics_host=::", "server.metrics_host: is reached from elsewhere"),
    ],
)
def test_a_doctor_finds_a_metrics_port_that_would_not_be_opened(varangian, setting, said):
    code, found, printed = doctor(varangian, *SMALL, "server.metrics_port=0", setting)
    assert (code, found["ports"]) == (1, "FAIL")
    assert said in " ".join(printed.split())


@pytest.mark.parametrize("error", [ImportError, OSError, AttributeError, RuntimeError])
def test_a_doctor_says_that_torch_is_broken(monkeypatch, error):
    def imported(name, *others, **more):
        if name.endswith("kernels.library"):
            raise error("undefined symbol")
        return found(name, *others, **more)

    found = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", imported)
    finding = machine.check_kernels()
    assert (finding.result, "undefined symbol" in finding.sentence) == ("FAIL", True)
