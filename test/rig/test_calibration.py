"""Faults planted in camera_info are named; nothing else is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.rig.calibration import check_calibration, view_width
from bev_perception.rig.description import RigCamera
from bev_perception.rig.findings import FAIL, LEVELS, OK, WARN, table, to_json, worst
from rig.kit import bad, calibration, camera, info_of, levels


def test_a_plausible_camera_is_ok():
    assert bad(check_calibration(camera())) == []
    lens = calibration(model="plumb_bob", d=(-0.3, 0.1, 0.0, 0.0, 0.0))
    assert bad(check_calibration(camera(lens=lens))) == []


@pytest.mark.parametrize(
    ("lens", "check", "level"),
    [
        (calibration(fy=900.0), "focal lengths", WARN),
        (calibration(fy=2000.0), "focal lengths", FAIL),
        (calibration(focal=2500.0), "field of view", WARN),
        (calibration(focal=40000.0), "field of view", FAIL),
        (calibration(center=(150.0, 225.0)), "principal point", WARN),
        (calibration(center=(900.0, 500.0)), "principal point", FAIL),
    ],
)
def test_intrinsics_that_no_camera_has(lens, check, level):
    found = levels(check_calibration(camera(lens=lens)))
    assert found.pop(f"cam: {check}") == level
    assert worst_of(found) == OK


def worst_of(found):
    return max(found.values(), key=LEVELS.index)


def test_k_of_a_picture_twice_as_large_is_named_with_the_factor():
    lens = calibration(focal=1260.0, center=(800.0, 450.0))
    (finding,) = (f for f in check_calibration(camera(lens=lens)) if f.check == "principal point")
    assert finding.level == FAIL
    assert "2 times as large" in finding.remedy


def test_binning_that_is_applied_twice_is_named():
    halved = calibration(focal=315.0, size=(400, 225))  # what K, size and binning 2 give
    info = info_of(calibration(), binning=(2, 2))
    seen = camera(lens=halved, info=info, picture_size=(800, 450))
    (finding,) = (f for f in check_calibration(seen) if f.level != OK)
    assert (finding.check, finding.level) == ("picture size", FAIL)
    assert "applied twice" in finding.remedy
    assert bad(check_calibration(replace(seen, picture_size=(400, 225)))) == []


@pytest.mark.parametrize(
    ("size", "words"), [((400, 225), "scaled by 0.5"), ((450, 800), "swapped"), ((800, 400), "cropped")]
)
def test_pictures_of_another_size(size, words):
    findings = [f for f in check_calibration(camera(picture_size=size)) if f.level != OK]
    assert [f.check for f in findings] == ["picture size"]
    assert words in findings[0].figure + findings[0].remedy


def test_a_region_beyond_the_sensor():
    info = info_of(calibration(), roi=(500, 0, 400, 450))
    assert bad(check_calibration(camera(info=info))) == ["region of interest"]
    assert bad(check_calibration(camera(info=info_of(calibration(), roi=(0, 0, 800, 450))))) == []


def test_r_and_p_that_do_not_belong_to_k():
    lens = calibration()
    p = np.c_[2 * lens.intrinsics, np.zeros(3)]
    assert bad(check_calibration(camera(info=info_of(lens, p=p)))) == ["R and P"]
    turned = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert bad(check_calibration(camera(info=info_of(lens, r=turned)))) == ["R and P"]
    unset = info_of(lens, r=np.zeros((3, 3)), p=np.zeros((3, 4)))
    assert bad(check_calibration(camera(info=unset))) == []


def test_rectified_pictures_with_a_raw_calibration():
    lens = calibration(model="plumb_bob", d=(-0.3, 0.1, 0.0, 0.0, 0.0))
    assert bad(check_calibration(camera(lens=lens, topic="/front/image_rect_color"))) == ["rectified pictures"]
    assert bad(check_calibration(camera(lens=lens, topic="/front/image_raw"))) == []


def test_no_camera_info_fails_with_its_reason():
    (finding,) = check_calibration(RigCamera("cam", calibration_error="K holds NaN"))
    assert finding.level == FAIL
    assert finding.figure == "K holds NaN"


def test_fisheye_views_beyond_180_degrees_are_measured():
    lens = calibration(focal=260.0, size=(900, 900), model="equidistant", d=(1e-6, 0.0, 0.0, 0.0))
    assert view_width(lens) == pytest.approx(np.degrees(900 / 260), abs=1)


@settings(deadline=None, max_examples=40)
@given(
    focal=st.floats(1e-3, 1e7),
    fy=st.floats(1e-3, 1e7),
    x=st.floats(-1e6, 1e6),
    y=st.floats(-1e6, 1e6),
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    lens=st.sampled_from([("", ()), ("plumb_bob", 5), ("rational_polynomial", 8), ("equidistant", 4)]),
    d=st.lists(st.floats(-1e3, 1e3), min_size=8, max_size=8),
)
def test_any_calibration_gets_findings(focal, fy, x, y, size, lens, d):
    model, count = lens
    wild = calibration(focal, size, (x, y), fy, model, tuple(d[:count]) if count else ())
    with np.errstate(all="ignore"):
        findings = list(check_calibration(camera(lens=wild)))
    assert {"focal lengths", "field of view", "principal point"} <= {f.check for f in findings}
    assert to_json(findings)["level"] == worst(findings)
    assert table(findings).count("\n") >= len(findings)
