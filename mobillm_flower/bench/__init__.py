"""Measuring: references for a run, memory of a device."""
