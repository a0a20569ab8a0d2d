"""Fixtures for the tests of evaluation."""

import pytest


@pytest.fixture
def curves():
    """Asked for by tests that look at the curves, which take seconds to draw."""


@pytest.fixture(autouse=True)
def no_curves_unless_asked_for(request, monkeypatch):
    if "curves" not in request.fixturenames:
        monkeypatch.setattr("nuscenes.eval.detection.render.summary_plot", lambda *_: None)
