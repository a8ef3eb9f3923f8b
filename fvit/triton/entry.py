"""An FViT for Triton's Python backend, as fvit-export triton wrote it. The package fvit has the code."""

try:
    from fvit.triton.model import TritonPythonModel
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] != "fvit":
        raise
    raise ImportError(
        "this model needs the package 'fvit', which the server's Python lacks, or has in an old version: "
        "run  pip install --upgrade fvit  there"
    ) from missing

__all__ = ["TritonPythonModel"]
