"""A detector and an occupancy model in one pipeline, on frames of a made-up drive."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from bev_perception.evaluation.timing import count_operations
from bev_perception.families.bevdet.model import BEVDet
from bev_perception.models.checkpoints import CheckpointInfo
from bev_perception.pipeline.encoders import LoadedVariant
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings

from .small import frame_at, small_model, stream

CPU = torch.device("cpu")


def pipeline_of(*models):
    loaded = [LoadedVariant(m.config, m, CheckpointInfo(Path("made.up"), False, None, {})) for m in models]
    return Pipeline(loaded, CPU, PipelineSettings(score_threshold=0.0, max_detections=40))


def run(frames, *models):
    pipeline = pipeline_of(*map(copy.deepcopy, models))  # those that share an encoder are changed
    results = [pipeline.step(frame) for frame in frames]
    pipeline.close()
    return pipeline, results


def pair(depth_net, head, shared):
    """A detector and an occupancy model, with equal encoders or not."""
    detector, other = small_model(depth_net, seed=1), small_model(depth_net, head, seed=2)
    if shared:
        for part in other.encoder_parts:
            other.get_submodule(part).load_state_dict(detector.get_submodule(part).state_dict())
    return detector, other


@pytest.mark.parametrize(("depth_net", "head"), [("camera", "columns"), ("stereo", "voxels")])
@pytest.mark.parametrize("shared", [True, False])
def test_together_they_say_what_each_says_alone(frames, depth_net, head, shared, monkeypatch):
    detector, other = pair(depth_net, head, shared)
    alone = [run(frames[:3], model) for model in (detector, other)]
    encoded, encode = [], BEVDet.encode_images
    monkeypatch.setattr(BEVDet, "encode_images", lambda model, images: encoded.append(1) or encode(model, images))
    pipeline, results = run(frames[:3], detector, other)
    assert len(encoded) == (3 if shared else 6)
    assert len(pipeline.encoders) == (1 if shared else 2)
    for together, boxes, voxels in zip(results, alone[0][1], alone[1][1], strict=True):
        np.testing.assert_array_equal(together.boxes.centers, boxes.boxes.centers)
        np.testing.assert_array_equal(together.boxes.scores, boxes.boxes.scores)
        np.testing.assert_array_equal(together.occupancy.semantics, voxels.occupancy.semantics)
    assert len(results[-1].boxes) and len(np.unique(results[-1].occupancy.semantics)) > 1
    entries = alone[0][0]._streams[0].memory.entries
    twice = sum(entry.view.features.nbytes for entry in entries if shared and entry.view is not None)
    assert pipeline.memory_bytes == sum(alone[k][0].memory_bytes for k in range(2)) - twice


def test_memory_takes_the_bytes_of_its_maps(frames):
    """One map for every frame that is remembered, a quarter of a second apart; a stereo model's views beside them."""
    for depth_net, each in (("camera", 0), ("stereo", 6 * 8 * 16 * 24)):
        pipeline, _ = run(frames[:4], small_model(depth_net))  # at 0, 1/12, 1/6 and 1/4 s
        assert pipeline.memory_frames == 2 and pipeline.memory_bytes == 2 * 4 * (8 * 16 * 16 + each)


def test_boxes_have_track_ids_that_last(frames):
    _, (first, second) = run(frames[:2], small_model())
    for result in (first, second):
        assert len(set(result.boxes.track_ids.tolist())) == len(result.boxes) > 5
    kept = np.isin(second.boxes.track_ids, first.boxes.track_ids)
    assert kept.sum() > 3
    for k in np.flatnonzero(kept):
        before = np.flatnonzero(first.boxes.track_ids == second.boxes.track_ids[k])[0]
        assert first.boxes.labels[before] == second.boxes.labels[k]


def work_of_a_step(past):
    """Operations of each stage for one frame, with the whole memory of a stereo model."""
    model = small_model("stereo", past=past)
    memory = model.new_memory(0.5)
    for prediction in stream(model, [frame_at(step) for step in range(past + 1)]):
        memory = memory.after(prediction.entry, None, due=True)
    last = frame_at(past + 1)
    history = memory.history(last.stamp)
    assert len(history) == past and all(entry is not None for entry in history)
    with torch.inference_mode():
        return model, count_operations(model, lambda: model.predict(model.encode(last), history, last, None))


def test_more_past_frames_are_only_warped_and_joined():
    """Each map adds its channels to the first convolutions after the join, and where its cells are: nothing else."""
    model, work = None, {}
    for past in (1, 2, 5):
        model, work[past] = work_of_a_step(past)
    grown = {past: counts.pop("BEV backbone") for past, counts in work.items()}
    warped = {past: counts.pop("head") for past, counts in work.items()}  # warping belongs to no stage by name
    assert work[1] == work[2] == work[5] and work[1]["backbone"] > 0
    block = model.img_bev_encoder_backbone.layers[0][0]
    joined = 2 * 8 * 8 * sum(conv.weight[:, :8].numel() for conv in (block.conv1, block.downsample))  # 8 channels
    assert [grown[past] - grown[1] for past in (2, 5)] == [joined, 4 * joined]
    places = 2 * 9 * 16 * 16  # of the cells of the current map in an older one
    assert [warped[past] - warped[1] for past in (2, 5)] == [places, 4 * places]
