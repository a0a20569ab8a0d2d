"""Cameras that are found in a bag by their topics, and rules with patterns."""

import pytest

from bev_perception.data.bag_topics import choose, find_cameras, read_rules, ready_to_paste
from bev_perception.data.drive import CAMERAS
from bev_perception.data.rosbag import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, INPUT_PREFIX, BagTopic
from bev_perception.strict import UserError


def topics(*named, count=5):
    return [BagTopic(name, kind, (), count) for name, kind in named]


def camera(folder, *images, kind=IMAGE):
    return [*((f"{folder}/{image}", kind) for image in images), (f"{folder}/camera_info", CAMERA_INFO)]


def test_an_image_beside_a_camera_info_is_a_camera():
    found = find_cameras(
        topics(
            *camera("/sensing/front/camera", "image_raw"),
            *camera("/sensing/back/camera", "image_raw"),
            ("/sensing/back/camera/image_raw/compressed", COMPRESSED_IMAGE),
            ("/map/image", IMAGE),
            ("/sensing/front/camera/depth/points", "sensor_msgs/msg/PointCloud2"),
            ("/lidar/camera_info", CAMERA_INFO),
        )
    )
    assert [c.name for c in found] == ["back", "front"]
    cameras, remap = choose(found, None, INPUT_PREFIX)
    assert cameras == ("back", "front")
    assert remap == {
        "/sensing/back/camera/image_raw/compressed": "/bev_perception/input/back/image/compressed",
        "/sensing/back/camera/camera_info": "/bev_perception/input/back/camera_info",
        "/sensing/front/camera/image_raw": "/bev_perception/input/front/image",
        "/sensing/front/camera/camera_info": "/bev_perception/input/front/camera_info",
    }
    assert choose(found, ["front"], "/x")[1]["/sensing/front/camera/image_raw"] == "/x/front/image"
    assert choose(found, ["left"], "/x") is None


def test_the_six_of_nuscenes_keep_their_names_and_order():
    named = [t for c in CAMERAS for t in camera(f"/{c.upper()}", "image_rect_compressed", kind=COMPRESSED_IMAGE)]
    cameras, remap = choose(find_cameras(topics(*named)), None, INPUT_PREFIX)
    assert cameras == CAMERAS
    assert remap["/CAM_BACK/image_rect_compressed"] == "/bev_perception/input/cam_back/image/compressed"


def test_several_readings_are_listed_to_choose_from():
    found = find_cameras(topics(*camera("/front", "image_raw", "image_rect"), *camera("/rear-view", "image")))
    assert choose(found, None, INPUT_PREFIX) is None
    text = ready_to_paste(found, INPUT_PREFIX)
    assert "--remap /front/image_raw:=/bev_perception/input/front/image" in text
    assert "--remap /front/image_rect:=/bev_perception/input/front/image" in text
    assert "--cameras front rear_view" in text
    assert choose([], None, "") is None and "no image topic" in ready_to_paste([], "")
    assert find_cameras(topics(*camera("/front", "image"), count=0)) == []


def test_one_camera_is_called_by_the_last_part():
    (found,) = find_cameras(topics(*camera("/robot/2nd", "image")))
    assert found.name == "camera_2nd"


def test_a_star_stands_for_one_part_of_a_name():
    there = topics(("/a/front/image", IMAGE), ("/a/back/image", IMAGE), ("/a/b/c/image", IMAGE))
    assert read_rules(["/a/*/image:=/n/*/image", "/tf_old:=/tf"], there) == {
        "/a/front/image": "/n/front/image",
        "/a/back/image": "/n/back/image",
        "/tf_old": "/tf",
    }
    for rule, text in (
        ("/a/front/image", "names one topic"),
        (":=/x", "names one topic"),
        ("/b/*:=/n/*", "no topic of the bag fits; it has /a/b/c/image"),
        ("/a/*/image:=/*/*", "more \\* behind"),
    ):
        with pytest.raises(UserError, match=text):
            read_rules([rule], there)
