"""Which GPU is this, and what runs on it?

python -m benchmarks.gpu.environment [--index 0] [--json FILE]
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.keeping import tell
from benchmarks.machine import machine, versions
from fvit.errors import FvitError
from fvit.extras import require


def management(index: int) -> tuple[Any, Any]:
    """NVML, and its handle of the GPU that CUDA counts as this one. Raises FvitError where there is none."""
    nvml = require("pynvml", extra="dev", purpose="what a GPU says of itself")
    driver = require("pycuda.driver", extra=None, purpose="running on a GPU")
    driver.init()
    try:
        nvml.nvmlInit()
        return nvml, nvml.nvmlDeviceGetHandleByPciBusId(driver.Device(index).pci_bus_id().encode())
    except nvml.NVMLError as error:
        raise FvitError(f"NVML knows nothing of GPU {index}: {error}") from error


def environment(index: int) -> dict[str, Any]:
    """The GPU, its driver and its limits, the interpreter and the versions of what uses them."""
    nvml, handle = management(index)
    found: dict[str, Any] = {
        "gpu": nvml.nvmlDeviceGetName(handle),
        "driver": nvml.nvmlSystemGetDriverVersion(),
        "memory_mb": nvml.nvmlDeviceGetMemoryInfo(handle).total / 1e6,
    }
    limits = {
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "sm_mhz_at_most": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz_at_most": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
    }
    for name, ask in limits.items():
        try:
            found[name] = ask()
        except nvml.NVMLError as error:  # a virtual machine may hide it
            found[name] = str(error)
    others = versions("pycuda", "timm", "diffusers", "onnx")
    return found | {"python": platform.python_version()} | machine() | others


def main(
    index: Annotated[int, typer.Option(help="The GPU's number, as CUDA counts.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it here.")] = None,
) -> None:
    tell(environment(index), file=json_file)


if __name__ == "__main__":
    typer.run(main)
