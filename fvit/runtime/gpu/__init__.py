"""Draws and counts noisy copies on NVIDIA devices.

counter.py takes a batch of the queue; run.py lays out what crosses between host and device for it; kernels.cu
draws and counts there, and kernels.py compiles it; device.py is one GPU and its stream, in the context that
context.py keeps; graph.py records the networks' launches; plans.py puts a bundle's networks on a GPU.
"""
