"""What there is in the made-up world: all classes, all kinds of light, lights for all who come to a junction."""

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.synth.ground import edge_distance, make_ground
from bev_perception.synth.roads import make_streets
from bev_perception.synth.scenery import Scenery
from bev_perception.synth.shading import make_light
from bev_perception.synth.world import make_world


def test_a_few_scenes_hold_all_classes():
    found = {
        category_to_detection_name(thing.category)
        for scene in range(4)
        for thing in make_world((0, scene, 0), 4.0).things
    }
    assert set(NUSCENES_CLASSES) <= found


def test_light_and_weather():
    drawn = {}
    for seed in range(60):
        light, kind = make_light(np.random.default_rng(seed))
        drawn.setdefault(kind, []).append(light)
    assert drawn.keys() == {"sunny", "cloudy", "dusk", "rain"}
    brightness = {
        kind: np.mean([light.sunshine + light.skylight for light in lights]) for kind, lights in drawn.items()
    }
    assert min(brightness, key=brightness.get) == "dusk" and max(brightness, key=brightness.get) == "sunny"
    assert min(light.haze_density for light in drawn["rain"]) > max(light.haze_density for light in drawn["sunny"])
    assert all(light.wet == (kind == "rain") for kind, lights in drawn.items() for light in lights)
    assert all(light.sun[2] < 0.3 for light in drawn["dusk"])


def test_traffic_lights_stand_on_pavements_and_face_who_comes():
    """Also for who comes to the end of a street."""
    tees = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        streets = make_streets(rng, 400)
        scenery = Scenery(rng, streets, ground := make_ground(streets, rng))
        lights = scenery.put_up_signals()
        for o, junction, _ in lights:
            x, y, _, yaw = scenery.things[o].place
            assert edge_distance(ground, x, y) > 0
            middle = streets.junctions[junction].street.at(0.0, 0.0)[:2]
            towards = np.array([np.cos(yaw), np.sin(yaw)])
            assert (middle - (x, y)) @ towards > 0, "it shows its back to the junction and all who come through it"
        for number, junction in enumerate(streets.junctions):
            groups = [group for _, k, group in lights if k == number]
            assert groups.count(0) == 2
            if junction.tee:
                assert groups.count(2) == 1
                tees += 1
    assert tees >= 3
