"""What the benchmarks need of the executor and nobody else may have."""
