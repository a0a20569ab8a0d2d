import numpy as np
import pytest

from bev_perception.strict import UserError
from bev_perception.types import Calibration

K = np.array([[1000.0, 0, 800], [0, 1000, 450], [0, 0, 1]])


def test_an_ideal_lens_has_no_distortion_whatever_it_is_called():
    for model, d in (("plumb_bob", (0,) * 5), ("rational_polynomial", (0,) * 8), ("", ()), ("equidistant", ())):
        assert Calibration(K, 1600, 900, model, d).distortion == ()


@pytest.mark.parametrize(
    ("name", "d", "model"),
    [
        ("radtan", (0.1, 0.2, 0.3, 0.4), "plumb_bob"),
        ("Brown Conrady", (0.1, 0.2, 0.3, 0.4, 0.5), "plumb_bob"),
        ("Plumb Bob", (0.1, 0.2, 0.3, 0.4, 0.5), "plumb_bob"),
        ("RATIONAL_POLYNOMIAL", (0.1,) * 8, "rational_polynomial"),
        ("equi", (0.1, 0.2, 0.3, 0.4), "equidistant"),
        ("fisheye", (0.1, 0.2, 0.3, 0.4), "equidistant"),
        ("fisheye", (0.0,) * 4, "equidistant"),
        ("kb4", (0.1, 0.2, 0.3, 0.4, 0.0), "equidistant"),
        ("kannala_brandt", (0.0,) * 4, "equidistant"),
        ("Kannala Brandt4", (0.1, 0.2, 0.3, 0.4, 0.0), "equidistant"),
    ],
)
def test_lens_models_go_by_other_names(name, d, model):
    named, meant = Calibration(K, 1600, 900, name, d), Calibration(K, 1600, 900, model, d)
    assert (named.distortion_model, named.distortion) == (model, meant.distortion) and named.distortion


def test_an_equidistant_lens_bends_without_coefficients():
    assert Calibration(K, 1600, 900, "equidistant", (0, 0, 0, 0)).distortion == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("model", "d", "kept"),
    [
        ("equidistant", (0.1, 0.2, 0.3, 0.4, 0.0), 4),
        ("equidistant", (0.1, 0.0, 0.0, 0.0, *[0.0] * 10), 4),
        ("plumb_bob", (0.1, 0.2, 0.0, 0.0), 4),
        ("plumb_bob", (0.1, 0.2, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0), 5),
        ("plumb_bob", (0.1, 0.0, 0.0, 0.0, 0.0, 0.0), 4),
        ("rational_polynomial", (0.1, 0.0, 0.0, 0.0, 0.0, 0.2, *[0.0] * 8), 8),
        ("rational_polynomial", (*[0.1] * 12, 0.0, 0.0), 12),
        ("rational_polynomial", (0.1,) * 12, 12),
        ("rational_polynomial", (*[0.0] * 13, 0.1), 14),
        ("rational_polynomial", (0.1,) * 14, 14),
        ("plumb_bob", (0.1,) * 8, 8),
    ],
)
def test_zeros_that_fill_up_d_are_left_out(model, d, kept):
    assert Calibration(K, 1600, 900, model, d).distortion == d[:kept]


def broken(row, column, value):
    k = K.copy()
    k[row, column] = value
    return k


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((broken(0, 2, np.nan), 1600, 900), "NaN"),
        ((np.zeros((3, 3)), 1600, 900), "no calibration"),
        ((broken(2, 2, 0), 1600, 900), "last row of K"),
        ((K, 0, 900), "0x900 pixels"),
        ((K, 1600, 900, "plumb_bob", (0.1, np.inf, 0, 0, 0)), "D of CameraInfo holds"),
        ((K, 1600, 900, "thin_prism", (0.1,)), "'thin_prism' is unknown; supported: plumb_bob"),
        ((K, 1600, 900, "", (0.1,) * 5), "names no distortion model, but D has 5 coefficients; supported: plumb_bob"),
        ((K, 1600, 900, "pinhole", (0.1,) * 5), "'pinhole' has no distortion, but D has 5 coefficients"),
        ((K, 1600, 900, "ftheta", (0.0,) * 4), "'ftheta' is unknown; .*equidistant or equi or fisheye"),
        ((K, 1600, 900, "omnidirectional", ()), "'omnidirectional' is unknown"),
        ((K, 1600, 900, "inverse_brown_conrady", (0.1,) * 5), "'inverse_brown_conrady' is unknown"),
        ((K, 1600, 900, "kb8", (0.1,) * 8), "'kb8' is unknown"),
        ((K, 1600, 900, "fisheye", (0.1, 0.2, 0.3, 0.4, 0.5)), "equidistant takes .4,. coefficients.*has 5"),
        ((K, 1600, 900, "equidistant", (0.1, 0.2)), "takes .4,. coefficients.*has 2"),
        ((K, 1600, 900, "equidistant", (0.1, 0.2, 0, 0, 0.5)), "takes .4,. coefficients.*has 5"),
        ((K, 1600, 900, "plumb_bob", (0.1, 0.2, 0)), "coefficients.*has 3"),
        ((K, 1600, 900, "plumb_bob", (0.1,) * 7), "coefficients.*has 7"),
        ((K, 1600, 900, "rational_polynomial", (0.1,) * 15), "coefficients.*has 15"),
    ],
)
def test_impossible_calibrations_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Calibration(*arguments)


def test_calibrations_with_nan_in_p_are_equal():
    def with_p(value):
        intrinsics = np.array([[400.0, 0, 320], [0, 400, 240], [0, 0, 1]])
        return Calibration(intrinsics, 640, 480, projection=np.full((3, 3), value))

    assert with_p(np.nan).equals(with_p(np.nan))
    assert not with_p(np.nan).equals(with_p(1.0))
