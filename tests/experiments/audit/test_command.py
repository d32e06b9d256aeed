"""`varangian audit` on the folders of runs."""

import json
import shutil

import pytest

from varangian import state_file
from varangian.cli.main import main
from varangian.config import load
from varangian.launch import run
from varangian.launch.output.chain import Chain, beginning, digest, head_of
from varangian.launch.output.run_folder import RunFolder
from varangian.server.observability.record import RoundRecord


def configured(output):
    return load(None, ["backend=simulate", "workers=3", "f=0", "rounds=4", f"output={output}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run."""
    return run(configured(tmp_path_factory.mktemp("runs"))).folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy to be tampered with."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def audited(capsys):
    """The exit code and what is printed."""

    def audit(*arguments):
        code = main(["audit", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return audit


def edit(path, change):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


def test_a_run_as_it_was_written(finished, audited):
    code, said = audited(finished)
    assert code == 0
    assert "4 lines of 4 rounds; the digest of the last line is" in said
    assert "parameters.safetensors is that of the last line" in said
    assert "PROBLEM" not in said


def swap(line):
    """Another weight of a worker."""
    record = json.loads(line)
    weight = json.dumps(record["weights"]["w01"]).encode()
    return line.replace(b'"w01": ' + weight, b'"w01": 0.9', 1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda lines: [lines[0], swap(lines[1]), *lines[2:]],
            "PROBLEM: rounds.jsonl, line 2 (round 1), was changed: line 3 names another digest",
        ),
        (
            lambda lines: [*lines[:2], lines[3]],
            "PROBLEM: rounds.jsonl: a line is missing between rounds 1 and 3, before line 3",
        ),
        (
            lambda lines: [*lines[:3], swap(lines[3])],
            "line 4 (round 3), was changed: result.json names another digest",
        ),
        (
            lambda lines: lines[:3],
            "PROBLEM: rounds.jsonl: a line is missing: it ends with line 3 (round 2), and "
            "result.json names line 4",
        ),
    ],
)
def test_what_was_tampered_with_is_named(folder, audited, change, sentence):
    edit(folder / "rounds.jsonl", change)
    code, said = audited(folder)
    assert code == 1
    assert sentence in said
    assert said.count("PROBLEM") == 1


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("config.yaml", lambda data: data.replace(b"seed: 1", b"seed: 2"), "config.yaml or manifest.json"),
        (
            "parameters.safetensors",
            lambda data: data[:-4] + b"abcd",
            "parameters.safetensors was changed: result.json names another digest",
        ),
        ("result.json", lambda data: b"{", "result.json should be JSON"),
    ],
)
def test_a_changed_file_is_named(folder, audited, name, change, sentence):
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    code, said = audited(folder)
    assert (code, sentence in said) == (1, True)


def test_a_chain_that_was_made_anew_is_not_that_of_the_checkpoints(folder, audited):
    second = (folder / "rounds.jsonl").read_bytes().splitlines()[1]
    known = {"version": 1, "round": 2, "run": "run", "epoch": 0, "layout": "", "digest": "", "alarms": {}}
    known |= {"record": {"bytes": 0, "lines": 2, "digest": head_of(second)}, "state": {"run": {}}}
    (folder / "checkpoints").mkdir()
    state_file.write(folder / "checkpoints" / "round-000002.safetensors", known, {})
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    (folder / "rounds.jsonl").unlink()
    documents = ((folder / name).read_bytes() for name in ("config.yaml", "manifest.json"))
    chain = Chain(beginning(*documents))
    with (folder / "rounds.jsonl").open("w") as file:
        for record in records:
            del record["before"]
            record["weights"]["w00"] = 0.0
            file.write(chain.line(json.dumps(record)) + "\n")
    code, said = audited(folder)
    assert code == 1
    assert "line 2 (round 1), was changed: checkpoints/round-000002.safetensors names another" in said


def test_a_folder_of_an_earlier_version_has_no_chain(folder, audited):
    def strip(line):
        record = json.loads(line)
        for name in ("before", "pushes", "parameters", "resumed"):
            del record[name]
        return json.dumps(record).encode() + b"\n"

    edit(folder / "rounds.jsonl", lambda lines: map(strip, lines))
    code, said = audited(folder)
    assert code == 0
    assert "has no chain: an earlier version wrote it, so only the form of its 4 lines was checked" in said


def test_several_runs_and_one_that_is_none(finished, folder, tmp_path, audited):
    edit(folder / "rounds.jsonl", lambda lines: lines[1:])
    code, said = audited(finished, folder)
    assert (code, said.count("PROBLEM")) == (1, 1)
    code, said = audited(tmp_path)
    assert (code, "should be the folder of a run. config.yaml: No such file" in said) == (1, True)


def test_a_run_that_goes_on_may_have_a_torn_line(tmp_path, audited):
    made = RunFolder.create(configured(tmp_path))
    made.observe(RoundRecord(round=0, dropped={}, missing=(), seconds={}))
    made.close()
    with (made.path / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 1')
    code, said = audited(made.path)
    assert (code, "line 2, was not written to its end; a run that goes on cuts it off" in said) == (0, True)


def signed(tmp_path, bundle):
    from varangian.pki.signing import BundleSigner

    made = RunFolder.create(configured(tmp_path))
    made.sign_with(BundleSigner(lambda: bundle))
    for round in range(3):
        made.observe(RoundRecord(round=round, dropped={}, missing=(), seconds={}))
    made.close()
    return made.path


def test_a_signed_record_is_checked_against_an_authority(tmp_path, bundles, audited):
    from varangian.protos.identity.bundle import Bundle

    bundle = Bundle.load(bundles / "ours" / "server")
    path = signed(tmp_path, bundle)
    code, said = audited(path)
    assert code == 0
    assert f"signed by the server server of the cluster {bundle.cluster}; --ca FILE checks" in said
    code, said = audited(path, "--ca", bundles / "ours" / "server" / "ca.pem")
    assert (code, "as the authority of --ca certifies" in said) == (0, True)
    code, said = audited(path, "--ca", bundles / "theirs" / "server" / "ca.pem")
    assert code == 1
    assert "line 1, has a certificate that the authority of --ca has not made" in said
    edit(path / "rounds.jsonl", lambda lines: [*lines[:2], lines[2].replace(b"[]", b'["w00"]', 1)])
    code, said = audited(path)
    assert (code, "line 3 (round 2), is not signed by the server" in said) == (1, True)


def test_the_certificate_of_a_worker_signs_no_record(tmp_path, bundles, audited):
    from varangian.protos.identity.bundle import Bundle

    path = signed(tmp_path, Bundle.load(bundles / "ours" / "w00"))
    code, said = audited(path)
    assert (code, "has a certificate that is not that of a server" in said) == (1, True)


def test_an_authority_asks_for_signatures(finished, bundles, tmp_path, audited):
    code, said = audited(finished, "--ca", bundles / "ours" / "server" / "ca.pem")
    assert (code, "PROBLEM: rounds.jsonl is not signed" in said) == (1, True)
    (tmp_path / "ca").write_text("nothing")
    code, said = audited(finished, "--ca", tmp_path / "ca")
    assert (code, "should hold certificates in PEM" in said) == (1, True)


def test_settings_with_which_a_run_went_on_are_checked(folder, audited):
    changed = {"config.epoch-1.yaml": b"rounds: 9\n"}
    again = RunFolder.reopen(
        folder,
        configured(folder.parent),
        3,
        documents=changed,
        resumed={"epoch": 1, "config": {name: digest(text) for name, text in changed.items()}},
    )
    again.observe(RoundRecord(round=3, dropped={}, missing=(), seconds={}))
    again.close()
    code, said = audited(folder)
    assert (code, "the run went on with round 3 in line 5; round 3 was done twice" in said) == (0, True)
    (folder / "config.epoch-1.yaml").write_text("rounds: 10\n")
    code, said = audited(folder)
    assert code == 1
    assert "config.epoch-1.yaml was changed: rounds.jsonl, line 5 (round 3), names another" in said
    (folder / "config.epoch-1.yaml").unlink()
    code, said = audited(folder)
    assert (code, "config.epoch-1.yaml is missing" in said) == (1, True)


def is_written(folder):
    try:
        folder.sync(folder.place)
    except OSError:  # it was full when it was tried last
        return False
    return True


def test_lines_that_a_full_disk_has_cost_are_told(tmp_path, audited, monkeypatch):
    monkeypatch.setattr("varangian.launch.output.files.RECORDS", 2000)
    monkeypatch.setattr("varangian.launch.output.queued_writer.RETRY", 0.01)
    warnings = []
    made = RunFolder.create(configured(tmp_path), warn=warnings.append)

    def observe(*rounds):
        for round in rounds:
            made.observe(RoundRecord(round=round, dropped={}, missing=(), seconds={}))

    observe(0)
    made.flush()
    with monkeypatch.context() as patched:

        def full(descriptor, data):
            raise OSError(28, "No space left on device")

        patched.setattr("varangian.launch.output.queued_writer.os.write", full)
        observe(1)
        made.flush()  # its line is in the hands of the thread, and stays there
        observe(*range(2, 9))
    while not is_written(made):
        made.flush()
    observe(9)
    made.close()
    code, said = audited(made.path)
    assert code == 1
    assert "PROBLEM: rounds.jsonl: lost by the server, whose disk did not take them: rounds 2 to" in said
    assert said.count("PROBLEM") == 1
