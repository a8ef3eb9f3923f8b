"""FViT as a model of NVIDIA's Triton Inference Server."""

BUNDLE = "bundle"
"""The folder of the bundle, beside model.py."""
