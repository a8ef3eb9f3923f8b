"""The inputs and outputs of the model, by the conventions of the KServe V2 protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.record import Certificate
from fvit.certificates.tally import UNIT
from fvit.runtime.bundle import Manifest
from fvit.runtime.faithful import Prediction


@dataclass(frozen=True)
class Kind:
    """What Triton's configuration says of a tensor. dims: -1 where any number is taken."""

    data_type: str
    dims: tuple[int, ...] = (1,)


INPUTS = {
    "image": Kind("TYPE_STRING", (-1,)),
    "pixels": Kind("TYPE_UINT8", (-1, -1, -1)),
    "task": Kind("TYPE_STRING", (-1,)),
    "sigma": Kind("TYPE_FP64", (-1,)),
    "n": Kind("TYPE_INT64", (-1,)),
    "alpha": Kind("TYPE_FP64", (-1,)),
    "k": Kind("TYPE_INT64", (-1,)),
    "beta": Kind("TYPE_FP64", (-1,)),
    "radius": Kind("TYPE_FP64", (-1,)),
    "seconds": Kind("TYPE_FP64", (-1,)),
    "aggregate": Kind("TYPE_STRING", (-1,)),
    "seed": Kind("TYPE_UINT64", (-1,)),
}
"""All of them optional, because a task takes some of them; and of any size, because a request that Triton
itself refuses keeps its model from being unloaded (seen in 2.51, on streams)."""


def outputs(manifest: Manifest) -> dict[str, Kind]:
    """The outputs of a bundle's model; a prediction has neither radii nor tokens nor a record."""
    return {
        "index": Kind("TYPE_INT64"),
        "label": Kind("TYPE_STRING"),
        "counts": Kind("TYPE_INT64", (len(manifest.labels),)),
        "attention": Kind("TYPE_FP64", manifest.grid),
        "seed": Kind("TYPE_UINT64"),
        "radii": Kind("TYPE_FP64", (2,)),
        "tokens": Kind("TYPE_INT64", (-1,)),
        "record": Kind("TYPE_STRING"),
    }


def of_prediction(found: Prediction) -> dict[str, NDArray[Any]]:
    """Outputs of a prediction; where it abstains the index is -1 and the label empty."""
    return {
        "index": np.array([-1 if found.index is None else found.index], np.int64),
        "label": _text(found.label or ""),
        "counts": found.counts,
        "attention": found.attention,
        "seed": np.array([found.seed], np.uint64),
    }


def of_certificate(found: Certificate, *, classes: int) -> dict[str, NDArray[Any]]:
    """Outputs of a certificate. attention: the mean attribution, as a prediction has it. radii: of the class
    and of the explanation, 0 where nothing is certified."""
    counts = np.zeros(classes, np.int64)
    for index, count in found.class_.counts.items():
        counts[int(index)] = count
    claim = found.attention
    return {
        "index": np.array([found.class_.index], np.int64),
        "label": _text(found.class_.label),
        "counts": counts,
        "attention": (np.asarray(claim.sums) / (found.copies * UNIT)).reshape(claim.grid),
        "seed": np.array([found.seed], np.uint64),
        "radii": np.array([found.class_.radius_l2, claim.radius_l2]),
        "tokens": np.array(claim.tokens, np.int64),
        "record": _text(json.dumps(found.to_dict(), separators=(",", ":"))),
    }


def _text(text: str) -> NDArray[np.object_]:
    return np.array([text.encode()], np.object_)
