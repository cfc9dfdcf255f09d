"""What trains: an accelerator or processors, how fast and with how much memory.

Peaks are dense, from the vendor's data sheets; what is reached of them is a range with a reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.estimate.prices import Machine

GIB = 1024**3
# Of the 80 GiB on the label, an A100 shows 79.1; the context and kernels of CUDA are in the estimate.
_SHOWN = 0.99
# Of a node's memory, what the system and Azure's agent keep.
_SYSTEM_GIB = 4
# Measured with trainer/ on two shared cores of an AMD EPYC (Zen 5, AVX-512): 45 GFLOP/s for the built-in model on one
# thread, 92 to 127 for a 119-million-parameter Phi-3 on two.
_CPU_FLOPS_PER_CORE = (15e9, 80e9)
# Azure's vCPU is one of two threads of a core, and those of the v3 sizes are older ones.
_VCPU_FLOPS = (8e9, 45e9)
# Reached of a GPU's peak by the trainer's stack (32-bit weights under autocast, sdpa): below what tuned stacks report
# (46 % PaLM, arXiv:2204.02311; 38 to 43 % Llama 3, arXiv:2407.21783).
_GPU_SHARE = (0.20, 0.45)
_GPU_SHARE_FP32 = (0.4, 0.8)
_SMALL_MODEL = 20_000_000  # parameters; trainer/model.py gives such a one a single thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One kind of GPU: dense peaks in TFLOP/s, memory bandwidth in GB/s; bf16 is 0 where it has no units for it."""

    bf16_tflops: float
    fp32_tflops: float
    gb_per_second: float
    sheet: str


_SHEETS = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center"
ACCELERATORS = {
    "A100": Accelerator(
        bf16_tflops=312, fp32_tflops=19.5, gb_per_second=1935, sheet=f"{_SHEETS}/a100/pdf/nvidia-a100-datasheet.pdf"
    ),
    "H100-NVL": Accelerator(
        bf16_tflops=835, fp32_tflops=60, gb_per_second=3938, sheet="https://www.nvidia.com/en-us/data-center/h100/"
    ),
    "H100": Accelerator(
        bf16_tflops=989, fp32_tflops=67, gb_per_second=3350, sheet="https://www.nvidia.com/en-us/data-center/h100/"
    ),
    "H200": Accelerator(
        bf16_tflops=989, fp32_tflops=67, gb_per_second=4800, sheet="https://www.nvidia.com/en-us/data-center/h200/"
    ),
    "V100": Accelerator(
        bf16_tflops=0, fp32_tflops=14, gb_per_second=900, sheet="https://www.nvidia.com/en-us/data-center/v100/"
    ),
    "T4": Accelerator(
        bf16_tflops=0, fp32_tflops=8.1, gb_per_second=320, sheet="https://www.nvidia.com/en-us/data-center/tesla-t4/"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What one process of a training computes on.

    Args:
        name: for people.
        flops: of matrix products in training, as (least, most) a second; of evaluating in 32 bits in `fp32_flops`.
        memory_bytes: of the GPU, or of the node; None where it is not known.
        bytes_per_second: of its memory.
        why: where the two rates come from.
    """

    name: str
    is_gpu: bool
    bf16: bool
    flops: tuple[float, float]
    fp32_flops: tuple[float, float]
    memory_bytes: float | None
    bytes_per_second: float
    why: str
    warning: str = ""


def training_hardware(config: PipelineConfig, machine: Machine, num_parameters: int) -> Hardware | None:
    """The hardware of one process; None for a size of which nothing is known."""
    if not config.is_remote:
        cores = (os.cpu_count() or 1, _CPU_FLOPS_PER_CORE)
        return _this_gpu(config) or _processors("this machine", cores, _this_memory(), num_parameters)
    if machine.gpus:
        found = ACCELERATORS.get(machine.gpu)
        if found is None:
            return None
        idle = machine.gpus - config.compute.processes_per_node
        warning = f"{machine.size} has {machine.gpus} GPUs; compute.processes_per_node uses {machine.gpus - idle}"
        hardware = _gpu(machine.gpu, found, machine.gpu_memory_gib, config)
        return _warned(hardware, warning) if idle > 0 else hardware
    if not machine.vcpus:
        return None
    memory = (machine.memory_gib - _SYSTEM_GIB) * GIB if machine.memory_gib else None
    return _processors(machine.size, (machine.vcpus, _VCPU_FLOPS), memory, num_parameters)


def _gpu(name: str, found: Accelerator, memory_gib: float | None, config: PipelineConfig) -> Hardware:
    bf16 = bool(found.bf16_tflops) and config.train.bf16 is not False
    peak = (found.bf16_tflops if bf16 else found.fp32_tflops) * 1e12
    low, high = _GPU_SHARE if bf16 else _GPU_SHARE_FP32
    kind = f"bf16, dense ({found.sheet})" if bf16 else f"32 bits ({found.sheet})"
    fp32 = found.fp32_tflops * 1e12
    warning = "" if found.bf16_tflops else f"{name} has no bfloat16 units, so it trains at the speed of 32 bits"
    return Hardware(
        name=f"one {name} with {memory_gib:g} GiB" if memory_gib else f"one {name}",
        is_gpu=True,
        bf16=bf16,
        flops=(peak * low, peak * high),
        fp32_flops=(fp32 * _GPU_SHARE_FP32[0], fp32 * _GPU_SHARE_FP32[1]),
        memory_bytes=memory_gib * GIB * _SHOWN if memory_gib else None,
        bytes_per_second=found.gb_per_second * 1e9,
        why=f"{low:.0%} to {high:.0%} of {peak / 1e12:g} TFLOP/s in {kind}",
        warning=warning,
    )


def _processors(
    name: str, cores: tuple[int, tuple[float, float]], memory: float | None, num_parameters: int
) -> Hardware:
    number, each = cores
    used = 1 if num_parameters < _SMALL_MODEL else number
    rate = (each[0] * used, each[1] * used)
    return Hardware(
        name=f"{name} with {number} cores",
        is_gpu=False,
        bf16=False,
        flops=rate,
        fp32_flops=rate,
        memory_bytes=memory,
        bytes_per_second=2e10,
        why=f"{used} of {number} cores at {each[0] / 1e9:g} to {each[1] / 1e9:g} GFLOP/s",
    )


def _warned(hardware: Hardware, warning: str) -> Hardware:
    return replace(hardware, warning="; ".join(filter(None, (hardware.warning, warning))))


def _this_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _this_gpu(config: PipelineConfig) -> Hardware | None:
    """The first NVIDIA GPU of this machine, if it has one that is known here."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, _, megabytes = told.splitlines()[0].rpartition(",")
        memory_gib = round(float(megabytes) / 1024)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    known = next((kind for kind in ACCELERATORS if kind.replace("-", " ") in name.replace("-", " ")), None)
    return _gpu(known, ACCELERATORS[known], memory_gib, config) if known else None
