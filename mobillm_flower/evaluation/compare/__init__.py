"""Methods side by side on the same data, partitions and seeds."""
