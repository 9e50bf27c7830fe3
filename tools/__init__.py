"""Tools of the repository that are not tests: notebooks made again byte for byte, and benchmarks."""
