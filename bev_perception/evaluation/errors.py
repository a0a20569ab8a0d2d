"""What evaluations raise."""


class EvaluationError(ValueError):
    """An evaluation that cannot be done; the message names cause and remedy."""
