"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest
from nuscenes_root import write_nuscenes

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A safetensors file of untrained weights of sparsebev_tiny."""
    from bev_perception.pipeline.loading import write_initial_weights

    path = tmp_path_factory.mktemp("weights") / "sparsebev_tiny.safetensors"
    write_initial_weights("sparsebev_tiny", path, seed=0)
    return path


@pytest.fixture
def shipped(untrained, tmp_path, monkeypatch):
    """An installation that ships weights of sparsebev_tiny alone, untrained ones; the file."""
    from bev_perception.families import variants

    (tmp_path / "config" / "weights").mkdir(parents=True)
    models = tmp_path / "config" / "models"
    models.symlink_to(variants.variants_directory())
    path = tmp_path / "config" / "weights" / "sparsebev_tiny.safetensors"
    path.symlink_to(untrained)
    monkeypatch.setattr(variants, "variants_directory", lambda: models)
    return path


@pytest.fixture(scope="session")
def small_drive():
    """Half a second of the made-up drive in small pictures."""
    from bev_perception.data.synthetic import synthetic_drive

    return synthetic_drive(0.5, seed=3, image_size=(400, 225))


@pytest.fixture(scope="session")
def frames(small_drive, tmp_path_factory):
    """The frames of small_drive, six at 12 Hz, as they are read from a bag."""
    from bev_perception.data.drive import CAMERAS
    from bev_perception.data.rosbag import BagReader, write_bag
    from bev_perception.health import Health
    from bev_perception.pipeline.offline import collect_frames
    from bev_perception.sensing.synchronizer_settings import SynchronizerSettings

    bag = tmp_path_factory.mktemp("frames") / "bag"
    write_bag(small_drive, bag, progress=False)
    return list(collect_frames(BagReader(bag).events(), SynchronizerSettings(CAMERAS), Health()))


@pytest.fixture(scope="session")
def nuscenes_root():
    """The real nuScenes material, or a skip that says why."""
    root = Path(os.environ.get("BEV_NUSCENES", ROOT.parent / "shared" / "nuscenes"))
    if not (root / "v1.0-mini").is_dir():
        pytest.skip(f"no nuScenes material at $BEV_NUSCENES or {root}")
    return root


@pytest.fixture(scope="session")
def synthetic_nuscenes(tmp_path_factory):
    """A made-up dataroot of version v1.0-mini: two scenes of five key frames. Not to be changed by tests."""
    return write_nuscenes(tmp_path_factory.mktemp("synthetic_nuscenes"))
