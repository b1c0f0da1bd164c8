"""What measures the library itself: `python -m benchmarks`."""
