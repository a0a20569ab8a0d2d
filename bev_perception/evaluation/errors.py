"""The errors that evaluations raise."""

from bev_perception.strict import UserError


class EvaluationError(UserError):
    """An evaluation that is not possible; the message names the cause and the remedy."""


class RefusedResultsError(EvaluationError):
    """Results that nuscenes-devkit does not take, such as those without any box."""
