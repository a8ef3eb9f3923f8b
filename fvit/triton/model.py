"""The model that Triton's Python backend runs: requests of all clients become stretches of one queue."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import traceback
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from fvit.certificates.record import Certificate
from fvit.certificates.terms import FIRST_LOOK
from fvit.errors import FvitError
from fvit.runtime.images import Picture
from fvit.runtime.loading import ON_CPU, load
from fvit.service.limits import check_waiting
from fvit.service.problems import Kind, Problem, stopping
from fvit.triton import BUNDLE
from fvit.triton.asked import COPIES, Request
from fvit.triton.metrics import Metrics
from fvit.triton.server import Server
from fvit.triton.tensors import of_certificate, of_prediction

WATCH = 0.25
"""Seconds between looks for requests that their clients have cancelled, and at the queue's figures."""

ORPHANED = 0.1
"""Seconds between looks whether the server lives: the backend itself looks three times a second, and leaves
its shared memory behind."""

CODES = {422: "INVALID_ARG", 429: "UNAVAILABLE", 503: "UNAVAILABLE"}
"""Triton's code for the status of a problem."""


class TritonPythonModel:
    """One FViT on one device. `execute` returns at once; the answers come from a thread of this object's."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle that lies beside model.py, and try it once. Raises TritonModelException where it
        cannot be had."""
        self._ended = threading.Event()
        server, region = _told_by_server()
        threading.Thread(target=_follow, args=(server, region, self._ended), daemon=True).start()
        config = json.loads(args["model_config"])
        told = {name: value["string_value"] for name, value in config["parameters"].items()}
        device = told["device"]
        if device not in ON_CPU:
            device += ":" + args["model_instance_device_id"]
        self._streams = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        try:
            self._most_copies, self._most_waiting, self._drain = (
                _limit(told, name) for name in ("max_n", "max_waiting", "drain")
            )
            self._vit = load(Path(pb_utils.get_model_dir()) / BUNDLE, device=device)
            size = self._vit.pipeline.image_size
            self._vit.predict(np.zeros((*size, 3), np.uint8))  # what is slow only once
        except FvitError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._name = args["model_name"]
        # Where requests run when the patience of a server ends with them, it does not end at all (2.51).
        self._server = Server.of(server)
        self._metrics = Metrics({"model": self._name, "version": args["model_version"], "device": device})
        self._stopping = False
        self._open: dict[_Caller, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fvit-triton", daemon=True)
        self._thread.start()
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin what is asked; responses go out as they are there."""
        for request in requests:
            caller = _Caller(request.get_response_sender())
            # Copied: their memory is Triton's.
            inputs = {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}
            parameters = json.loads(request.parameters() or "{}")
            asyncio.run_coroutine_threadsafe(self._serve(caller, inputs, parameters), self._loop)

    def finalize(self) -> None:
        """Give up what is open, end every thread and release the device."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._vit.close(cancel=True)
        self._ended.set()

    async def _serve(
        self, caller: _Caller, inputs: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[caller] = task
        try:
            with _told(422, "invalid-request"):
                request = Request.of(inputs, parameters)
            await self._answer(caller, request)
        except Problem as problem:
            caller.fail(problem.detail, code=CODES[problem.status])
        except asyncio.CancelledError:
            if self._stopping:
                caller.fail(stopping(1).detail, code="UNAVAILABLE")
            else:
                caller.fail("the request was cancelled", code="CANCELLED")
        except Exception:
            pb_utils.Logger.log_error(traceback.format_exc())
            caller.fail("this is a fault of the model's: it is logged", code="INTERNAL")
        finally:
            del self._open[caller]

    async def _answer(self, caller: _Caller, request: Request) -> None:
        vit, classes, terms = self._vit, self._vit.pipeline.classes, request.terms
        if request.task == "refine" and not self._streams:
            raise Problem(
                422, "invalid-request", "a refinement has several responses, and this model's config.pbtxt "
                "allows one: let it say  decoupled: true",
            )  # fmt: skip
        picture = await self._admitted(request)
        if request.task == "predict":
            with _told(422, "invalid-terms"):
                predicting = vit.predicting(picture, **terms)
            with _told(503, "engine-failed"):
                caller.end(of_prediction(await asyncio.wrap_future(predicting)))
        elif request.task == "certify":
            with _told(422, "invalid-terms"):
                wanted = await asyncio.to_thread(vit.terms, **terms)
            with _told(503, "engine-failed"):
                found = await asyncio.wrap_future(vit.certifying(picture, wanted))
            caller.end(of_certificate(found, classes=classes))
        else:
            seconds = terms.pop("seconds", None)
            with _told(422, "invalid-terms"):
                await asyncio.to_thread(vit.terms, refining=True, **terms)
            shown = cast(
                AsyncGenerator[Certificate, None], vit.refine_async(picture, seconds=seconds, **terms)
            )
            with _told(503, "engine-failed"):
                async with aclosing(shown):
                    async for certificate in shown:
                        caller.send(of_certificate(certificate, classes=classes))
            caller.end()

    async def _admitted(self, request: Request) -> Picture:
        """The picture of a request that may be served; its number of copies is then set."""
        vit, most = self._vit, min(self._most_copies, self._most_waiting)
        n = request.terms.setdefault("n", min(COPIES[request.task], most))
        if n > most:
            raise Problem(422, "over-limit", f"n = {n}: this model takes up to {most} copies of an image")
        grows = request.task == "refine" or "radius" in request.terms
        rows = min(n, FIRST_LOOK) if grows else n
        check_waiting(vit.queue, rows, most=self._most_waiting)
        with _told(422, "invalid-image"):
            picture = await asyncio.to_thread(request.read, size=vit.pipeline.image_size)
        check_waiting(vit.queue, rows, most=self._most_waiting)  # others came meanwhile
        return picture

    async def _watch(self) -> None:
        while True:
            try:
                self._metrics.tell(self._vit.queue.statistics)
                self._free_cancelled()
                asks = bool(self._open)
                if not self._stopping and await asyncio.to_thread(self._server.ends, asks=asks):
                    self._stopping = True
                    self._loop.call_later(self._drain, self._give_up)
            except Exception:
                pb_utils.Logger.log_error(traceback.format_exc())
            await asyncio.sleep(WATCH)

    def _free_cancelled(self) -> None:
        # Not in _watch: a name there would keep its last caller, and with it the model from being unloaded.
        for caller, task in list(self._open.items()):
            if caller.gone:
                task.cancel()

    def _give_up(self) -> None:
        for task in self._open.values():
            task.cancel()

    async def _end(self) -> None:
        self._watching.cancel()
        left = list(self._open.values())
        self._give_up()
        await asyncio.gather(*left)


class _Caller:
    """Who asked, until the last response: of one that has had it nothing may be asked any more."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._ended = False

    @property
    def gone(self) -> bool:
        """Whether the client has cancelled."""
        return bool(self._sender.is_cancelled())

    def send(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """A response, with others to follow."""
        self._sender.send(_response(outputs))

    def end(self, outputs: Mapping[str, NDArray[Any]] | None = None) -> None:
        """The last response, or none where there were some."""
        self._ended = True
        if outputs is None:
            self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        else:
            self._sender.send(_response(outputs), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, message: str, *, code: str) -> None:
        """An error as the last response; code: one of TritonError's."""
        if not self._ended:
            self._ended = True
            error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
            self._sender.send(
                pb_utils.InferenceResponse(output_tensors=[], error=error),
                flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
            )


def _response(outputs: Mapping[str, NDArray[Any]]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def _told_by_server() -> tuple[int, str]:
    """The server's process, and the shared memory between it and this one: it starts this one with both, and
    may be gone before a line of this is run."""
    told = Path("/proc/self/cmdline").read_bytes().decode().split("\0")
    return int(told[5]), told[2]


def _follow(server: int, region: str, ended: threading.Event) -> None:
    """End this process with its server, where that ends without it: killed, or out of patience with requests
    that run. It may wait for the server's answer to something, and would then do so for ever."""
    while os.getppid() == server:
        if ended.wait(ORPHANED):
            return
    Path("/dev/shm", region).unlink(missing_ok=True)  # nobody else is left to do it
    os._exit(1)


def _limit(told: Mapping[str, str], name: str) -> int:
    said = told[name]
    if not said.isdecimal() or int(said) < 1:
        raise FvitError(f"{name} is '{said}' in config.pbtxt: give a whole number from 1 on")
    return int(said)


@contextmanager
def _told(status: int, kind: Kind) -> Iterator[None]:
    """What is wrong within is this problem."""
    try:
        yield
    except FvitError as error:
        raise Problem(status, kind, str(error)) from error
