"""A run's folder: its files, its events, its devices."""
