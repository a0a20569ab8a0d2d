"""Pictures, lidar, boxes and occupancy tell of one world."""

import cv2
import numpy as np
import pytest
from small_world import SETTINGS

from bev_perception.classes import NUSCENES_CLASSES, OCC3D_CLASSES
from bev_perception.data.records import open_split
from bev_perception.evaluation.detection import score_results
from bev_perception.evaluation.submissions import write_submission
from bev_perception.geometry import box_corners, make_transform, rotation_from_quaternion, transform_points
from bev_perception.synth.lidar import NOISE_LIMIT, sweep
from bev_perception.synth.pictures import Photographer, visibility
from bev_perception.synth.settings import CAMERAS, RIGS, cameras_of
from bev_perception.types import OCC3D_GRID

FREE = len(OCC3D_CLASSES) - 1


@pytest.fixture(scope="module")
def photographer(world):
    return Photographer(world, cameras_of(SETTINGS), np.random.default_rng(0), tail=True)


def boxes_at(world, time):
    """Return corners [n, 8, 3] of all boxes, NaN for what has none."""
    places = world.places_at(time)[:-1]
    corners = np.full((len(places), 8, 3), np.nan)
    for o, thing in enumerate(world.things):
        if thing.category:
            middle, size = thing.box
            x, y, z, yaw = places[o]
            c, s = np.cos(yaw), np.sin(yaw)
            center = (x + c * middle[0] - s * middle[1], y + s * middle[0] + c * middle[1], z + middle[2])
            corners[o] = box_corners(np.array([center]), size[None], np.array([yaw]))[0]
    return corners


def test_projected_boxes_cover_the_pixels_of_their_objects(world, photographer):
    checked = tight = 0
    for channel in CAMERAS:
        for time in (0.0, 1.2):
            view = photographer.take(channel, time, with_extent=True)
            camera = photographer.camera(channel, world.ego2global(time))
            for o in np.flatnonzero(view.seen[:-1] > 30):
                if not world.things[o].category:
                    continue
                points = (boxes_at(world, time)[o] - camera.position) @ camera.rotation.T
                if points[:, 2].min() < 0.3:  # reaches behind the camera
                    continue
                pixels = points[:, :2] / points[:, 2:] * (camera.fx, camera.fy) + (camera.cx, camera.cy)
                hull = cv2.convexHull(pixels.astype(np.float32))
                rows, columns = np.nonzero(view.owners == o)
                outside = [
                    -cv2.pointPolygonTest(hull, (float(x), float(y)), True) for x, y in zip(columns, rows, strict=True)
                ]
                assert max(outside) < 0.75, world.things[o].category
                # and they are tight: a car that nothing hides fills its box from side to side
                car = world.things[o].category == "vehicle.car" and view.seen[o] == view.extent[o] > 300
                if car and columns.min() > 0 and columns.max() < 399:
                    assert np.ptp(columns) > 0.85 * np.ptp(hull[:, 0, 0])
                    tight += 1
                checked += 1
    assert checked > 60 and tight > 3


def test_visibility_counts_what_is_hidden(world, photographer):
    """Drawn alone, an object shows as many pixels as are said to be there if nothing hid it."""
    from bev_perception.synth.pictures import draw
    from bev_perception.synth.rasterizer import draw_objects, new_canvas

    view = photographer.take("CAM_FRONT", 0.5, with_extent=True)
    assert (view.seen <= view.extent).all()
    hidden = np.flatnonzero((view.seen[:-1] < 0.7 * view.extent[:-1]) & (view.extent[:-1] > 100))[:10]
    assert len(hidden) >= 3
    camera = photographer.camera("CAM_FRONT", world.ego2global(0.5))
    canvas = new_canvas(SETTINGS.image_size, len(world.solids.classes))
    for o in hidden:
        draw(world, world.solids, world.poses_at(0.5), camera, canvas)
        canvas.depths.fill(0)
        canvas.owners.fill(-1)
        draw_objects(
            world.solids, world.poses_at(0.5), camera, world.light, world.ground.texture, np.array([o]), False, canvas
        )
        assert (canvas.owners == o).sum() == view.extent[o]
    assert [visibility(s, 100) for s in (0, 39, 41, 61, 79, 81, 100)] == ["1", "1", "2", "3", "3", "4", "4"]
    assert visibility(0, 0) == "1"


def test_lidar_points_lie_in_the_boxes_of_what_they_hit(world):
    for time in (0.0, 1.0):
        lidar2global = world.ego2global(time) @ RIGS[0]["LIDAR_TOP"].sensor2ego
        points, owners = sweep(
            world.solids_at(time), world.poses_at(time), world.ground, lidar2global, 0.0, np.random.default_rng(0)
        )
        in_world = transform_points(lidar2global, points[:, :3].astype(np.float64))
        corners = boxes_at(world, time)
        hit = 0
        for o in np.unique(owners[owners >= 0]):
            if not world.things[o].category:
                continue
            mine, (a, b, c, d) = in_world[owners == o], corners[o, [2, 1, 3, 6]]
            for corner in (b, c, d):
                along = (mine - a) @ (corner - a) / np.linalg.norm(corner - a)
                assert along.min() > -NOISE_LIMIT and along.max() < np.linalg.norm(corner - a) + NOISE_LIMIT
            hit += 1
        assert hit > 15
        ground = in_world[owners == -1]
        assert np.abs(ground[:, 2]).max() < 0.2 and len(ground) > 5000


def test_numbers_of_points_are_the_devkits(devkit):
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    counts = []
    for sample in devkit.sample:
        path, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            counts.append(devkit.get("sample_annotation", box.token)["num_lidar_pts"])
            assert points_in_box(box, points).sum() == counts[-1]
    assert len(counts) > 200 and np.count_nonzero(counts) > 100


def test_boxes_show_in_the_pictures(devkit):
    """What is said to be visible lies in some camera's picture."""
    from nuscenes.utils.geometry_utils import BoxVisibility, box_in_image

    for sample in devkit.sample[::3]:
        shown = set()
        for channel in CAMERAS:
            _, boxes, matrix = devkit.get_sample_data(sample["data"][channel], box_vis_level=BoxVisibility.ANY)
            shown |= {box.token for box in boxes if box_in_image(box, matrix, (400, 225), BoxVisibility.ANY)}
        rows = [devkit.get("sample_annotation", token) for token in sample["anns"]]
        visible = {row["token"] for row in rows if row["visibility_token"] != "1"}
        assert visible and len(visible - shown) <= 0.03 * len(visible)


def test_velocities_are_the_devkits(devkit):
    """A thing's velocity from its neighbours in time points where it faces and fits its attribute."""
    moving = 0
    for row in devkit.sample_annotation:
        velocity = devkit.box_velocity(row["token"])[:2]
        speed = np.linalg.norm(velocity)
        attributes = [devkit.get("attribute", token)["name"] for token in row["attribute_tokens"]]
        if "vehicle.parked" in attributes or not attributes:
            assert not speed > 1e-6
        if np.isnan(speed) or speed < 1.5 or attributes[0].startswith("pedestrian"):
            continue
        w, _, _, z = row["rotation"]
        heading = 2 * np.arctan2(z, w)
        assert velocity @ (np.cos(heading), np.sin(heading)) > 0.9 * speed
        assert attributes[0] in ("vehicle.moving", "cycle.with_rider")
        moving += 1
    assert moving > 20


def test_velocities_agree_with_the_world(devkit, world):
    name = devkit.scene[0]["name"]
    sample = devkit.get("sample", devkit.scene[0]["first_sample_token"])
    sample = devkit.get("sample", sample["next"])
    assert name == "synth-003-0000"
    time = (sample["timestamp"] - 1_600_000_000_000_000) * 1e-6
    speeds, places, differences = world.speeds_at(time), world.places_at(time), []
    for token in sample["anns"]:
        row = devkit.get("sample_annotation", token)
        speed = np.linalg.norm(devkit.box_velocity(token)[:2])
        nearest = np.linalg.norm(places[:-1, :2] - row["translation"][:2], axis=1)
        mine = [o for o in np.argsort(nearest)[:6] if world.things[o].category == row["category_name"]]
        if mine and row["prev"] and row["next"]:
            differences.append(abs(speed - speeds[mine[0]]))
    assert len(differences) > 20 and np.median(differences) < 0.05 and np.percentile(differences, 90) < 0.5


def voxels(points):
    return np.floor((points - OCC3D_GRID.origin) / OCC3D_GRID.resolution).astype(int)


def labels_of(dataroot, devkit):
    for sample in devkit.sample[::2]:
        scene = devkit.get("scene", sample["scene_token"])["name"]
        with np.load(dataroot / "gts" / scene / sample["token"] / "labels.npz") as stored:
            yield sample, dict(stored)


def test_occupancy_agrees_with_the_lidar(dataroot, devkit):
    """Where a ray ends something is within a voxel; where it has passed, nothing is, but for that voxel's width."""
    for sample, labels in labels_of(dataroot, devkit):
        semantics = labels["semantics"]
        lidar = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        mount = devkit.get("calibrated_sensor", lidar["calibrated_sensor_token"])

        lidar2ego = make_transform(rotation_from_quaternion(*mount["rotation"]), np.array(mount["translation"]))
        points = np.fromfile(dataroot / lidar["filename"], np.float32).reshape(-1, 5)[:, :3]
        ends = transform_points(lidar2ego, points.astype(np.float64))
        inside = (np.abs(ends[:, :2]) < 39).all(axis=1) & (ends[:, 2] > -0.6) & (ends[:, 2] < 5)
        ends, origin = ends[inside], lidar2ego[:3, 3]
        around = cv2.dilate((semantics != FREE).astype(np.uint8).reshape(200, -1), np.ones((3, 1), np.uint8)).reshape(
            semantics.shape
        )
        around = (
            cv2.dilate(around.transpose(1, 0, 2).reshape(200, -1), np.ones((3, 1), np.uint8))
            .reshape(200, 200, 16)
            .transpose(1, 0, 2)
        )
        around |= np.roll(around, 1, axis=2) | np.roll(around, -1, axis=2)
        i, j, k = voxels(ends).T
        assert around[i, j, k].mean() > 0.9999
        assert (semantics[i, j, k] != FREE).mean() > 0.97
        assert labels["mask_lidar"][i, j, k].mean() > 0.97
        # along the ray, up to 0.8 m before its end; a flat one touches the ground's voxels long before it ends,
        # and one along a house's front those of the house
        lengths = np.linalg.norm(ends - origin, axis=1)
        shares = np.linspace(0.05, 1, 25)[:, None] * np.maximum(lengths - 0.8, 0) / lengths
        passed = origin + shares[..., None] * (ends - origin)
        i, j, k = voxels(passed[passed[..., 2] > 0.6]).T
        assert (semantics[i, j, k] == FREE).mean() > 0.97


def test_instances_are_the_boxes(dataroot, devkit):
    """Voxels of one number are of one class, and lie in one box of that class, as far as a voxel tells."""
    for sample, labels in labels_of(dataroot, devkit):
        semantics, instances = labels["semantics"], labels["instances"]
        lidar = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        pose = devkit.get("ego_pose", lidar["ego_pose_token"])

        ego2global = make_transform(rotation_from_quaternion(*pose["rotation"]), np.array(pose["translation"]))
        boxes = [devkit.get_box(token) for token in sample["anns"]]
        found = 0
        for number in np.unique(instances[instances > 0]):
            cells = np.argwhere(instances == number)
            assert len(np.unique(semantics[instances == number])) == 1
            middles = transform_points(ego2global, np.array(OCC3D_GRID.origin) + (cells + 0.5) * OCC3D_GRID.resolution)
            inside = 0
            for box in boxes:
                local = (middles - box.center) @ box.rotation_matrix
                inside = max(inside, (np.abs(local) < box.wlh[[1, 0, 2]] / 2 + 0.36).all(axis=1).mean())
            found += inside > 0.98
        assert found >= 0.95 * instances.max() > 5
        things = np.isin(semantics, [OCC3D_CLASSES.index(name) for name in NUSCENES_CLASSES])
        assert (instances[things] > 0).all() and set(labels) == {"semantics", "instances", "mask_lidar", "mask_camera"}


def test_cameras_see_what_is_in_front_of_things(dataroot, devkit):
    for _, labels in labels_of(dataroot, devkit):
        seen, filled = labels["mask_camera"].astype(bool), labels["semantics"] != FREE
        assert 0.05 < seen.mean() < 0.8
        # the road ahead is seen, the insides of the blocks at the sides are not
        assert seen[110:140, 95:105, 2:4].any(axis=2).mean() > 0.9
        assert 0.02 < seen[filled].mean() < 0.9


def test_truth_as_result_is_perfect(devkit, dataroot, tmp_path):
    """DetectionEval reads the tables and our splits; what the tables say of themselves scores full marks."""
    records = open_split(dataroot, "v1.0-synth", "synth_val")
    attributes = {row["token"]: row["name"] for row in devkit.attribute}
    results, present = {}, set()
    for i, token in enumerate(records.tokens):
        names = records.annotations(i).names.tolist()
        rows = [devkit.get("sample_annotation", t) for t in devkit.get("sample", token)["anns"]]
        assert len(rows) == len(names)
        results[token] = [
            {
                "sample_token": token,
                "translation": row["translation"],
                "size": row["size"],
                "rotation": row["rotation"],
                "velocity": np.nan_to_num(devkit.box_velocity(row["token"])[:2]).tolist(),
                "detection_name": name,
                "detection_score": 0.5,
                "attribute_name": next((attributes[t] for t in row["attribute_tokens"]), ""),
            }
            for row, name in zip(rows, names, strict=True)
            if name in NUSCENES_CLASSES and row["num_lidar_pts"] > 0
        ]
        ego = records.ego2global(i)[:2, 3]
        present |= {r["detection_name"] for r in results[token] if np.hypot(*(r["translation"][:2] - ego)) < 30}
    write_submission(results, tmp_path / "results.json")
    scores = score_results(tmp_path / "results.json", dataroot, "v1.0-synth", "synth_val", tmp_path / "out")
    assert len(present) >= 4
    for name in present:
        assert scores.class_aps[name] > 0.99, name
        assert np.nanmax(list(scores.class_errors[name].values())) < 1e-3
