"""Errors of aggregation."""


class AggregationError(ValueError):
    """The rows of this round do not meet the condition of the rule."""


class PartError(AggregationError):
    """A rule or mixing of the user that failed, or returned what it should not; the text says what."""
