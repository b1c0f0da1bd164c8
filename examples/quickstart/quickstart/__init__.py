"""The quickstart app."""
