"""The GLUE app."""
