"""Programs around the node: demo, benchmarks, helpers to talk to it."""
