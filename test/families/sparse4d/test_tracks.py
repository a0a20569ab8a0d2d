"""Track ids of the pipeline over a drive: planted detections of moving objects stand in for the decoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nuscenes.eval.tracking.mot import MOTAccumulatorCustom

from bev_perception.families.catalog import build_model
from bev_perception.families.sparse4d.identities import Identities
from bev_perception.families.sparse4d.outputs import Sparse4DOutput, Stage
from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw, transform_points
from bev_perception.models.checkpoints import CheckpointInfo
from bev_perception.pipeline.encoders import LoadedVariant
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.types import NO_TRACK, Calibration, CameraImage, Frame, View

from .kit import HEIGHT, WIDTH, small_config

SECOND = 1_000_000_000
CPU = torch.device("cpu")
ROWS, KEPT = 60, 40
MATCH = 2.0  # m, the devkit's limit between a box and an object


class Traffic:
    """Objects that come, move and go over some seconds, all over the place; each is hidden for a while.

    The rows of those that are hidden lose their way by `drift` m.
    """

    drift = 1.2

    def __init__(self, seed, seconds=10.0, objects=20):
        self.rng = np.random.default_rng(seed)
        self.seconds = seconds
        self.starts = self.rng.uniform(0, seconds / 2, objects)
        self.ends = self.starts + self.rng.uniform(3, 8, objects)
        self.places = self.rng.uniform(-40, 40, (objects, 2))
        self.velocities = self.rng.normal(0, 5, (objects, 2))
        self.labels = self.rng.integers(0, 3, objects)
        self.hides = self.starts + self.rng.uniform(1, 3, objects)
        bearings = self.rng.uniform(-np.pi, np.pi, objects)
        self.astray = self.drift * np.c_[np.cos(bearings), np.sin(bearings)]

    def positions(self, seconds):
        return self.places + self.velocities * (seconds - self.starts)[:, None]

    def hidden(self, seconds):
        return (self.hides <= seconds) & (seconds < self.hides + 0.4)

    def alive(self, seconds):
        return (self.starts <= seconds) & (seconds < self.ends)


class Crowd(Traffic):
    """Pedestrians who walk together, 0.5 to 1 m apart."""

    def __init__(self, seed, seconds=10.0, objects=12):
        super().__init__(seed, seconds, objects)
        self.starts = np.zeros(objects)
        self.hides = self.rng.uniform(1, seconds - 1, objects)
        self.ends = np.full(objects, seconds + 1)
        steps = self.rng.uniform(0.5, 1.0, (2, objects))
        columns = np.arange(objects) % 4
        self.places = np.c_[columns * 0.75, np.arange(objects) // 4 * 0.75] + 0.1 * (steps.T - 0.75) + [15.0, 0.0]
        self.velocities = np.tile([1.2, 0.3], (objects, 1))
        self.labels = np.full(objects, 8)


class Planted:
    """Stands in for the decoder of a model: rows of a frame are those of the past one first, then what is new.

    Detections are noisy and at times missed, some are false. A row's feature says which object it is (-1: none).
    """

    def __init__(self, model, traffic, start):
        self.head, self.traffic, self.start = model.head, traffic, start

    def __call__(self, frames, past=None):
        views, traffic, rng = frames[0], self.traffic, self.traffic.rng
        seconds, reference2global = (int(views.stamps[0]) - self.start) / SECOND, views.reference2global[0]
        bank = self.head.instance_bank
        recalled = None if past is None else bank.recall(past, views.reference2global, views.stamps)
        goes_on = recalled is not None and bool(recalled.valid[0])
        known = past.features[0, :, 0].long().numpy() if goes_on else np.full(0, -1)
        alive = np.flatnonzero(traffic.alive(seconds))
        truths = np.full(ROWS, -1)
        truths[: len(known)] = np.where(np.isin(known, alive), known, -1)
        new = rng.permutation(np.setdiff1d(alive, known))
        truths[len(known) : len(known) + len(new)] = new
        real = truths >= 0
        hidden = traffic.hidden(seconds)
        seen = real & ~hidden[truths] & (rng.random(ROWS) >= 0.1)
        scores = np.where(seen, rng.uniform(0.4, 0.9, ROWS), rng.uniform(0.01, 0.15, ROWS))
        false = ~real & (rng.random(ROWS) < 0.01)
        scores[false] = rng.uniform(0.2, 0.4, false.sum())
        noise = rng.normal(0, 0.1, (2, ROWS, 2))
        places = traffic.positions(seconds) + hidden[:, None] * traffic.astray
        centers = np.where(real[:, None], places[truths] + noise[0], rng.uniform(-40, 40, (ROWS, 2)))
        velocities = np.where(real[:, None], traffic.velocities[truths] + 2 * noise[1], 0.0)
        labels = np.where(real, traffic.labels[truths], rng.integers(0, 3, ROWS))

        global2reference = invert_transform(reference2global)
        boxes = np.zeros((ROWS, 11))
        boxes[:, :3] = transform_points(global2reference, np.c_[centers, np.ones(ROWS)])
        boxes[:, 7] = 1.0
        boxes[:, 8:] = np.c_[velocities, np.zeros(ROWS)] @ global2reference[:3, :3].T
        boxes = torch.from_numpy(boxes).float()[None]
        if goes_on:  # false ones move as they were
            stays = torch.from_numpy(~real[:KEPT])
            boxes[0, :KEPT][stays] = recalled.anchors[0][stays]
        logits = torch.full((1, ROWS, 10), -9.0)
        logits[0, torch.arange(ROWS), torch.from_numpy(labels)] = torch.logit(torch.from_numpy(scores)).float()
        quality = torch.from_numpy(rng.normal(0, 1, (1, ROWS, 2))).float()
        features = torch.from_numpy(truths).float()[None, :, None].expand(1, ROWS, 32)
        stage, finite = Stage(boxes, logits, quality), torch.tensor(True)
        output = Sparse4DOutput((stage,), (), features, None, None, None, None, finite)
        return self.head._remember(output, views, past, recalled)


def frame_at(stamp, ego2global):
    """One black image."""
    image = CameraImage("front", stamp, "front", "rgb8", bytes(3 * HEIGHT * WIDTH), WIDTH, HEIGHT, 3 * WIDTH)
    calibration = Calibration(np.array([[100.0, 0, WIDTH / 2], [0, 100.0, HEIGHT / 2], [0, 0, 1]]), WIDTH, HEIGHT)
    return Frame(stamp, ("front",), (View(image, calibration, np.eye(4), ego2global),), ego2global)


def drive(traffic, rate, monkeypatch, wipes=(), start=1_532_402_927_647_951_000):
    """Run the pipeline; yield (seconds, centres of tracked boxes [n, 2] in the global frame, labels, ids) a frame."""
    config = small_config(head={"num_anchor": ROWS, "num_temporal": KEPT})
    model = build_model(config).eval()
    monkeypatch.setattr(model, "encode", lambda inputs: {"levels": (), "finite": (torch.tensor(True),)})
    monkeypatch.setattr(model, "detect", Planted(model, traffic, start))
    loaded = LoadedVariant(config, model, CheckpointInfo(Path("none"), True, None, {}))
    pipeline = Pipeline([loaded], CPU, PipelineSettings())
    for index in range(int(traffic.seconds * rate)):
        if index in wipes:
            pipeline.reset("test")
        seconds = index / rate
        ego2global = make_transform(rotation_from_yaw(0.05 * seconds), np.array([4.0 * seconds, 0.0, 0.0]))
        boxes = pipeline.step(frame_at(start + round(seconds * SECOND), ego2global)).boxes
        tracked = boxes.select(boxes.track_ids != NO_TRACK)
        assert len(np.unique(tracked.track_ids)) == len(tracked)
        yield seconds, transform_points(ego2global, tracked.centers)[:, :2], tracked.labels, tracked.track_ids
    pipeline.close()


def switches(traffic, frames):
    """Changes of identity (IDS) as the devkit counts them, and how often an object was found."""
    accumulator = MOTAccumulatorCustom()
    for index, (seconds, centers, labels, ids) in enumerate(frames):
        alive = np.flatnonzero(traffic.alive(seconds))
        away = np.linalg.norm(traffic.positions(seconds)[alive][:, None] - centers, axis=-1)  # [objects, boxes]
        away[(traffic.labels[alive][:, None] != labels) | (away >= MATCH)] = np.nan
        accumulator.update(alive, ids, away, frameid=index)
    counts = accumulator.events["Type"].value_counts()
    return counts["SWITCH"], counts["MATCH"]


@pytest.mark.parametrize("rate", [2, 12])
@pytest.mark.parametrize("kind", [Traffic, Crowd])
@pytest.mark.parametrize("seed", [0, 2])
def test_objects_keep_their_ids_at_any_rate(kind, rate, seed, monkeypatch):
    traffic = kind(seed)
    changed, found = switches(traffic, drive(traffic, rate, monkeypatch))
    assert found > 60 * rate  # there is something to switch
    assert changed == 0


def test_without_the_book_a_fast_camera_makes_ids_flicker(monkeypatch):
    identify = Identities.identify
    monkeypatch.setattr(Identities, "identify", lambda self, *args: identify(self.forgotten(), *args))
    traffic = Traffic(0, seconds=5.0)
    assert switches(traffic, drive(traffic, 12, monkeypatch))[0] > 50


def test_no_id_is_given_again_after_a_wipe(monkeypatch):
    stretches, wipes = [set()], (20, 21, 40)
    for index, (_, _, _, ids) in enumerate(drive(Traffic(0, seconds=5.0), 12, monkeypatch, wipes)):
        if index in wipes:
            stretches.append(set())
        stretches[-1].update(ids.tolist())
    assert len(stretches) == 4 and all(stretches)
    assert all(a.isdisjoint(b) for i, a in enumerate(stretches) for b in stretches[:i])
