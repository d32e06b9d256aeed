import pytest

from varangian.cli.main import main


@pytest.fixture
def varangian(capsys, monkeypatch, tmp_path):
    """The command line: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        try:
            code = main(argv)
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
