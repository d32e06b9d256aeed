import pytest

from varangian.cli.main import main


@pytest.fixture
def advised(capsys, monkeypatch, tmp_path):
    """`varangian advise`: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = main(["advise", *argv])
        return code, *capsys.readouterr()

    return run
