"""Clients over gRPC and HTTP, as anybody would write them with tritonclient."""

from __future__ import annotations

import json
import queue
import urllib.error
import urllib.request
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from fvit.triton.tensors import INPUTS
from tests.triton.server import LIMIT, Triton

Response = dict[str, NDArray[Any]]


def inputs(**given: Any) -> list[Any]:
    """Tensors of what is asked: image, pixels, task, sigma, …"""
    return [tensor(name, value) for name, value in given.items()]


def tensor(name: str, value: Any, *, datatype: str | None = None) -> Any:
    """One input, of the type that the model says unless told."""
    of_model = INPUTS[name].data_type.removeprefix("TYPE_").replace("STRING", "BYTES")
    kind = datatype or of_model
    if isinstance(value, str):
        value = value.encode()
    array = np.atleast_1d(np.array(value, triton_to_np_dtype(kind)))
    found = grpc.InferInput(name, array.shape, kind)
    found.set_data_from_numpy(array)
    return found


class Stream:
    """A gRPC stream to a model that answers with any number of responses."""

    def __init__(self, triton: Triton, *, model: str = "fvit") -> None:
        self._client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
        self._model = model
        self._heard: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._client.start_stream(lambda result, error: self._heard.put((result, error)))

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def begin(self, tensors: Sequence[Any], **how: Any) -> None:
        """Ask, and go on."""
        self._client.async_stream_infer(self._model, tensors, enable_empty_final_response=True, **how)

    def hear(self) -> tuple[Response, bool]:
        """The next response, and whether it is the last; raises what the server says is wrong."""
        result, error = self._heard.get(timeout=LIMIT)
        if error is not None:
            raise error
        answer = result.get_response()
        outputs = {output.name: result.as_numpy(output.name) for output in answer.outputs}
        return outputs, answer.parameters["triton_final_response"].bool_param

    def ask(self, **given: Any) -> Response:
        """The one response to what is asked."""
        self.begin(inputs(**given))
        outputs, last = self.hear()
        assert last
        return outputs

    def all(self, **given: Any) -> list[Response]:
        """The responses to what is asked, to the last one that holds anything."""
        self.begin(inputs(**given))
        responses, last = [], False
        while not last:
            outputs, last = self.hear()
            responses += [outputs] if outputs else []
        return responses

    def refusal(self, tensors: Sequence[Any], **how: Any) -> str:
        """What the server says is wrong with a request."""
        self.begin(tensors, **how)
        try:
            self.hear()
        except InferenceServerException as error:
            return str(error.message())
        raise AssertionError("this was answered")

    def leave(self) -> None:
        """Close the stream and cancel what runs."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


def generate(triton: Triton, *, stream: bool = False, model: str = "fvit", **fields: Any) -> tuple[int, str]:
    """(status, body) of the generate endpoint."""
    address = f"http://127.0.0.1:{triton.http}/v2/models/{model}/generate{'_stream' if stream else ''}"
    request = urllib.request.Request(address, json.dumps(fields).encode())
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def record(response: Response) -> dict[str, Any]:
    """The record of a certificate."""
    found: dict[str, Any] = json.loads(response["record"].item())
    return found
