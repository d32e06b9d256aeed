import pytest
from tests.launch.checkpoints.kit import Kept


@pytest.fixture
def kept(tmp_path):
    """Makes run folders with keepers of their checkpoints, by the name of the folder."""
    made = []

    def make(name="run", **given):
        made.append(Kept(tmp_path / name, **given))
        return made[-1]

    yield make
    for one in made:
        one.close()
