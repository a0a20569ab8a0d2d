"""Traffic keeps to the rules: nobody runs into anybody or over a red light, speeds are those of a town."""

import numpy as np
import pytest

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.synth.crowd import EGO_NOSE, EGO_SIZE, Spawner
from bev_perception.synth.ground import kind_at
from bev_perception.synth.roads import KERB, WAY_STEP, make_streets, turning_way
from bev_perception.synth.traffic import STEP, WARM_UP, Agent, Signals, make_all_signals, simulate
from bev_perception.synth.world import make_world

SEEDS = (11, 12)


@pytest.fixture(scope="module", params=SEEDS)
def town(request):
    return make_world((request.param, 0), 12.0)


def outlines(world, time):
    """Return what has a box as (number, center [2], axes [2, 2], half size [2]), the ego car as number -1."""
    places, found = world.places_at(time), []
    boxes = [(o, *thing.box) for o, thing in enumerate(world.things) if thing.category.startswith("vehicle")]
    boxes.append((-1, np.array([EGO_NOSE - EGO_SIZE[0] / 2, 0, 0]), np.array(EGO_SIZE)))
    for o, middle, size in boxes:
        c, s = np.cos(places[o, 3]), np.sin(places[o, 3])
        axes = np.array([[c, s], [-s, c]])
        if places[o, 0] > 0:  # has not left the streets
            found.append((o, places[o, :2] + middle[:2] @ axes, axes, size[:2] / 2))
    return found


def overlap(a, b, slack=0.1):
    """Whether two rectangles overlap by more than `slack`: no axis keeps them apart."""
    for axis in (*a[2], *b[2]):
        reach = sum(np.abs(x[2] @ axis) @ x[3] for x in (a, b))
        if abs((b[1] - a[1]) @ axis) > reach - slack:
            return False
    return True


def test_vehicles_do_not_run_into_one_another(town):
    crashes = set()
    for time in np.arange(0, 12, 1.5):
        things = outlines(town, time)
        for i, a in enumerate(things):
            for b in things[:i]:
                moves = [x[0] < 0 or town.things[x[0]].agent >= 0 for x in (a, b)]
                same = a[0] >= 0 and b[0] >= 0 and town.things[a[0]].agent == town.things[b[0]].agent
                if any(moves) and not same and np.hypot(*(a[1] - b[1])) < 16 and overlap(a, b):
                    crashes.add((a[0], b[0]))
    assert not any(-1 in pair for pair in crashes)
    assert len(crashes) <= 1  # of many dozens


def test_speeds(town):
    speeds = np.array([town.speeds_at(t) for t in np.arange(0, 12, 0.5)])
    for o, thing in enumerate(town.things):
        if thing.agent < 0:
            assert not speeds[:, o].any()
        elif thing.category.startswith("human"):
            assert speeds[:, o].max() < 2.2
        else:
            assert speeds[:, o].max() < 17.0
    accelerations = np.diff(town.fleet.traces, 2, axis=1) / STEP**2
    assert np.abs(accelerations).max() < 6.5


def test_the_ego_car_turns_stands_and_changes_lanes():
    """Each in some of the drives of 10 s: without traffic, so that lights alone stop it."""
    turned, stood, changed, far = 0, 0, 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        streets = make_streets(rng, 13.0 * 10 + 260)
        spawner = Spawner(rng, streets, 10.0)
        spawner.put_ego()
        (ego,) = spawner.agents
        fleet = simulate([ego], make_all_signals(rng, len(streets.junctions), spawner.turn), 10.0)
        s = np.array([fleet.s_at(t)[0] for t in np.arange(0, 10, 0.25)])
        assert s[-1] < ego.way.length, "it has left its way"
        places = ego.way.at(s)
        headings = np.interp(s, np.arange(len(ego.way.points)) * WAY_STEP, np.unwrap(ego.way.points[:, 2]))
        # from the middle of the main street, as far as it is on it
        offsets = np.array([np.linalg.norm(streets.main.points[:, :2] - place, axis=1).min() for place in places])
        turned += np.ptp(headings) > 1.0 and offsets[-1] > streets.main.half_width
        stood += np.diff(s).min() < 0.02
        changed += offsets.max() < streets.main.half_width and 0.8 < np.ptp(offsets) / streets.main.lane < 1.2
        far += s[-1] - s[0] > 60
    assert turned >= 4 and stood >= 4 and changed >= 3 and far >= 10


def test_the_ego_car_moves_smoothly_on_the_road(town):
    poses = np.array([town.ego2global(t) for t in np.arange(-0.1, 12, 0.05)])
    assert np.abs(np.diff(poses[:, :3, 3], axis=0)).max() < 0.05 * 17
    tilts = np.degrees(np.arccos(poses[:, 2, 2]))
    assert 0 < tilts.max() < 3
    yaws = np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
    assert np.abs(np.diff(yaws)).max() < 0.05 * 1.0
    for pose in poses[::10]:
        assert kind_at(town.ground, *pose[:2, 3]) == (OCC3D_CLASSES.index("driveable_surface"), 0.0)


def test_things_stand_on_the_ground(town):
    places = town.places_at(5.0)
    for o, thing in enumerate(town.things):
        kind, height = kind_at(town.ground, *places[o, :2])
        assert places[o, 2] == pytest.approx(height)
        if thing.activity == "driving" and thing.category == "vehicle.car" and places[o, 0] > 0:
            assert OCC3D_CLASSES[kind] == "driveable_surface"
        if not thing.category and thing.shape.occupancy == OCC3D_CLASSES.index("vegetation"):
            assert height == KERB


def test_a_red_light_is_heeded_and_a_green_one_is_not():
    streets = make_streets(np.random.default_rng(3), 400)
    way = next(
        way
        for number in range(len(streets.junctions))
        for direction in (-1, 1)
        for leave in (-1, 1)
        if (way := turning_way(streets, number, direction, leave, onto_main=False)) and way.stops[-1].s > 120
    )
    stop = way.stops[-1]
    always = np.full(4, 1e6)
    green = Signals(np.zeros(4), always, 1e6, 0.0)
    red = Signals(np.full(4, 5e5), np.zeros(4), 1e6, 0.0)
    for signal, passes in ((green, True), (red, False)):
        agent = Agent(way, stop.s - 60, 9.0, 4.5, 1.9)
        trace = simulate([agent], [signal] * len(streets.junctions), 30.0 - WARM_UP).traces[0]
        assert (trace[-1] > stop.s + 10) == passes
        if not passes:
            assert stop.s - 2.5 < trace[-1] <= stop.s + 0.1


def test_a_vehicle_follows_a_slower_one():
    streets = make_streets(np.random.default_rng(3), 400)
    from bev_perception.synth.roads import main_way

    way = main_way(streets, 0, 1)
    open_way = type(way)(way.points)
    slow, fast = Agent(open_way, 60, 4.0, 4.5, 1.9), Agent(open_way, 20, 12.0, 4.5, 1.9)
    traces = simulate([slow, fast], [], 15.0).traces
    gaps = traces[0] - 4.5 - traces[1]
    assert gaps.min() > 1.5 and gaps[-1] < 15
    assert (traces[1, -1] - traces[1, -21]) / (20 * STEP) == pytest.approx(4.0, abs=0.4)
