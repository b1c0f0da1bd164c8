"""The fleet app."""
