"""A small made-up data set and one scene's world, for all tests of the package."""

import pytest
from small_world import SETTINGS

from bev_perception.synth.generate import generate
from bev_perception.synth.world import make_world


def pytest_collection_modifyitems(items):
    """Mark every test of this directory: to compile the loops of the world takes minutes on a fresh machine."""
    for item in items:
        if "/test/synth/" in str(item.path):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def dataroot(tmp_path_factory):
    """Two scenes of four key frames. Not to be changed by tests."""
    root = tmp_path_factory.mktemp("synth")
    assert generate(root, SETTINGS, scenes=2) == 2
    return root


@pytest.fixture(scope="session")
def devkit(dataroot):
    """The data set as nuscenes-devkit sees it."""
    from nuscenes.nuscenes import NuScenes

    return NuScenes("v1.0-synth", str(dataroot), verbose=False)


@pytest.fixture(scope="session")
def world():
    """The world of the first scene."""
    return make_world((SETTINGS.seed, 0, 0), SETTINGS.seconds)
