"""The error that evaluations raise."""

from bev_perception.strict import UserError


class EvaluationError(UserError):
    """An evaluation that is not possible; the message names the cause and the remedy."""
