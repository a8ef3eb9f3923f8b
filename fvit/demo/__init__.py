"""The embedded FViT: its bundle, which travels with the package, and images to try it on."""

from pathlib import Path

NAME = "demo"
"""What the bundle is called where a bundle is asked for: a text. A path, or ./demo, is a folder's."""

BUNDLE = Path(__file__).parent / "bundle"
SAMPLES = Path(__file__).parent / "samples"
