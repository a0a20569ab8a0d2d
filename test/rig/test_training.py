"""Distances from the rig of the training."""

from dataclasses import replace

from bev_perception.families.variants import load_variant
from bev_perception.rig.check import check_rig
from bev_perception.rig.description import Rig
from bev_perception.rig.training import check_training
from rig.kit import bad, calibration, camera, looking, nuscenes_like

VARIANT = load_variant("sparsebev_tiny")


def found(rig: Rig):
    return list(check_training(rig, nuscenes_like(), VARIANT, "as_trained"))


def test_the_rig_of_the_training_is_at_no_distance():
    assert bad(found(nuscenes_like((1600, 900)))) == []
    assert bad(check_rig(nuscenes_like(), nuscenes_like(), VARIANT)) == []


def test_a_tele_lens_looks_nearer_by_its_factor():
    (finding,) = (f for f in found(Rig((camera(lens=calibration(focal=1400.0)),))) if f.check == "focal length")
    assert finding.level == "FAIL"
    assert "times larger" in finding.remedy


def test_portrait_pictures_lose_the_horizon():
    tall = camera(lens=calibration(focal=630.0, size=(800, 1056)))
    (finding,) = (f for f in found(Rig((tall,))) if f.check == "horizon")
    assert finding.level == "FAIL"
    assert "is cut off" in finding.figure


def test_low_cameras_and_a_base_above_the_ground():
    low = Rig((camera(pose=looking(at=(0.3, 0, 0.4))),))
    assert "height against training" in bad(found(low))
    assert "reference point" in bad(found(replace(low, base_height=0.9)))
    assert {"number of cameras", "coverage against training"} <= set(bad(found(low)))
