"""Programs that run the node: the demo, benchmarks, and helpers that exchange messages with it."""
