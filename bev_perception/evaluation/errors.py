"""What evaluations raise."""

from bev_perception.strict import UserError


class EvaluationError(UserError):
    """An evaluation that cannot be done; the message names cause and remedy."""
