"""The summarize app."""
