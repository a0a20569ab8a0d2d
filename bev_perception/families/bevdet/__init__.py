"""BEVDet, BEVDet4D, BEVDepth4D, BEVStereo4D: boxes or occupancy from a bird's eye view that images are lifted into."""
