"""Sparse4D on small configurations: memory and ids live, missing cameras, numbers of cameras, wrong settings."""

import dataclasses

import numpy as np
import pytest
import torch
from vehicle import SECOND, START, frame, memory_of, run

from bev_perception.config import ConfigError
from bev_perception.evaluation.running import run_rows
from bev_perception.families.catalog import build_model, gives
from bev_perception.families.family import BOXES, TRACKS
from bev_perception.families.sparse4d.aggregation import DeformableAggregation, TemporalAggregation
from bev_perception.families.sparse4d.identities import Identities
from bev_perception.families.variants import load_variant
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.models.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from bev_perception.types import NO_TRACK, Limits

from .kit import maps_config, records_of, small_config

PRESENT = (True, False, True, True)


def shaken(config, seed=0):
    """The model with weights off their initial values, so that every part has a say."""
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model():
    model = shaken(small_config(head={"num_layers": 3}))
    with torch.no_grad():  # scores on both sides of what is tracked
        for layer in model.head.layers:
            if hasattr(layer, "cls_layers"):
                layer.cls_layers[-1].weight *= 8
                layer.cls_layers[-1].bias += 1
    return model


@pytest.fixture(scope="module")
def maps_model():
    config = maps_config()
    return shaken(dataclasses.replace(config, head=dataclasses.replace(config.head, cameras=4)))


def at(seconds, index=0, cameras=4, **about):
    """The index-th frame's images at a time after the start."""
    inputs = frame(index, cameras, **about)
    stamp = START + round(seconds * SECOND)
    return dataclasses.replace(inputs, stamp=stamp, stamps=stamp + 8_000_000 * np.arange(cameras))


@pytest.mark.parametrize("cameras", [1, 4, 6])
def test_any_number_of_cameras(model, cameras):
    memory = None
    for index in range(2):
        outputs, memory = run(model, frame(index, cameras), memory)
    head = model.config.head
    assert outputs.valid.all() and outputs.finite
    assert outputs.last.boxes.shape == (1, head.num_anchor, 11)
    assert outputs.last.logits.shape == (1, head.num_anchor, 10)
    assert outputs.last.quality.shape == (1, head.num_anchor, 2)
    assert memory.entries[0].features.shape == (1, head.num_temporal, head.embed_dims)


def test_a_model_of_maps_is_tied_to_its_cameras(maps_model):
    assert run(maps_model, frame(0, 4))[0].finite
    with pytest.raises(ConfigError, match="tied to 4 cameras, and there are 5"):
        run(maps_model, frame(0, 5))


@pytest.mark.parametrize("kind", ["model", "maps_model"])
def test_a_missing_camera_gets_no_weight(kind, request):
    model = request.getfixturevalue(kind)
    weights = []

    def look(layer, args, kwargs=None):
        views = args[0][0] if isinstance(layer, TemporalAggregation) else args[0]
        weights.append(layer.weights(args[1], args[3], views))

    layers = [m for m in model.modules() if isinstance(m, (DeformableAggregation, TemporalAggregation))]
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    inputs = frame(0, 4, present=PRESENT)
    outputs, _ = run(model, inputs)
    for handle in handles:
        handle.remove()
    assert len(weights) == model.config.head.num_layers
    for weight in weights:  # [B, N, P, V, L, G]
        assert not weight[:, :, :, ~np.array(PRESENT)].any()
        torch.testing.assert_close(weight.sum(dim=(2, 3, 4)), torch.ones_like(weight[:, :, 0, 0, 0]))
    other = torch.where(torch.tensor(PRESENT)[:, None, None, None], inputs.images, 7.0)
    again, _ = run(model, dataclasses.replace(inputs, images=other))
    torch.testing.assert_close(again.last.boxes, outputs.last.boxes)
    whole, _ = run(model, frame(0, 4))
    assert not torch.allclose(whole.last.boxes, outputs.last.boxes, atol=1e-3)


def test_without_a_missing_camera_it_is_as_if_it_was_not_there(model):
    with_three = frame(0, 4, present=PRESENT)
    three = dataclasses.replace(
        with_three,
        images=with_three.images[list(PRESENT)],
        cameras=with_three.cameras.select(np.array(PRESENT)),
        present=np.ones(3, bool),
        stamps=with_three.stamps[list(PRESENT)],
    )
    torch.testing.assert_close(
        run(model, three)[0].last.boxes, run(model, with_three)[0].last.boxes, atol=1e-5, rtol=1e-4
    )


def test_the_past_frame_has_a_say(model, maps_model):
    for one in (model, maps_model):
        _, memory = run(one, at(0, 0))
        _, other = run(one, at(0, 1))
        outputs = [run(one, at(0.5, 2), past)[0].last.boxes for past in (memory, other, None)]
        assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
        assert not torch.allclose(outputs[0], outputs[2], atol=1e-4)


def test_the_last_frames_of_a_drive_are_its_history(maps_model):
    """Version 1: at first as many as there are, then no more than it was trained with."""
    memory, seen = None, []
    handle = maps_model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for index in range(4):
        _, memory = run(maps_model, frame(index, 4), memory)
    handle.remove()
    stamps = [[int(views.stamps[0] - START) / SECOND for views in frames] for frames in seen]
    assert stamps == [[0.0], [0.5, 0.0], [1.0, 0.5, 0.0], [1.5, 1.0, 0.5]]


def test_ids_are_handed_down_the_rows(model):
    memory = None
    for index in range(3):
        before = memory.entries[0] if memory else None
        outputs, memory = run(model, frame(index, 4), memory)
        if before is not None:
            handed = before.ids[0]
            named = handed != NO_TRACK
            assert named.any()
            shown = outputs.ids[0, : len(handed)]
            assert (shown[named] != NO_TRACK).any()
            assert np.array_equal(shown[named & (shown != NO_TRACK)], handed[named & (shown != NO_TRACK)])
        kept, shown = memory.entries[0].ids[0], outputs.ids[0, outputs.chosen[0]]
        assert np.array_equal(kept[shown != NO_TRACK], shown[shown != NO_TRACK])
        tracked = outputs.ids[0][outputs.ids[0] != NO_TRACK]
        assert len(np.unique(tracked)) == len(tracked)


def test_frames_faster_than_trained_continue_from_about_the_trained_interval(model):
    memory, committed, ages = model.new_memory(0.25), -1.0, []
    for index in range(16):
        inputs = at(index / 12)
        past = memory.history(inputs.stamp)[0]
        ages.append(None if past is None else (inputs.stamp - past.stamp) / SECOND)
        with torch.inference_mode():
            prediction = model.predict(model.encode(inputs), memory.history(inputs.stamp), inputs, memory.carried)
        young = ages[-1] is None or ages[-1] < 0.2
        assert (prediction.outputs.valid is None) == young
        due = index / 12 - committed >= 0.24
        committed = index / 12 if due else committed
        memory = memory.after(prediction.entry, prediction.carried, due)
    assert ages[0] is None and all(0.33 < age < 0.67 for age in ages[6:])


def test_after_a_stall_frames_continue_from_before_it(model):
    """Until a frame since is old enough; within the longest gap."""
    memory = None
    for seconds in (0.0, 0.5, 1.7):
        outputs, memory = run(model, at(seconds), memory)
    ids = set(memory.entries[0].ids[0].tolist())
    outputs = run(model, at(1.78), memory)[0]
    assert outputs.valid.all() and ids & set(outputs.ids[0].tolist())
    assert memory.history(at(1.78).stamp)[0].stamp == at(0.5).stamp
    assert memory.history(at(1.95).stamp)[0].stamp == at(1.7).stamp
    outputs, after = run(model, at(2.1), dataclasses.replace(memory, entries=memory.entries[2:]))
    assert outputs.valid is None and len(after.carried.book_ids)  # too old to go on; the book is not forgotten


def test_no_id_is_given_again_after_a_wipe(model):
    memory, ids = None, []
    for index in range(4):
        if index == 2:
            memory = memory.wiped()
        outputs, memory = run(model, frame(index, 4), memory)
        ids.append({number for number in outputs.ids[0].tolist() if number != NO_TRACK})
    assert ids[0] & ids[1] and not (ids[0] | ids[1]) & (ids[2] | ids[3])
    assert memory.carried.next_id > max(max(numbers) for numbers in ids)


def test_it_does_not_matter_where_the_global_frame_is(model):
    far = make_transform(rotation_from_yaw(1.0), np.array([2000.0, -700.0, 3.0]))
    runs = []
    for start in (np.eye(4), far):
        memory = None
        for index in range(3):
            ego = start @ make_transform(rotation_from_yaw(0.1 * index), np.array([2.0 * index, 0.3, 0.0]))
            outputs, memory = run(model, frame(index, 4, ego=ego), memory)
        runs.append(outputs)
    torch.testing.assert_close(runs[0].last.boxes, runs[1].last.boxes, atol=2e-3, rtol=1e-3)
    assert np.array_equal(runs[0].ids, runs[1].ids)


def test_boxes_carry_ids_and_keep_to_the_limits(model):
    outputs, _ = run(model, frame(0, 4))
    boxes = model.decode(outputs, Limits()).boxes
    assert len(boxes) == model.config.head.num_anchor and (np.diff(boxes.scores) <= 0).all()
    assert set(boxes.track_ids.tolist()) == set(outputs.ids[0].tolist())
    middle = float(np.median(boxes.scores))
    few = model.decode(outputs, Limits(score=middle)).boxes
    assert 0 < len(few) < len(boxes) and few.scores.min() >= middle
    assert len(model.decode(outputs, Limits(count=3)).boxes) == 3


def with_doubts(detect):
    """The same detections, but every other instance is in doubt about its class."""

    def doubt(*args):
        outputs = detect(*args)
        doubts = 20.0 * (torch.arange(outputs.last.logits.shape[1]) % 2)[:, None]
        last = dataclasses.replace(outputs.last, logits=outputs.last.logits - doubts)
        return dataclasses.replace(outputs, stages=(*outputs.stages[:-1], last))

    return doubt


def clear_boxes(model, outputs, boxes):
    """Which boxes [n] have a class score of their own of the threshold at least."""
    places = outputs.last.boxes[0, :, :3].numpy()
    rows = [int(np.linalg.norm(places - center, axis=1).argmin()) for center in boxes.centers]
    return outputs.last.logits[0].amax(dim=1).sigmoid().numpy()[rows] >= model.config.head.decode.track_threshold


def test_a_box_is_tracked_if_its_own_class_score_reaches_the_threshold(model, monkeypatch):
    """Whatever its centerness, by which boxes are ordered, and whatever id its instance has."""
    _, memory = run(model, frame(0, 4))
    monkeypatch.setattr(model, "detect", with_doubts(model.detect))
    outputs, memory = run(model, frame(1, 4), memory)
    quality = outputs.last.quality.clone()
    quality[0, ::4] = -20.0  # the first of those without doubts come last
    outputs = dataclasses.replace(
        outputs, stages=(*outputs.stages[:-1], dataclasses.replace(outputs.last, quality=quality))
    )
    boxes = model.decode(outputs, Limits()).boxes
    clear = clear_boxes(model, outputs, boxes)
    assert (np.diff(clear.astype(int)) > 0).any()  # scores have another order
    assert np.array_equal(boxes.track_ids != NO_TRACK, clear)
    assert (memory.entries[0].ids != NO_TRACK).sum() > clear.sum()  # those in doubt go on with theirs


def test_for_the_benchmark_ids_follow_the_published_rule(model, monkeypatch):
    """Every instance gets an id in row order; those of the K best boxes are shown."""
    monkeypatch.setattr(model, "for_benchmark", True)
    monkeypatch.setattr(model, "detect", with_doubts(model.detect))
    first, memory = run(model, frame(0, 4))
    assert first.ids.tolist() == [list(range(24))]
    outputs, memory = run(model, frame(1, 4), memory)
    assert outputs.ids[0, :16].tolist() == first.ids[0, first.chosen[0]].tolist()
    assert outputs.ids[0, 16:].tolist() == list(range(24, 32)) and memory.carried.next_id == 32
    boxes = model.decode(outputs, Limits()).boxes
    assert clear_boxes(model, outputs, boxes).sum() == 12
    assert (boxes.track_ids != NO_TRACK).tolist() == [True] * 12 + [False] * 12
    after = run(model, frame(2, 4), memory.wiped())[0]
    assert after.ids.tolist() == [list(range(32, 56))]


def test_eval_gives_ids_by_the_published_rule(model, synthetic_nuscenes, tmp_path, monkeypatch):
    path, lowest = tmp_path / "weights.safetensors", []
    save_checkpoint(model, path, {})
    monkeypatch.setattr(Identities, "name", spy(Identities.name, lambda *args: lowest.append(args[-1])))
    rows = run_rows(model.config, path, torch.device("cpu"), records_of(synthetic_nuscenes), range(3))
    assert all((result.boxes.track_ids != NO_TRACK).any() for _, result in rows)
    assert lowest == [0.0] * 3


def spy(function, look):
    """The function, whose arguments `look` gets first."""

    def call(*args):
        look(*args)
        return function(*args)

    return call


def test_what_variants_give():
    assert gives(load_variant("sparse4dv3_r50")) == {BOXES, TRACKS}
    assert gives(load_variant("sparse4dv2_r50")) == {BOXES}


def versions():
    """A small configuration of each version, with the words by which its checkpoints are called."""
    plain = {"decoupled_attention": False, "quality": False, "track_ids": False}
    maps = maps_config()
    alone = dataclasses.replace(maps, frames=dataclasses.replace(maps.frames, past=0))
    return {
        "version 1 without past frames": alone,
        "version 1 with past frames": maps,
        "version 2": small_config(head=plain),
        "version 3": small_config(),
    }


def test_a_checkpoint_of_another_version_is_named(tmp_path):
    models = {name: shaken(config) for name, config in versions().items()}
    for version, other in models.items():
        path = tmp_path / f"{version}.safetensors"
        save_checkpoint(other, path, {})
        for name, model in models.items():
            if name == version:
                load_checkpoint(model, path)
                continue
            with pytest.raises(CheckpointError, match=f"by its names it is a checkpoint of Sparse4D {version}"):
                load_checkpoint(model, path)


@pytest.mark.parametrize(
    "head, frames, says",
    [
        ({"num_heads": 5}, {}, "num_heads"),
        ({"num_layers": 1}, {}, r"num_layers \(1\) must be 2 at least"),
        ({}, {"past": 2}, r"frames.past \(2\) must be 1"),
        ({}, {"missing": "current"}, "frames.missing must be 'oldest'"),
        ({"embed_dims": 64}, {}, "out_channels"),
        ({"num_temporal": 24}, {}, "num_temporal"),
        ({"temporal": "words"}, {}, "head.temporal is 'words'"),
        ({"temporal": "maps"}, {}, "need temporal 'instances'"),
        ({"depth_levels": 9}, {}, "depth_levels"),
        ({"decay": 0.0}, {}, "decay"),
    ],
)
def test_settings_that_do_not_fit_are_named(head, frames, says):
    with pytest.raises(ConfigError, match=says):
        config = small_config(head=head)
        build_model(dataclasses.replace(config, frames=dataclasses.replace(config.frames, **frames)))


def test_a_model_of_maps_needs_no_instances_that_go_on():
    head = maps_config().head
    assert dataclasses.replace(head, num_temporal=head.num_anchor).num_anchor == head.num_anchor


def test_nothing_that_is_remembered_is_changed(model):
    _, memory = run(model, frame(0, 4))
    entry = memory.entries[0]
    before = [tensor.clone() for tensor in entry.tensors], entry.ids.copy()
    run(model, frame(1, 4), memory_of(model, entry))
    assert all(torch.equal(a, b) for a, b in zip(before[0], entry.tensors, strict=True))
    assert np.array_equal(before[1], entry.ids)


def test_the_tracking_threshold_is_a_setting(model, monkeypatch):
    decode = dataclasses.replace(model.config.head.decode, track_threshold=1.0)
    head = dataclasses.replace(model.config.head, decode=decode)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, head=head))
    outputs, memory = run(model, frame(0, 4))
    assert (outputs.ids == NO_TRACK).all() and memory.carried.next_id == 0
