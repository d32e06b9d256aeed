"""Errors of aggregation."""


class AggregationError(ValueError):
    """The rows of this round do not meet the condition under which the rule means anything."""
