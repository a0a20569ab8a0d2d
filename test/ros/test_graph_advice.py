"""What the node says when nothing arrives."""

import re

import pytest

from bev_perception.ros.graph_advice import COMPRESSED_IMAGE, IMAGE, Wanted, advice

RAW = Wanted("/cam_front/image_raw", IMAGE, "~/input/cam_front/image", "cam_front")
SMALL = Wanted("/cam_front/image_raw/compressed", COMPRESSED_IMAGE, "~/input/cam_front/image/compressed", "cam_front")


@pytest.mark.parametrize(
    ("wanted", "published", "expected"),
    [
        (RAW, {SMALL.name: {COMPRESSED_IMAGE}}, "/compressed is there: image_transport:=compressed"),
        (SMALL, {"/cam_front/image_raw": {IMAGE}}, "/cam_front/image_raw is there: image_transport:=raw"),
        (RAW, {"/cam_front/image_raw": {COMPRESSED_IMAGE}}, "of type .*CompressedImage: image_transport:=compressed"),
        (RAW, {"/cam_front/image_raw": {"std_msgs/msg/String"}}, "of type std_msgs/msg/String: remap"),
        (RAW, {"/cam_front/image_raw": {IMAGE}}, "advertised, but nothing is sent"),
        (
            RAW,
            {"/sensing/cam_front/image": {IMAGE}, "/sensing/cam_back/image": {IMAGE}},
            "-r ~/input/cam_front/image:=/sensing/cam_front/image",
        ),
        (RAW, {"/cam_front/image_rw": {IMAGE}, "/b": {IMAGE}}, ":=/cam_front/image_rw"),
        (RAW, {"/a": {IMAGE}, "/b": {IMAGE}}, "there are /a, /b: remap with -r ~/input/cam_front/image:=TOPIC"),
        (RAW, {"/a/compressed": {COMPRESSED_IMAGE}}, "there are /a/compressed: image_transport:=compressed and remap"),
        (RAW, {"/scan": {"sensor_msgs/msg/LaserScan"}}, "is the driver running, with the same ROS_DOMAIN_ID"),
        (RAW, {f"/c{k}": {IMAGE} for k in range(9)}, "and 5 more"),
    ],
)  # fmt: skip
def test_what_is_there_is_named_with_the_remedy(wanted, published, expected):
    found = advice(wanted, {topic: frozenset(types) for topic, types in published.items()})
    assert re.search(expected, found), found
    assert len(found) < 400


def test_a_qos_that_does_not_fit_is_said():
    assert advice(RAW, {RAW.name: frozenset({IMAGE})}, "its publisher is best effort") == "its publisher is best effort"
