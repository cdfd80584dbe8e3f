"""Radar to cloud-free optical images at basin scale, on Ray."""

__version__ = "0.1.0"
