"""The examples in the documentation are true."""

import doctest

import varangian.aggregators


def test_package_docstring() -> None:
    result = doctest.testmod(varangian.aggregators)
    assert result.attempted > 10
    assert result.failed == 0
