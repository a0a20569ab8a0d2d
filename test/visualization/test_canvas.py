"""What pictures are made of."""

import dataclasses

import numpy as np
import pytest

from bev_perception.visualization.canvas import BirdsEye, dashed_line, decode_views, draw_cameras, draw_caption, fixed

WHITE = (255, 255, 255)


@pytest.mark.parametrize(("length", "dashes"), [(4.0, 1), (30.0, 3), (200.0, 17)])
def test_a_dashed_line_begins_and_ends_with_a_dash(length, dashes):
    canvas = np.zeros((9, 240, 3), np.uint8)
    dashed_line(canvas, fixed(np.array([10.0, 4.0])), fixed(np.array([10.0 + length, 4.0])), WHITE)
    on = canvas[4, :, 0] > 127
    edges = np.flatnonzero(np.diff(on.astype(int)))
    assert len(edges) == 2 * dashes
    assert abs(edges[0] + 1 - 10) <= 1 and abs(edges[-1] - 10 - length) <= 1
    assert not canvas[:2].any() and not canvas[7:].any()


def test_pixels_of_the_view_from_above():
    view = BirdsEye(240, reach=54.0)  # 2 pixels a metre
    pixels = view.pixels(np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [-20.0, -5.0], [1e9, -1e9]]))
    np.testing.assert_allclose(pixels[:4], [(120, 120), (120, 100), (100, 120), (130, 160)])
    assert np.abs(pixels[4]).max() <= 5 * 240  # OpenCV cannot draw as far out as that


def test_tiles_fill_the_rows_asked_for(frame_and_images):
    frame, images = frame_and_images
    seen = []
    for rows, shape in ((1, (90, 960, 3)), (2, (180, 480, 3)), (4, (360, 320, 3))):
        picture = draw_cameras(frame, images, (160, 90), rows, lambda tile: seen.append(tile.name))
        assert picture.shape == shape
    assert sorted(seen) == sorted(3 * frame.cameras)


def test_images_that_cannot_be_decoded_are_left_out(bag_frames):
    frame = bag_frames[0]
    assert set(decode_views(frame)) == set(frame.cameras)
    first, *others = frame.views
    broken = dataclasses.replace(first, image=dataclasses.replace(first.image, data=b"no jpeg"))
    views = (broken, None, *others[1:])
    left = decode_views(dataclasses.replace(frame, views=views))
    assert set(left) == set(frame.cameras[2:])


@pytest.mark.parametrize("width", [60, 500, 2000])
def test_a_caption_of_any_width(width):
    strip = draw_caption(width, "a note " * 30, "the state")
    assert strip.shape[1] == width
    # what is to the right does not run into what is to the left
    assert (draw_caption(width, "", "the state")[:, -40:] == strip[:, -40:]).all()
