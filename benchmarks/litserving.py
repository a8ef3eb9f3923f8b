"""The same FaithfulViT behind LitServe, with LitServe's own batching; benchmarks/serving.py starts it.

    python benchmarks/litserving.py BUNDLE PORT

A batch of LitServe's is one call: its requests share the queue's batches, and all of them are answered when
the last is.
"""

import base64
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve  # type: ignore[import-not-found,unused-ignore]
import numpy as np
from PIL import Image

import fvit

MOST, PATIENCE = 32, 0.01
"""Requests of a batch, and the seconds that it waits for them."""


class Served(litserve.LitAPI):  # type: ignore[misc,unused-ignore]
    """{"image": base64, "kind": "predict" | "certify", "n": …} in, a class and its number of copies out."""

    def setup(self, device: str) -> None:
        self.vit = fvit.load(sys.argv[1], device="cpu")
        self.pool = ThreadPoolExecutor(MOST)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        return {**request, "image": np.asarray(image)}

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(self.pool.map(self._one, inputs))

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output

    def _one(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["kind"] == "predict":
            found = self.vit.predict(asked["image"], n=asked["n"])
            return {"label": found.label, "attention": found.attention.tolist()}
        return self.vit.certify(asked["image"], n=asked["n"]).to_dict()


if __name__ == "__main__":
    server = litserve.LitServer(
        Served(max_batch_size=MOST, batch_timeout=PATIENCE), accelerator="cpu", timeout=False
    )
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
