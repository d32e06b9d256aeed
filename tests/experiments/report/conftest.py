"""Pages about runs whose numbers are the tests' own."""

from importlib.metadata import version
from importlib.util import find_spec

import pytest
from tests.cli.conftest import varangian  # noqa: F401
from tests.experiments.results.conftest import (  # noqa: F401
    ATTACKS,
    RULES,
    compared,
    learning,
    record,
    settings,
    write_run,
)

collect_ignore_glob = [] if find_spec("vl_convert") and find_spec("jinja2") else ["test_*.py"]

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
REASON = '"><img src=x onerror=alert(2)>\x1b[2J'


@pytest.fixture
def small_library(tmp_path_factory, monkeypatch):
    """A few bytes in the place of Vega, which takes seconds to bundle, where the real one is kept."""
    cache = tmp_path_factory.mktemp("cache")
    folder = cache / "varangian"
    folder.mkdir()
    path = folder / f"vega-{version('vl-convert-python')}.js"
    path.write_text("window.vegaEmbed=null;")
    path.chmod(0o600)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, write_run):  # noqa: F811
    """A run whose workers have tried to put markup and escape sequences everywhere they can."""
    config = settings(byzantine__attack=ATTACKS["alie"])
    config["names"] = [HOSTILE, *(f"w{i}" for i in range(1, 10))]
    rounds = learning([0.5, 0.7])
    weights = dict.fromkeys(config["names"][1:], 0.1)
    for i, one in enumerate(rounds):
        changes = {"weights": weights, "dropped": {HOSTILE: REASON}}
        rounds[i] = record(**{**vars(one), **changes})
    return write_run(tmp_path_factory.mktemp("hostile") / "run", config, rounds)
