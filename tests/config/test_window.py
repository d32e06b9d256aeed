"""Which aggregators can do with a window."""

import pytest

from varangian.config import load
from varangian.registry import ConfigError


@pytest.mark.parametrize("aggregator", ["median", "mean", "trimmed_mean"])
def test_rules_that_see_no_column_twice(aggregator: str) -> None:
    config = load(None, [f"aggregator={aggregator}", "server.memory=window"])
    assert config.server.memory == "window"


@pytest.mark.parametrize("aggregator", ["flag", "krum", "{mix: [nnm], rule: median}"])
def test_others_are_refused_with_the_reason(aggregator: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, [f"aggregator={aggregator}", "server.memory=window"])
    assert "server.memory: should be `rows` with this aggregator, which looks at whole rows" in str(
        error.value
    )
