"""Runs in a process that has no more file descriptors, and on a disk that takes no more."""

import contextlib
import errno
import os
import sys

import pytest
from tests.exhausted import no_descriptors

from varangian.cli.main import main
from varangian.launch.output.run_folder import RunFolder
from varangian.protos.network.descriptors import check_free

EVENTS = {"open", "os.mkdir", "os.rename"}
"""Operations on files of which Python tells, before they are done."""
PLACES = range(1, 41)
"""Which operation fails; a run has fewer, so the last ones are runs without a failure."""
RUN = ["data=synthetic", "model=softmax", "workers=5", "f=1", "rounds=3", "worker.batch_size=8"]


class Faults:
    """Lets one operation on a file fail, the k-th below a folder."""

    def __init__(self):
        self.folder, self.left, self.code, self.seen = None, 0, 0, 0
        sys.addaudithook(self._look)  # for good: it can only be told to do nothing

    def _look(self, event, given):
        if self.folder is None or event not in EVENTS:
            return
        if isinstance(given[0], bytes | str | os.PathLike):
            path = os.path.abspath(os.fsdecode(given[0]))
            if path.startswith(self.folder):
                self.seen += 1
                if self.seen == self.left:
                    raise OSError(self.code, os.strerror(self.code), path)

    @contextlib.contextmanager
    def failing(self, k, code, folder):
        self.folder, self.left, self.code, self.seen = str(folder), k, code, 0
        try:
            yield
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def faults():
    return Faults()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "k", [pytest.param(k, marks=[pytest.mark.exhaustive] * (k % 4 > 0)) for k in PLACES]
)
def test_whatever_file_operation_fails_a_run_says_so_or_goes_on(
    k, code, faults, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where the model is saved when the run folder takes nothing
    with faults.failing(k, code, tmp_path):
        ended = main(["run", *RUN, "backend=simulate", "output=runs", "--format", "plain"])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    saved = [*tmp_path.rglob("parameters.safetensors")]
    if ended:
        (sentence,) = said.err.splitlines()
        assert sentence.startswith("varangian: ")
        assert os.strerror(code) in sentence
        assert not saved, "it had not begun"
    else:
        assert "all 3 rounds are done" in said.out
        assert saved
        assert saved[0].parent.parent.name == "runs" or "the parameters are in" in said.out + said.err
    assert faults.seen < PLACES[-1], "there are more operations than are tried"


def test_the_model_is_saved_when_all_files_are_used_up(carried_out, monkeypatch):
    finish = RunFolder.finish
    with contextlib.ExitStack() as stack:

        def with_nothing_left(*given):
            stack.enter_context(no_descriptors())
            return finish(*given)

        monkeypatch.setattr(RunFolder, "finish", with_nothing_left)
        result, _, _ = carried_out()
    assert result.outcome == "finished"
    assert {"parameters.safetensors", "result.json"} <= {path.name for path in result.folder.iterdir()}


def test_a_process_without_files_says_so_in_one_sentence(tmp_path, capsys):
    main(["check", *RUN])  # so that whatever is imported is
    capsys.readouterr()
    with no_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            check_free()
        assert main(["run", *RUN, "backend=simulate", f"output={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("varangian: ")
    assert "Too many open files. Raise the limit with `ulimit -n" in said
    assert said.count("\n") == 1
