"""Weights that are read layer by layer, for models larger than memory."""
