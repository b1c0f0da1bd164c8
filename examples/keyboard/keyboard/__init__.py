"""The keyboard app."""
