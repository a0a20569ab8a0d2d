"""Every shape is made of convex hulls with flat faces that look outwards, stands on the ground and has a real size."""

import numpy as np
import pytest

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.synth import people, street, vehicles
from bev_perception.synth.shapes import Material, Part, Shape, Surface, ball, bar, block, dome
from bev_perception.synth.solids import flatten
from bev_perception.synth.things import Thing

# maker, class of Occ3D, mean size in nuScenes (length, width, height in m), how far off it may be
OBJECTS = {
    "car": (vehicles.car, "car", (4.6, 1.95, 1.7), 0.25),
    "pickup": (vehicles.pickup, "truck", (5.9, 2.2, 2.0), 0.25),
    "box_truck": (vehicles.box_truck, "truck", (6.9, 2.5, 2.8), 0.35),
    "dump_truck": (vehicles.dump_truck, "truck", (6.9, 2.5, 2.8), 0.35),
    "tractor": (vehicles.tractor, "truck", (6.9, 2.5, 3.2), 0.35),
    "trailer": (vehicles.trailer, "trailer", (11.0, 2.6, 3.6), 0.4),
    "bus": (vehicles.bus, "bus", (11.0, 2.9, 3.5), 0.25),
    "excavator": (vehicles.excavator, "construction_vehicle", (5.8, 2.6, 3.0), 0.4),
    "wheel_loader": (vehicles.wheel_loader, "construction_vehicle", (5.8, 2.6, 3.0), 0.4),
    "roller": (vehicles.roller, "construction_vehicle", (4.8, 2.4, 2.9), 0.4),
    "adult": (people.pedestrian, "pedestrian", (0.73, 0.67, 1.75), 0.4),
    "child": (lambda rng: people.pedestrian(rng, "child"), "pedestrian", (0.6, 0.5, 1.3), 0.4),
    "sitting": (people.sitting_pedestrian, "pedestrian", (0.65, 0.6, 1.4), 0.3),
    "bicycle": (lambda rng: people.bicycle(rng, False), "bicycle", (1.75, 0.6, 1.15), 0.2),
    "cyclist": (lambda rng: people.bicycle(rng, True), "bicycle", (1.75, 0.6, 1.75), 0.2),
    "motorcycle": (lambda rng: people.motorcycle(rng, False), "motorcycle", (2.1, 0.75, 1.2), 0.25),
    "motorcyclist": (lambda rng: people.motorcycle(rng, True), "motorcycle", (2.1, 0.75, 1.75), 0.25),
    "cone": (street.traffic_cone, "traffic_cone", (0.41, 0.41, 0.9), 0.25),
    "barrier": (lambda rng: street.barrier(rng, "concrete"), "barrier", (0.6, 2.3, 1.0), 0.2),
    "board": (lambda rng: street.barrier(rng, "board"), "barrier", (0.6, 2.3, 1.0), 0.25),
    "bin": (street.bin_, "others", (0.7, 0.7, 1.0), 0.3),
}
SCENERY = {
    "building": lambda rng: street.building(rng, 14.0, 10.0, rng.uniform(4, 20)),
    "wall": lambda rng: street.wall(rng, 8.0),
    "hedge": lambda rng: street.hedge(rng, 8.0),
    "tree": street.tree,
    "conifer": lambda rng: street.tree(rng, conifer=True),
    "bush": street.bush,
    "lamp": street.lamp_post,
    "signal": lambda rng: street.signal_post(),
    "sign": street.sign_post,
    "bench": street.bench,
    "shelter": street.shelter,
}


def check_hull(hull):
    for face in hull.faces:
        points = hull.vertices[list(face)]
        normal = np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0)
        normal /= np.linalg.norm(normal)
        offsets = (hull.vertices - points[0]) @ normal
        assert offsets.max() < 1e-6, "a corner lies outside of a face"
        assert np.abs(offsets[list(face)]).max() < 1e-6, "a face is not flat"
    edges = [(a, b) for face in hull.faces for a, b in zip(face, face[1:] + face[:1], strict=True)]
    assert sorted(edges) == sorted((b, a) for a, b in edges), "the surface is not closed"
    assert len(hull.faces) == len(hull.surfaces)


@pytest.mark.parametrize("name", [*OBJECTS, *SCENERY])
def test_hulls(name):
    rng = np.random.default_rng(0)
    maker = OBJECTS[name][0] if name in OBJECTS else SCENERY[name]
    for _ in range(6):
        shape = maker(rng)
        for part in shape.parts:
            check_hull(part.hull)
        # what reaches below the ground would be drawn on it
        assert -0.02 < shape.low[2] < 0.1


@pytest.mark.parametrize("name", OBJECTS)
def test_sizes_and_classes(name):
    maker, occupancy, size, off = OBJECTS[name]
    rng = np.random.default_rng(1)
    shapes = [maker(rng) for _ in range(12)]
    sizes = np.array([Thing(shape, "").box[1] for shape in shapes])
    np.testing.assert_allclose(sizes.mean(axis=0), size, rtol=off)
    assert {OCC3D_CLASSES[shape.occupancy] for shape in shapes} == {occupancy}
    assert np.ptp(sizes, axis=0).max() > 0.01 or name in ("barrier", "board", "bin"), "all are the same"


def test_turned_and_shifted_hulls():
    grey = Surface(Material.MATTE, (0.5, 0.5, 0.5))
    for hull in (
        block((1, 2, 3), (2, 3, 4), grey, taper=(0.5, 0.8)).moved((1, 0, 2), yaw=0.7, pitch=0.3),
        ball((0, 0, 1), (1, 2, 1), grey),
        dome((1, 2, 1.5), grey),
        bar((0, 0, 1), (1, 2, 0), 0.1, grey),
        bar((0, 0, 0), (0, 1, 0), 0.1, grey),
    ):
        check_hull(hull)
    turned = block((0, 0, 0), (2, 1, 1), grey).moved((0, 0, 0), pitch=0.5)
    assert turned.vertices[turned.vertices[:, 0] > 0.5, 2].mean() < 0, "a positive pitch lowers the nose"


def test_a_hull_that_compiled_code_has_no_room_for_is_refused():
    hull = ball((0, 0, 0), (1, 1, 1), Surface(Material.MATTE, (1, 1, 1)), 20, 9)
    with pytest.raises(ValueError, match=r"a hull has \d+ vertices, at most 128"):
        flatten([Shape((Part(hull),), 0)])


def test_flat_arrays_agree_with_the_hulls():
    rng = np.random.default_rng(2)
    shapes = [vehicles.car(rng), people.pedestrian(rng)]
    solids, swings = flatten(shapes)
    hulls = [part.hull for shape in shapes for part in shape.parts]
    face = 0
    for p, hull in enumerate(hulls):
        for corners in hull.faces:
            points = hull.vertices[list(corners)]
            plane, axes = solids.planes[face], solids.texture_axes[face]
            np.testing.assert_allclose(points @ plane[:3], plane[3], atol=1e-9)
            frame = np.stack([axes[0, :3], axes[1, :3], plane[:3]])
            np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-9)
            places = points @ axes[:, :3].T - axes[:, 3]
            np.testing.assert_allclose(places.min(axis=0), 0, atol=1e-9)
            np.testing.assert_allclose(places.max(axis=0), solids.texture_size[face], atol=1e-9)
            face += 1
        reach = np.linalg.norm(hull.vertices - solids.part_middle[p], axis=1).max()
        assert reach == pytest.approx(solids.part_radius[p])
    assert face == len(solids.planes)
    swinging = [i for i, part in enumerate(part for shape in shapes for part in shape.parts) if part.swing]
    assert swings.parts.tolist() == swinging and swinging
