"""`--resume` on the command line."""

import pytest

from varangian.cli.arguments.durability import NEWEST
from varangian.cli.arguments.main import parse


@pytest.mark.parametrize("command", ["run", "server"])
def test_without_a_folder_it_is_the_newest_run(command, tmp_path):
    assert parse([command, "rounds=5", "--resume"]).resume == NEWEST
    assert parse([command, "--resume", str(tmp_path)]).resume == str(tmp_path)
    assert parse([command, "rounds=5"]).resume is None


def test_a_setting_behind_it_is_a_setting():
    args = parse(["run", "--resume", "rounds=5"])
    assert (args.resume, args.settings) == (NEWEST, ["rounds=5"])
