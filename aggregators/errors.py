"""Errors of aggregation."""


class AggregationError(ValueError):
    """The rows of this round do not meet the condition of the rule."""
