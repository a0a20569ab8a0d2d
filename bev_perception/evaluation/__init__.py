"""How good a variant is: results in the form of the benchmarks, and their scores by the official tools."""
