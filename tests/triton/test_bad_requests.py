"""What clients do wrong: an error that says so, and a model that goes on."""

import base64
import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from PIL import Image

from tests.triton.clients import Stream, generate, inputs, tensor
from tests.triton.conftest import PLAIN
from tests.triton.server import Triton

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def ready_and_as_before(triton: Triton) -> Iterator[None]:
    """After whatever a test asks, the model is there and answers as it did."""
    good = {"image": PNG, "task": "predict", "n": 12, "seed": 1}
    with Stream(triton) as stream:
        before = stream.ask(**good)
    yield
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    assert client.is_model_ready("fvit")
    triton.until("fvit_rows_waiting", lambda waiting: waiting == 0)  # those of whoever left are freed soon
    with Stream(triton) as stream:
        assert np.array_equal(stream.ask(**good)["attention"], before["attention"])


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **how)
    return file.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
PNG = encoded(PICTURE)
PIXELS = np.asarray(PICTURE)


def huge_png(columns: int, rows: int) -> bytes:
    """A small file that would decode to columns×rows×3 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10**5)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


IMAGES: list[tuple[bytes, str]] = [
    (b"", "is not an image of a known format"),
    (b"no image", "is not an image of a known format"),
    (b"\x89PNG\r\n\x1a\n", "damaged|known format"),
    (PNG[:200], "damaged"),
    (PNG[:100] + bytes(100) + PNG[200:], "damaged"),
    (encoded(PICTURE, "JPEG")[:300], "damaged"),
    (b"GIF89a" + bytes(50), "damaged|known format|empty"),
    (b"BM" + bytes(60), "damaged|known format"),
    (b"II*\0" + bytes(60), "damaged|known format"),
    (b"RIFF\x00\x00\x00\x00WEBP" + bytes(40), "damaged|known format"),
    (b"P6 0 0 255\n", "damaged|empty|known format"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "known format"),
    (encoded(Image.new("I", (64, 64)), "TIFF"), "black and white are not known"),
    (encoded(Image.new("F", (64, 64)), "TIFF"), "black and white are not known"),
    (huge_png(40_000, 40_000), "more pixels than"),
    (huge_png(8_000, 8_000), "64,000,000|8,000×8,000 pixels"),
    (base64.b64encode(b"no image, but in base64"), "known format"),
    (base64.b64encode(PNG)[:-7], "known format"),
    (b"/etc/passwd", "known format"),
]  # fmt: skip

TERMS: list[tuple[dict[str, Any], str]] = [
    ({"task": "classify"}, "task 'classify' is unknown: use predict, certify, refine"),
    ({"task": ""}, "task '' is unknown"),
    ({"task": b"\xff\xfe"}, "is unknown"),
    ({"sigma": 0.0}, "outside this denoiser's noise schedule"),
    ({"sigma": -0.25}, "outside this denoiser's noise schedule"),
    ({"sigma": NAN}, "outside this denoiser's noise schedule"),
    ({"sigma": INFINITE}, "outside this denoiser's noise schedule"),
    ({"sigma": 1e300}, "outside this denoiser's noise schedule"),
    ({"n": 0}, "n = 0"),
    ({"n": -1}, "n = -1"),
    ({"n": -(2**63)}, "n = -9223372036854775808"),
    ({"n": 2**63 - 1}, "up to 100000 copies"),
    ({"n": 100_001}, "up to 100000 copies"),
    ({"n": 10}, "n = 10 copies cannot certify"),
    ({"n": 20, "alpha": 1e-300}, "cannot certify|no more than"),
    ({"alpha": 0.0}, "alpha = 0 "),
    ({"alpha": 1.0}, "alpha = 1 "),
    ({"alpha": NAN}, "alpha = nan"),
    ({"alpha": -INFINITE}, "alpha = -inf"),
    ({"k": []}, "explanation size"),
    ({"k": [0]}, "k = 0"),
    ({"k": [-3]}, "k = -3"),
    ({"k": [65]}, "this model has 64 tokens"),
    ({"k": [64]}, "outside it"),
    ({"k": [5, 5]}, "give each explanation size once"),
    ({"beta": 0.0}, "beta = 0 "),
    ({"beta": 1.5}, "beta = 1.5"),
    ({"beta": NAN}, "beta = nan"),
    ({"radius": 0.0}, "radius = 0"),
    ({"radius": -1.0}, "radius = -1"),
    ({"radius": INFINITE}, "radius = inf"),
    ({"radius": 50.0}, "cannot certify radius 50"),
    ({"aggregate": "median"}, "aggregate 'median' is unknown"),
    ({"seconds": 1.0}, "certify takes no seconds"),
    ({"task": "predict", "n": 3}, "n = 3 copies never decide"),
    ({"task": "predict", "n": 0}, "n = 0"),
    ({"task": "predict", "alpha": 2.0}, "alpha"),
    ({"task": "predict", "k": [10]}, "predict takes no k"),
    ({"task": "predict", "radius": 0.1, "beta": 0.5}, "predict takes no beta, radius"),
    ({"task": "refine", "radius": 0.1}, "refine takes no radius"),
    ({"task": "refine", "seconds": 0.0}, "seconds = 0"),
    ({"task": "refine", "seconds": NAN}, "seconds = nan"),
    ({"task": "refine", "n": 10**9}, "up to 100000 copies"),
]  # fmt: skip

WHOLE: list[tuple[dict[str, Any], str]] = [
    ({}, "give one image"),
    ({"image": PNG, "pixels": PIXELS}, "give one image"),
    ({"pixels": np.zeros((0, 0, 3), np.uint8)}, "is empty"),
    ({"pixels": np.zeros((64, 0, 3), np.uint8)}, "is empty"),
    ({"pixels": np.zeros((8, 8, 4), np.uint8)}, "is no image"),
    ({"pixels": np.zeros((3, 8, 8), np.uint8)}, "is no image"),
    ({"image": [PNG, PNG]}, "image has 2 values: give one"),
    ({"image": []}, "image has 0 values: give one"),
    ({"image": PNG, "task": ["predict", "certify"]}, "task has 2 values: give one"),
    ({"image": PNG, "n": [10, 20]}, "n has 2 values: give one"),
    ({"image": PNG, "sigma": []}, "sigma has 0 values: give one"),
]  # fmt: skip

OF_TRITON: list[tuple[Any, str]] = [
    (tensor("sigma", 0.25, datatype="FP32"), "data-type is 'FP32'"),
    (tensor("pixels", np.zeros((8, 8), np.uint8)), "unexpected shape"),
]
"""What Triton itself refuses before the model hears of it."""


def test_there_are_fifty_kinds_of_bad_requests() -> None:
    assert len(IMAGES) + len(TERMS) + len(WHOLE) >= 50


def test_images_that_are_none_are_refused(stream: Stream) -> None:
    for image, words in IMAGES:
        said = stream.refusal(inputs(image=image, task="predict", n=12))
        assert re.search(words, said), (image[:30], said)
        assert "Traceback" not in said and "\n" not in said


def test_terms_that_cannot_hold_are_refused(stream: Stream) -> None:
    for terms, words in TERMS:
        said = stream.refusal(inputs(image=PNG, **terms))
        assert re.search(words, said), (terms, said)
        assert "Traceback" not in said and "\n" not in said


def test_requests_without_one_image_are_refused(stream: Stream) -> None:
    for given, words in WHOLE:
        assert words in stream.refusal(inputs(**given))


def test_what_triton_refuses_by_itself_leaves_the_model_alone(triton: Triton) -> None:
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    broken = []
    for raw in (b"", b"\x01", b"\xff\xff\xff\x7fabc", struct.pack("<I", 2) + b"abc"):
        broken.append((tensor("image", "replaced"), "string"))
        broken[-1][0]._raw_content = raw
    for refused, words in (*OF_TRITON, *broken):
        with pytest.raises(grpc.InferenceServerException, match=words):
            client.infer(PLAIN, [refused])
    assert client.infer(PLAIN, inputs(image=PNG, task="predict", n=12)).as_numpy("counts").sum() == 12


def test_a_parameter_is_a_misspelt_term(triton: Triton, stream: Stream) -> None:
    assert "certify takes no sgima" in stream.refusal(inputs(image=PNG), parameters={"sgima": 1})
    status, body = generate(triton, image=base64.b64encode(PNG).decode(), sgima=0.5)
    assert (status, "certify takes no sgima" in body) == (400, True)


def test_the_code_of_an_error_is_the_client_s_fault(triton: Triton) -> None:
    """Where there is a code: in a stream Triton's client is told the words alone."""
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    with pytest.raises(grpc.InferenceServerException) as caught:
        client.infer(PLAIN, inputs(image=PNG, n=3))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_what_generate_cannot_take_is_an_error_of_one_line(triton: Triton) -> None:
    image = base64.b64encode(PNG).decode()
    for fields in (
        {"image": image, "n": "many"},
        {"image": image, "n": 10.5},
        {"image": image, "sigma": [0.1, 0.2]},
        {"image": 7},
        {"image": None},
        {"image": "&&&"},
        {"pixels": [[1, 2], [3]]},
    ):
        status, body = generate(triton, **fields)
        assert status in (400, 500), fields
        assert body.startswith('{"error":"') and "Traceback" not in body


def test_a_refinement_by_generate_says_which_endpoint_streams(triton: Triton) -> None:
    image = base64.b64encode(PNG).decode()
    _, body = generate(triton, image=image, task="refine", n=30)
    assert "use generate stream" in body


def test_more_than_may_wait_is_refused_until_there_is_room(triton: Triton) -> None:
    with Stream(triton) as stream:
        for _ in range(2):
            stream.begin(inputs(image=PNG, n=50_000))
        triton.until("fvit_rows_waiting", lambda waiting: waiting > 90_000)
        assert "leaves no room for 5,000 more" in stream.refusal(inputs(image=PNG, n=5000))
