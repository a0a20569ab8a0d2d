"""The order of frames in training with memory, and the shares of an evaluation, against the published reference."""

import numpy as np

from bev_perception.data.sequences import SequenceStreams, shard_scenes, split_scenes

from .cases import parametrize


def of_sampler(case):
    return None if case.info["system"] == "sparse4d" and "scene_lengths" in case.config else ""


def scenes_of(case):
    """The frames of each scene."""
    ends = np.cumsum(case.config["scene_lengths"])
    return [list(range(end - length, end)) for end, length in zip(ends, case.config["scene_lengths"], strict=True)]


@parametrize(of_sampler)
def test_groups(case):
    sequences = split_scenes(scenes_of(case), case.config["sequences_split_num"])
    flags = np.empty(sum(case.config["scene_lengths"]), int)
    for k, frames in enumerate(sequences):
        flags[frames] = k
    assert flags.tolist() == case.info["values"]["flag"]


@parametrize(of_sampler)
def test_streams(case):
    """Every slot reads the reference's frames, and its augmentation changes where the reference's does."""
    settings = case.config["train"]
    batch, ranks = settings["batch_size"], settings["world_size"]
    streams = SequenceStreams(
        split_scenes(scenes_of(case), case.config["sequences_split_num"]),
        slots=batch * ranks,
        seed=settings["seed"],
        skip=settings["skip_prob"],
        reverse=settings["sequence_flip_prob"],
    )
    for rank in range(ranks):
        wanted = case.info["values"]["streams"][f"rank{rank}"]
        drawn = 0
        for slot in range(batch):
            turns = [streams.at(rank * batch + slot, step) for step in range(len(wanted))]
            assert [turn.frame for turn in turns] == [step[slot]["idx"] for step in wanted]
            changes = np.diff([turn.visit for turn in turns]) != 0
            assert changes.tolist() == (np.diff([step[slot]["aug"] for step in wanted]) != 0).tolist()
            drawn += 1 + changes.sum()
        assert drawn == max(place["aug"] for step in wanted for place in step)


@parametrize(of_sampler)
def test_shards(case):
    shards = case.info["values"]["eval_shards"]
    assert shard_scenes(scenes_of(case), len(shards)) == list(shards.values())
