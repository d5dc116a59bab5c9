"""Ask nvidia-smi which GPUs there are, and read its answers. Imports no TensorFlow."""

import re
from dataclasses import dataclass, field

from pipeline import run
from pipeline.errors import ProgramFailed
from pipeline.run import Done

_TIMEOUT_S = 30.0
_GPU_FIELDS = (
    "index",
    "uuid",
    "name",
    "memory.total",
    "memory.used",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
    "mig.mode.current",
)
_PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")
_CSV = "--format=csv,noheader,nounits"

_ABSENT = (
    "nvidia-smi is not on PATH: this machine has no NVIDIA driver, or this container was started without its "
    "GPUs (docker run --gpus all, and the NVIDIA container toolkit on the host)"
)
_MEANINGS = (
    (
        "No devices were found",
        "the driver is loaded and finds no GPU; look at lspci and dmesg, or at what this container was given",
    ),
    (
        "version mismatch",
        "the driver in the kernel and its library differ, as after an update: reboot, or reload its modules",
    ),
    (
        "couldn't communicate with the NVIDIA driver",
        "the driver's kernel module is not loaded: install the driver for this kernel, or reboot",
    ),
    ("is lost", "a GPU has fallen off the bus: reboot, and suspect the hardware if it happens again"),
    ("Insufficient Permissions", "this user may not ask the driver"),
)


@dataclass(frozen=True)
class Gpu:
    """One row of nvidia-smi. Memory in MiB; None where nvidia-smi does not know (`[N/A]`)."""

    index: int
    uuid: str
    name: str
    memory_mib: int | None
    used_mib: int | None
    driver: str
    ecc_errors: int | None
    mig: bool = False


@dataclass(frozen=True)
class Slice:
    """A MIG slice: a part of a GPU that CUDA shows as a device of its own."""

    gpu_index: int
    uuid: str
    profile: str

    @property
    def memory_mib(self) -> int | None:
        """The memory in the profile's name: `3g.20gb` has 20 GiB."""
        found = re.search(r"g\.(\d+)gb", self.profile)
        return int(found[1]) * 1024 if found else None


@dataclass(frozen=True)
class Process:
    """A program that computes on a GPU."""

    gpu_uuid: str
    pid: int | None
    name: str
    used_mib: int | None


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi says, or in `problem` why it says nothing."""

    gpus: tuple[Gpu, ...] = ()
    slices: tuple[Slice, ...] = ()
    processes: tuple[Process, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Unit:
    """What CUDA shows to one process as one device: a whole GPU, or a MIG slice."""

    label: str
    memory_mib: int | None
    free_mib: int | None
    gpu: Gpu = field(repr=False)


def look() -> Smi:
    """Asks nvidia-smi; never raises: an absent, hanging or failing one is a `problem`."""
    try:
        run.find("nvidia-smi")
    except ProgramFailed:
        return Smi(problem=_ABSENT)
    try:
        gpus = _ask(f"--query-gpu={','.join(_GPU_FIELDS)}", _CSV)
        processes = _ask(f"--query-compute-apps={','.join(_PROCESS_FIELDS)}", _CSV)
        listing = _ask("-L")
    except ProgramFailed as error:
        return Smi(problem=f"{error} The driver hangs: look at dmesg, and reboot")
    return parse(gpus, processes, listing)


def _ask(*options: str) -> Done:
    return run.run(["nvidia-smi", *options], timeout_s=_TIMEOUT_S, check=False, echo=False)


def parse(gpus: Done, processes: Done, listing: Done) -> Smi:
    """The answers to the three questions (GPUs and processes as CSV, `-L` for MIG slices) as one."""
    said = f"{gpus.stdout}\n{gpus.stderr}".strip()
    lines = [line for line in gpus.stdout.splitlines() if line.strip()]
    rows = [_gpu(line) for line in lines]
    known = tuple(gpu for gpu in rows if gpu is not None)
    if gpus.returncode != 0 or not rows or len(known) < len(rows):
        return Smi(problem=_explain(gpus.returncode, said))
    return Smi(
        gpus=known,
        slices=tuple(_slices(listing.stdout)) if any(gpu.mig for gpu in known) else (),
        processes=tuple(filter(None, map(_process, processes.stdout.splitlines()))),
    )


def _gpu(line: str) -> Gpu | None:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(_GPU_FIELDS) or _number(cells[0]) is None or not cells[1].startswith("GPU-"):
        return None
    index, uuid, name, total, used, driver, ecc, mig = cells
    return Gpu(int(index), uuid, name, _number(total), _number(used), driver, _number(ecc), mig == "Enabled")


def _process(line: str) -> Process | None:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) < len(_PROCESS_FIELDS) or not cells[0].startswith("GPU-"):
        return None
    return Process(cells[0], _number(cells[1]), ",".join(cells[2:-1]), _number(cells[-1]))


def _slices(listing: str) -> list[Slice]:
    found, gpu = [], -1
    for line in listing.splitlines():
        if whole := re.match(r"GPU (\d+):", line):
            gpu = int(whole[1])
        elif part := re.match(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)", line):
            found.append(Slice(gpu, part[2], part[1]))
    return found


def _number(cell: str) -> int | None:
    return int(cell) if re.fullmatch(r"\d+", cell) else None


def _explain(returncode: int, said: str) -> str:
    first = said.splitlines()[0].strip() if said else "nothing"
    for mark, meaning in _MEANINGS:
        if mark in said:
            return f"nvidia-smi says {first!r}: {meaning}"
    return f"nvidia-smi gave an answer that is not a list of GPUs (exit status {returncode}): {first[:200]!r}"


def units(smi: Smi, cuda_visible: str | None) -> tuple[Unit, ...] | None:
    """What CUDA will show to this process, given CUDA_VISIBLE_DEVICES (None: not set).

    None if that cannot be told from here: without the variable, on a machine that has both
    whole GPUs and slices. CUDA shows at most one MIG slice to a process, and reads
    the variable up to the first entry that names nothing (CUDA C++ Programming Guide, Environment
    Variables; MIG User Guide, Device Enumeration).
    """
    if cuda_visible is None:
        whole = [_whole(gpu) for gpu in smi.gpus if not gpu.mig]
        parts = [_part(smi, part) for part in smi.slices]
        return None if whole and parts else tuple(whole or parts[:1])
    found: list[Unit] = []
    for name in cuda_visible.split(","):
        unit = _named(smi, name.strip())
        if unit is None or unit in found:
            break
        found.append(unit)
    return tuple(found[:1] if found and found[0].gpu.mig else found)


def _named(smi: Smi, name: str) -> Unit | None:
    if name.startswith("MIG-"):
        return next((_part(smi, part) for part in smi.slices if part.uuid.startswith(name)), None)
    for position, gpu in enumerate(smi.gpus):
        if name == str(position) or (name.startswith("GPU-") and gpu.uuid.startswith(name)):
            return _first_part(smi, gpu) if gpu.mig else _whole(gpu)
    return None


def _first_part(smi: Smi, gpu: Gpu) -> Unit | None:
    return next((_part(smi, part) for part in smi.slices if part.gpu_index == gpu.index), None)


def _whole(gpu: Gpu) -> Unit:
    free = None
    if gpu.memory_mib is not None and gpu.used_mib is not None:
        free = gpu.memory_mib - gpu.used_mib
    return Unit(f"GPU {gpu.index} ({gpu.name})", gpu.memory_mib, free, gpu)


def _part(smi: Smi, part: Slice) -> Unit:
    gpu = next(gpu for gpu in smi.gpus if gpu.index == part.gpu_index)
    return Unit(f"MIG slice {part.profile} of GPU {gpu.index} ({gpu.name})", part.memory_mib, None, gpu)
