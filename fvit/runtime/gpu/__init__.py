"""Draws and counts noisy copies on NVIDIA devices."""
