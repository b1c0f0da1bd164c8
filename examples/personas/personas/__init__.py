"""The personas app."""
