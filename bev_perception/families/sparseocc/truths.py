"""Occupancy labels for the training of SparseOcc."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bev_perception.commands import command
from bev_perception.config import VariantConfig
from bev_perception.data.augment import augment_grid
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL, check_classes, labels_path, read_labels
from bev_perception.data.records import Records
from bev_perception.families.sparseocc.targets import mask_targets
from bev_perception.strict import ConfigError
from bev_perception.supervision.samples import NO_INSTANCE, OccupancyTruth
from bev_perception.supervision.truths import Sight


class OccupancyTruths:
    """Reads the occupancy labels of key frames."""

    def __init__(self, config: VariantConfig, records: Records, folder: str | Path) -> None:
        """Keep the settings.

        config: the variant
        records: of the data set
        folder: of the labels, see labels_path

        Raises ConfigError for a recipe that voxel labels do not allow.
        """
        recipe = config.training
        assert recipe is not None, "what cannot be trained has no truths"
        if recipe.bev.scale != (1.0, 1.0):
            raise ConfigError(f"{config.name}: labels of voxels cannot be scaled; let training.bev.scale be [1, 1]")
        self._classes, self._panoptic = config.class_names, config.head.panoptic
        self._camera_mask, self._seen_only = recipe.family.camera_mask, recipe.family.seen_only
        self._records, self._folder = records, folder

    def read(self, index: int, sight: Sight) -> OccupancyTruth:
        """Return the labels of key frame `index`.

        sight: augmentation of the scene, applied to the labels

        Raises ConfigError if the file lacks something that the variant needs.
        """
        world = sight.world
        path = labels_path(self._records.root, self._records.scenes[index], self._records.tokens[index], self._folder)
        labels = read_labels(path)
        check_classes(labels.semantics, self._classes, str(path))
        instances = None
        if self._panoptic:
            remedy = f"`{command('prepare panoptic-occ')}` writes them"
            instances = self._required(labels.instances, path, f"instances; {remedy}")
        visible = None
        if self._camera_mask:
            seen = self._required(labels.mask_camera, path, "mask_camera; train without training.family.camera_mask")
            visible = torch.from_numpy(augment_grid(seen, world, outside=False))
        semantics = labels.semantics
        if self._seen_only:
            remedy = "train without training.family.seen_only"
            by_cameras = self._required(labels.mask_camera, path, f"mask_camera; {remedy}")
            by_lidar = self._required(labels.mask_lidar, path, f"mask_lidar; {remedy}")
            semantics = np.where(by_cameras | by_lidar, semantics, np.uint8(len(self._classes) - 1))
        unknown = semantics == UNKNOWN_LABEL
        if unknown.any():  # masks are not compared there; outside of the labels they are, as in SparseOcc
            known = torch.from_numpy(augment_grid(~unknown, world, outside=True))
            visible = known if visible is None else visible & known
        places, class_ids = mask_targets(semantics, instances, self._classes)
        return OccupancyTruth(
            semantics=torch.from_numpy(augment_grid(semantics, world, UNKNOWN_LABEL)),
            instances=torch.from_numpy(augment_grid(places, world, NO_INSTANCE)),
            class_ids=torch.from_numpy(class_ids),
            visible=visible,
        )

    @staticmethod
    def _required(array: np.ndarray | None, path: Path, what: str) -> np.ndarray:
        if array is None:
            raise ConfigError(f"{path} holds no {what}")
        return array
