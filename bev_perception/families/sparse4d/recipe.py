"""How Sparse4D is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sparse4DRecipe:
    """Settings of the training that are this family's alone."""
