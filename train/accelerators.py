"""Which accelerator a training takes: ask nvidia-smi, ask TensorFlow, decide, and prove it by work.

The parser, the decision and the proof are tested; the proof runs on logical CPU devices in
the tests. A run on real GPUs needs a machine that has them: `scripts/verify-gpu` is
what shows it there.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ProgramFailed, TidegateError
from train import nvidia_smi, runtime
from train.nvidia_smi import Smi, Unit

_SIDE = 512


@dataclass(frozen=True)
class Asked:
    """What the settings ask of the accelerator. Memory in MiB, for each GPU."""

    accelerator: str
    gpus_at_least: int = 1
    memory_mib_at_least: int = 0


@dataclass(frozen=True)
class Seen:
    """What was found: nvidia-smi's answer, how many GPUs TensorFlow lists, whether it is built for them."""

    smi: Smi
    tensorflow_gpus: int
    tensorflow_has_cuda: bool = True
    cuda_visible: str | None = None


@dataclass(frozen=True)
class Choice:
    """What is taken, and the sentence that says so. `missing` is why GPUs cannot be, one text each."""

    kind: str
    sentence: str
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether what was asked for cannot be had."""
        return self.kind == ""


def decide(asked: Asked, seen: Seen) -> Choice:
    """GPUs or CPU; `kind` is empty where gpu was asked for and something is missing. Pure."""
    if asked.accelerator == "cpu":
        return Choice("cpu", "train.accelerator is cpu: training on the CPU")
    lacks = missing(asked, seen)
    count = seen.tensorflow_gpus
    if not lacks:
        names = ", ".join(unit.label for unit in nvidia_smi.units(seen.smi, seen.cuda_visible) or ())
        return Choice("gpu", f"training on {_gpus(count)}: {names}", warnings=tuple(_company(seen)))
    if asked.accelerator == "gpu":
        return Choice("", "train.accelerator is gpu, and no CPU stands in for it", missing=lacks)
    if seen.smi.problem and count >= asked.gpus_at_least:
        note = f"memory, ECC errors and other processes were not looked at: {seen.smi.problem}"
        return Choice("gpu", f"train.accelerator is auto: training on {_gpus(count)}", lacks, (note,))
    here = bool(seen.smi.gpus or count)
    notes = tuple(f"a GPU is here and not used: {lack}" for lack in lacks) if here else ()
    return Choice("cpu", f"train.accelerator is auto: training on the CPU, because {lacks[0]}", lacks, notes)


def missing(asked: Asked, seen: Seen) -> tuple[str, ...]:
    """What GPU training lacks here; empty if nothing. Pure."""
    if seen.smi.problem:
        return (seen.smi.problem,)
    units = nvidia_smi.units(seen.smi, seen.cuda_visible)
    if units is not None and not units:
        return (_none_visible(seen),)
    return (*_disagreement(units, seen), *_too_few(asked, seen), *_unfit(units or (), asked))


def _none_visible(seen: Seen) -> str:
    here = _gpus(len(seen.smi.gpus))
    if seen.cuda_visible is not None:
        return f"nvidia-smi sees {here}, and CUDA_VISIBLE_DEVICES={seen.cuda_visible!r} hides all; unset it"
    return f"nvidia-smi sees {here} in MIG mode without a slice; make one (nvidia-smi mig -cgi … -C)"


def _disagreement(units: tuple[Unit, ...] | None, seen: Seen) -> list[str]:
    """nvidia-smi can see a GPU that TensorFlow cannot."""
    count = seen.tensorflow_gpus
    if (units is None and count) or (units is not None and len(units) == count):
        return []
    shown = f"shows {len(units)} of them to this process" if units is not None else "shows some of them"
    text = f"nvidia-smi sees {_gpus(len(seen.smi.gpus))}, CUDA {shown}, TensorFlow can use {count}"
    if not seen.tensorflow_has_cuda:
        why = (
            "the CPU build of TensorFlow is installed. Use the GPU image (docker/train.Dockerfile with its GPU "
            "base), or install tensorflow[and-cuda] of the same version"
        )
    else:
        why = (
            f"a CUDA library is missing, or the driver (version {seen.smi.gpus[0].driver}) is too old for this "
            "TensorFlow. TF_CPP_MIN_LOG_LEVEL=0 shows which library could not be loaded"
        )
    return [f"{text}: {why}"]


def _too_few(asked: Asked, seen: Seen) -> list[str]:
    if seen.tensorflow_gpus >= asked.gpus_at_least:
        return []
    usable = _gpus(seen.tensorflow_gpus)
    return [f"TensorFlow can use {usable}, train.gpus_at_least asks for {asked.gpus_at_least}"]


def _unfit(units: tuple[Unit, ...], asked: Asked) -> list[str]:
    texts = []
    for unit in units:
        has, word = (unit.free_mib, "free") if unit.free_mib is not None else (unit.memory_mib, "in all")
        if has is not None and has < asked.memory_mib_at_least:
            texts.append(
                f"{unit.label} has {has:,} MiB {word}, train.gpu_memory_mib_at_least asks for "
                f"{asked.memory_mib_at_least:,}"
            )
        if unit.gpu.ecc_errors:
            texts.append(
                f"{unit.label} counts {unit.gpu.ecc_errors:,} uncorrected ECC errors since its driver was "
                "loaded: its memory cannot be trusted. Reset it (nvidia-smi -r) or have it replaced"
            )
    return texts


def _company(seen: Seen) -> list[str]:
    """A word on each other program that computes on a GPU."""
    index = {gpu.uuid: gpu.index for gpu in seen.smi.gpus}
    return [
        f"GPU {index.get(p.gpu_uuid, '?')} is shared with {p.name} (process {p.pid or 'unknown'}, "
        + (f"{p.used_mib:,} MiB)" if p.used_mib is not None else "memory unknown)")
        for p in seen.smi.processes
    ]


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def look(accelerator: str) -> Seen:
    """Asks nvidia-smi and TensorFlow; asks neither if the CPU is wanted anyway."""
    if accelerator == "cpu":
        return Seen(Smi(), 0)
    smi = nvidia_smi.look()
    tf = runtime.tensorflow()
    return Seen(
        smi,
        tensorflow_gpus=len(tf.config.list_physical_devices("GPU")),
        tensorflow_has_cuda=bool(tf.test.is_built_with_cuda()),
        cuda_visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def take(asked: Asked, replicas: int) -> Any:
    """Looks, decides, starts TensorFlow on what was decided and proves it by work.

    Returns the choice, what was seen, a MirroredStrategy over all GPUs or `replicas` logical
    CPU devices, and the proof. Raises ProgramFailed with everything that is missing.
    """
    seen = look(asked.accelerator)
    choice = decide(asked, seen)
    if choice.refused:
        raise ProgramFailed("\n".join([f"{choice.sentence}:", *(f"  - {lack}." for lack in choice.missing)]))
    devices = runtime.use_gpus() if choice.kind == "gpu" else runtime.use_cpu(replicas)
    strategy = runtime.tensorflow().distribute.MirroredStrategy(devices)
    return choice, seen, strategy, prove(strategy, devices)


def prove(strategy: Any, devices: Sequence[str]) -> list[dict]:
    """A product on each device and an all-reduce over all, each held against the exact result.

    The numbers are small whole numbers, so that every format (TF32 too) must give them
    exactly. Returns for each device its name and the seconds it took. Raises ProgramFailed
    naming the device that erred.
    """
    tf = runtime.tensorflow()
    done = [_product(tf, device) for device in devices]
    replicas = strategy.num_replicas_in_sync
    expected = replicas * (replicas + 1) / 2
    for device, found in zip(devices, _sum_everywhere(tf, strategy), strict=True):
        if found != expected:
            raise ProgramFailed(
                f"the all-reduce over {replicas} devices gave {found:g} on {device}, must give {expected:g}. "
                "The link between the devices is not to be trusted; training stops here."
            )
    return done


def _sum_everywhere(tf: Any, strategy: Any) -> list[float]:
    """Each device adds its number, from 1, to an all-reduce; what each then holds."""
    if strategy.num_replicas_in_sync == 1:
        return [1.0]  # nothing to reduce, and MirroredStrategy refuses to
    mine = strategy.experimental_distribute_values_from_function(
        lambda replica: tf.constant(float(replica.replica_id_in_sync_group + 1))
    )

    @tf.function
    def total(numbers: Any) -> Any:
        return strategy.run(
            lambda one: tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, one),
            (numbers,),
        )

    return [float(found) for found in strategy.experimental_local_results(total(mine))]


def _product(tf: Any, device: str) -> dict:
    rows = (np.arange(_SIDE * _SIDE).reshape(_SIDE, _SIDE) % 7).astype(np.float32)
    started = time.perf_counter()
    try:
        with tf.device(device):
            product = tf.linalg.matmul(tf.constant(rows), tf.constant(rows))
        found = product.numpy()
    except tf.errors.OpError as error:
        raise ProgramFailed(f"{device} could not multiply two matrices: {error.message}") from error
    if not product.device.upper().endswith(device.strip("/").upper()):
        raise ProgramFailed(
            f"a product meant for {device} ran on {product.device}: TensorFlow has no kernel for it there."
        )
    if not (found == rows.astype(np.float64) @ rows.astype(np.float64)).all():
        raise ProgramFailed(
            f"{device} multiplied two matrices wrongly. It is not to be trusted; training stops here."
        )
    return {"device": device, "seconds": round(time.perf_counter() - started, 3)}


def report(choice: Choice, seen: Seen, proof: list[dict]) -> dict:
    """All of it as plain values, for accelerator.json."""
    return {
        "took": choice.kind,
        "sentence": choice.sentence,
        "missing": list(choice.missing),
        "warnings": list(choice.warnings),
        "tensorflow_gpus": seen.tensorflow_gpus,
        "tensorflow_has_cuda": seen.tensorflow_has_cuda,
        "cuda_visible_devices": seen.cuda_visible,
        "nvidia_smi": dataclasses.asdict(seen.smi),
        "proof": proof,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Tells what a training on this machine would take; exit code 5 where that is not what is required."""
    parser = argparse.ArgumentParser(prog="python -m train.accelerators", description=main.__doc__)
    parser.add_argument("--require", choices=("gpu", "auto", "cpu"), default="auto")
    parser.add_argument("--gpus-at-least", type=int, default=1, metavar="N")
    parser.add_argument("--memory-mib-at-least", type=int, default=0, metavar="MIB", help="on each GPU")
    parser.add_argument("--json", action="store_true", help="the whole report on stdout")
    options = parser.parse_args(argv)
    asked = Asked(options.require, options.gpus_at_least, options.memory_mib_at_least)
    try:
        choice, seen, _, proof = take(asked, replicas=2)
    except TidegateError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(report(choice, seen, proof), indent=2))
        return 0
    print(choice.sentence)
    for warning in choice.warnings:
        print(f"warning: {warning}")
    for line in proof:
        print(f"{line['device']}: product right, {line['seconds']} s")
    if len(proof) > 1:
        print(f"all-reduce over {len(proof)} devices: right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
