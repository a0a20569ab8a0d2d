"""What the small variants add to SparseBEV: queries that start where a perspective head sees objects."""
