"""Native TensorRT, 8.6 and newer: plans built from a bundle's graphs for one GPU, kept in the bundle, run.

A plan serves one GPU model, one TensorRT version, one batch size and one graph: all of that is in its
name, so that a plan which does not fit is never loaded.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvit.engines.base import PLANS, Engine, Memory, Tensor
from fvit.engines.opsets import convert
from fvit.errors import FvitError, OutOfMemory
from fvit.extras import require


@dataclass(frozen=True)
class PlanKey:
    """What a plan is good for. capability: such as "9.0"; graph: SHA-256 that stands for the ONNX file and
    its weights."""

    gpu: str
    capability: str
    tensorrt: str
    precision: str
    batch: int
    graph: str

    @property
    def builder(self) -> str:
        """What builds it: measured times of layers are good for every plan of the same."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{gpu}-sm{self.capability}-trt{self.tensorrt}"

    def file(self, bundle: Path, graph: Path) -> Path:
        """Where this plan of that graph lies in a bundle."""
        name = f"{graph.stem}-{self.builder}-{self.precision}-b{self.batch}-{self.graph[:12]}.plan"
        return bundle / PLANS / name


def plan_key(*, gpu: str, capability: tuple[int, int], precision: str, batch: int, graph: str) -> PlanKey:
    """The key of the plan that this TensorRT would build of a graph on that GPU."""
    trt = _tensorrt()
    return PlanKey(gpu, f"{capability[0]}.{capability[1]}", trt.__version__, precision, batch, graph)


def find_plan(bundle: Path, graph: Path, key: PlanKey) -> Path:
    """The plan in the bundle that fits. Raises FvitError with the command that builds it, and with what
    there is instead."""
    plan = key.file(bundle, graph)
    if plan.is_file():
        return plan
    others = sorted(file.name for file in plan.parent.glob(f"{graph.stem}-*.plan"))
    instead = f"; there are only {', '.join(others)}" if others else ""
    raise FvitError(
        f"{bundle} has no TensorRT plan for {key.gpu}, TensorRT {key.tensorrt}, batch {key.batch}{instead}: "
        f"build it with  fvit-export engine {bundle} --batch {key.batch}"
    )


def planned_batches(bundle: Path, graph: Path, key: PlanKey) -> set[int]:
    """The batches for which the bundle has plans of this graph that are like `key` otherwise."""
    found = set()
    for plan in (bundle / PLANS).glob("*.plan"):
        said = re.search(r"-b(\d+)-", plan.name)
        if said and plan == replace(key, batch=int(said[1])).file(bundle, graph):
            found.add(int(said[1]))
    return found


def build_plan(bundle: Path, graph: Path, key: PlanKey, *, workspace: int, verbose: bool = False) -> Path:
    """Build the plan of a bundle's graph for the GPU whose context is current, and write it whole.

    Precision is what the graph's types say: TensorRT 10 and newer build a strongly typed network, older
    ones get the builder flags that let them follow the types. workspace: bytes that a layer may use
    beside its inputs and outputs. The times of layers that were measured are kept beside the plan. Raises
    FvitError where the graph cannot be parsed or built.
    """
    trt = _tensorrt()
    plan = key.file(bundle, graph)
    major = int(trt.__version__.split(".")[0])
    logger = trt.Logger(trt.Logger.VERBOSE if verbose else trt.Logger.WARNING)
    builder = _started(trt.Builder, logger)
    kinds = trt.NetworkDefinitionCreationFlag
    flags = 0
    if major < 10:  # networks know their batch always, from version 10 on
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    elif hasattr(kinds, "STRONGLY_TYPED"):  # and their types, from version 11 on
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    plan.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=plan.parent) as folder:
        read = graph
        if major < 10:
            read = Path(folder) / graph.name
            convert(graph, read, opset=17, batch=key.batch)
        if not parser.parse_from_file(str(read)):
            raise FvitError(f"{graph} cannot be parsed by TensorRT {trt.__version__}: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32; who wants speed exports fp16
    if major < 10:
        for name in {"fp32": (), "fp16": ("FP16",), "int8": ("INT8",)}[key.precision]:
            config.set_flag(getattr(trt.BuilderFlag, name))
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if free := [tensor for tensor in inputs if -1 in tuple(tensor.shape)]:
        profile = builder.create_optimization_profile()
        for tensor in free:
            whole = tuple(key.batch if side == -1 else side for side in tensor.shape)
            profile.set_shape(tensor.name, whole, whole, whole)
        config.add_optimization_profile(profile)
    timings = plan.parent / f"{key.builder}.timings"
    cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):  # the file is damaged
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise FvitError(
            f"TensorRT {trt.__version__} cannot build {graph.name} at batch {key.batch}: "
            "what it said is above, or with --verbose"
        )
    _write_whole(timings, bytes(config.get_timing_cache().serialize()))
    _write_whole(plan, bytes(built))
    return plan


class TensorRTEngine(Engine):
    """A plan on one GPU. precision: what it was built in. gpu: makes that GPU's context current while it is
    entered."""

    name = "tensorrt"
    capturable = True

    def __init__(
        self, plan: Path, *, device: str, precision: str, gpu: AbstractContextManager[None], stream: int
    ) -> None:
        trt = _tensorrt()
        self._gpu = gpu
        self._turn = Lock()  # a context holds the addresses that it works on
        self._runtime = _started(trt.Runtime, trt.Logger(trt.Logger.WARNING))
        with gpu:
            self._plan = self._runtime.deserialize_cuda_engine(plan.read_bytes())
            if self._plan is None:
                raise FvitError(f"{plan} cannot be loaded: build it again with  fvit-export engine")
            self._context = self._plan.create_execution_context()
        if self._context is None:
            raise OutOfMemory(
                f"{device} has no memory for {plan.name}: free some, or build plans for a smaller --batch"
            )
        self._stream = stream
        self.device, self.precision = device, precision
        tensors: dict[bool, list[Tensor]] = {True: [], False: []}
        for i in range(self._plan.num_io_tensors):
            name = self._plan.get_tensor_name(i)
            kind = np.dtype(trt.nptype(self._plan.get_tensor_dtype(name)))
            is_input = self._plan.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shape = tuple(self._plan.get_tensor_shape(name))
            if is_input and -1 in shape:
                _, shape, _ = map(tuple, self._plan.get_tensor_profile_shape(name, 0))
                self._context.set_input_shape(name, shape)
            tensors[is_input].append(Tensor(name, shape, kind))
        self.inputs = tuple(tensors[True])
        # Outputs take their batch from the inputs.
        self.outputs = tuple(
            Tensor(each.name, tuple(self._context.get_tensor_shape(each.name)), each.dtype)
            for each in tensors[False]
        )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Host arrays in and out, padded to the plan's batch: for checks, not for speed."""
        first_input = self.inputs[0]
        rows, batch = len(feeds[first_input.name]), int(first_input.shape[0] or 0)
        results = []
        for first in range(0, rows, batch):
            part = {name: values[first : first + batch] for name, values in feeds.items()}
            with self._gpu:
                results.append(self._run_one(part))
        return {name: np.concatenate([part[name] for part in results])[:rows] for name in results[0]}

    def _run_one(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        driver = require("pycuda.driver", extra="tensorrt", purpose="running a plan")
        memory = {}
        for tensor in (*self.inputs, *self.outputs):
            shape = tuple(side or 0 for side in tensor.shape)
            owner = driver.mem_alloc(tensor.dtype.itemsize * int(np.prod(shape)))
            memory[tensor.name] = Memory(int(owner), shape, tensor.dtype, owner)
        for tensor in self.inputs:
            values = np.resize(np.asarray(feeds[tensor.name], tensor.dtype), memory[tensor.name].shape)
            driver.memcpy_htod(memory[tensor.name].pointer, np.ascontiguousarray(values))
        self.bind(memory)()
        driver.Context.synchronize()
        results = {}
        for tensor in self.outputs:
            found: NDArray[Any] = np.empty(memory[tensor.name].shape, tensor.dtype)
            driver.memcpy_dtoh(found, memory[tensor.name].pointer)
            results[tensor.name] = found
        return results

    def bind(self, memory: Mapping[str, Memory]) -> Callable[[], None]:
        batch = int(self.inputs[0].shape[0] or 0)
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        parts = [
            {name: memory[name].rows(range(first, first + batch)).pointer for name in names}
            for first in range(0, memory[names[0]].shape[0], batch)
        ]

        def execute() -> None:
            with self._turn, self._gpu:
                for part in parts:
                    for name, pointer in part.items():
                        self._context.set_tensor_address(name, pointer)
                    if not self._context.execute_async_v3(self._stream):
                        raise FvitError("TensorRT could not execute the plan: what it said is above")

        return execute


def _tensorrt() -> Any:
    return require("tensorrt", extra="tensorrt", purpose="TensorRT plans")


def _started(make: Callable[[Any], Any], logger: Any) -> Any:
    """A builder or a runtime."""
    try:
        return make(logger)
    except TypeError as error:  # how the bindings say that there is none
        raise FvitError(
            f"TensorRT {_tensorrt().__version__} cannot use this GPU or its driver: what it said is above"
        ) from error


def _write_whole(file: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "wb") as opened:
        opened.write(content)
    Path(temporary).replace(file)
