"""Measuring a run, a device and methods: references, costs, forecasts, comparisons."""
