"""nvidia-smi's answers as they really look, what CUDA would show of them, and what training takes."""

import dataclasses

import pytest

from pipeline import run
from pipeline.errors import ProgramFailed
from pipeline.run import Done
from train import nvidia_smi
from train.accelerators import Asked, Seen, decide, missing
from train.nvidia_smi import Smi, parse, units

A, B = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "GPU-74f8a1c5-2d3d-9a7e-8b1f-2c1d9c3e4f55"
TWO = f"""0, {A}, NVIDIA H100 80GB HBM3, 81559, 4, 570.86.15, 0, Disabled
1, {B}, NVIDIA H100 80GB HBM3, 81559, 0, 570.86.15, 0, Disabled
"""
LISTING = f"""GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 1g.5gb      Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
"""
MIG = f"0, {A}, NVIDIA A100-SXM4-40GB, 40960, 3210, 535.161.08, 0, Enabled\n"


def done(stdout: str = "", returncode: int = 0, stderr: str = "") -> Done:
    return Done(("nvidia-smi",), returncode, stdout, stderr)


def answer(
    stdout: str = "", returncode: int = 0, stderr: str = "", processes: str = "", listing: str = ""
) -> Smi:
    return parse(done(stdout, returncode, stderr), done(processes), done(listing))


def test_several_gpus_are_read():
    smi = answer(TWO)
    assert smi.problem == ""
    assert [gpu.index for gpu in smi.gpus] == [0, 1]
    assert smi.gpus[0] == nvidia_smi.Gpu(0, A, "NVIDIA H100 80GB HBM3", 81559, 4, "570.86.15", 0)


UNKNOWN = [
    "[N/A]",
    "N/A",
    "[Not Supported]",
    "[Insufficient Permissions]",
    "[Unknown Error]",
    "[GPU requires reset]",
]


@pytest.mark.parametrize("word", UNKNOWN)
def test_what_a_gpu_does_not_tell_is_unknown_and_not_zero(word):
    smi = answer(f"0, {A}, NVIDIA GeForce RTX 3060, {word}, {word}, 535.183.01, {word}, {word}\n")
    assert smi.problem == ""
    (gpu,) = smi.gpus
    assert (gpu.memory_mib, gpu.used_mib, gpu.ecc_errors, gpu.mig) == (None, None, None, False)


def test_mig_slices_are_read_from_the_listing():
    smi = answer(MIG, listing=LISTING)
    assert [(part.profile, part.memory_mib, part.gpu_index) for part in smi.slices] == [
        ("3g.20gb", 20480, 0),
        ("1g.5gb", 5120, 0),
    ]


def test_other_programs_on_the_gpus_are_read():
    smi = answer(TWO, processes=f"{A}, 1234, /usr/bin/python3, 512\n{B}, [N/A], [Not Found], [N/A]\n")
    assert [(p.pid, p.name, p.used_mib) for p in smi.processes] == [
        (1234, "/usr/bin/python3", 512),
        (None, "[Not Found]", None),
    ]


MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161\n"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)
LOST = "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost.  Reboot the system to recover it\n"
FAILURES = {
    "no devices": (done("No devices were found\n", 6), "finds no GPU"),
    "no devices, and exit status 0": (done("No devices were found\n", 0), "finds no GPU"),
    "driver mismatch": (done(MISMATCH, 18), "reboot, or reload"),
    "driver not loaded": (done(NO_DRIVER, 9), "kernel module is not loaded"),
    "GPU lost": (done(LOST, 15), "fallen off the bus"),
    "silence": (done("", 0), "not a list of GPUs (exit status 0): 'nothing'"),
    "garbage": (done("\x00\x01 hello, world\n", 0), "not a list of GPUs"),
    "a web page": (done("<html>\n<body>,,,,,,,</body>", 0), "not a list of GPUs"),
    "an unknown field": (
        done('Field "mig.mode.current" is not a valid field to query.\n', 2),
        "exit status 2",
    ),
    "half a line": (done(TWO[:-30]), "not a list of GPUs"),
    "GPUs, and then a failure": (done(TWO, 15, "Unknown Error"), "exit status 15"),
}


@pytest.mark.parametrize(("gpus", "words"), FAILURES.values(), ids=FAILURES)
def test_an_answer_that_lists_no_gpus_is_a_problem_in_plain_words(gpus, words):
    smi = parse(gpus, done(), done())
    assert smi.gpus == ()
    assert words in smi.problem


def test_an_absent_nvidia_smi_is_a_problem_and_no_error(monkeypatch):
    def absent(program):
        raise ProgramFailed("nowhere")

    monkeypatch.setattr(run, "find", absent)
    assert "nvidia-smi is not on PATH" in nvidia_smi.look().problem


ONE_WHOLE_ONE_MIG = TWO.replace("0, Disabled\n1", "0, Enabled\n1")
VISIBLE = {
    "all": (TWO, "", None, ["GPU 0", "GPU 1"]),
    "one by number": (TWO, "", "1", ["GPU 1"]),
    "in another order": (TWO, "", "1,0", ["GPU 1", "GPU 0"]),
    "by the beginning of a UUID": (TWO, "", "GPU-74f8", ["GPU 1"]),
    "none": (TWO, "", "", []),
    "none, by -1": (TWO, "", "-1", []),
    "up to the first that names nothing": (TWO, "", "1,7,0", ["GPU 1"]),
    "one slice at most": (MIG, LISTING, None, ["MIG slice 3g.20gb of GPU 0"]),
    "a slice by UUID": (MIG, LISTING, "MIG-a28ad590", ["MIG slice 1g.5gb of GPU 0"]),
    "a sliced GPU by number": (MIG, LISTING, "0", ["MIG slice 3g.20gb of GPU 0"]),
    "MIG mode without a slice": (MIG, "", None, []),
}


@pytest.mark.parametrize(("gpus", "listing", "variable", "labels"), VISIBLE.values(), ids=VISIBLE)
def test_what_cuda_shows_to_a_process(gpus, listing, variable, labels):
    found = units(answer(gpus, listing=listing), variable)
    assert [unit.label.partition(" (")[0] for unit in found] == labels


def test_what_cuda_shows_of_whole_and_sliced_gpus_together_is_not_guessed():
    assert units(answer(ONE_WHOLE_ONE_MIG, listing=LISTING), None) is None


GOOD = Seen(answer(TWO), tensorflow_gpus=2)
ABSENT = Seen(Smi(problem="nvidia-smi is not on PATH"), tensorflow_gpus=0, tensorflow_has_cuda=False)
LACKS = {
    "nothing": (GOOD, Asked("gpu", 2, 80_000), []),
    "nvidia-smi": (ABSENT, Asked("gpu"), ["nvidia-smi is not on PATH"]),
    "a GPU build": (
        dataclasses.replace(GOOD, tensorflow_gpus=0, tensorflow_has_cuda=False),
        Asked("gpu"),
        ["TensorFlow can use 0: the CPU build of TensorFlow is installed", "asks for 1"],
    ),
    "a CUDA library": (
        dataclasses.replace(GOOD, tensorflow_gpus=1),
        Asked("gpu"),
        ["CUDA shows 2 of them to this process, TensorFlow can use 1: a CUDA library is missing"],
    ),
    "visibility": (
        dataclasses.replace(GOOD, cuda_visible="", tensorflow_gpus=0),
        Asked("gpu"),
        ["hides all; unset it"],
    ),
    "a slice": (Seen(answer(MIG), 0), Asked("gpu"), ["in MIG mode without a slice"]),
    "GPUs": (GOOD, Asked("gpu", 4), ["TensorFlow can use 2 GPUs, train.gpus_at_least asks for 4"]),
    "free memory": (
        Seen(answer(TWO.replace("81559, 4,", "81559, 81000,")), 2),
        Asked("gpu", 1, 4000),
        ["GPU 0 (NVIDIA H100 80GB HBM3) has 559 MiB free, train.gpu_memory_mib_at_least asks for 4,000"],
    ),
    "memory of a slice": (
        Seen(answer(MIG, listing=LISTING), 1, cuda_visible="MIG-a28ad590"),
        Asked("gpu", 1, 8000),
        ["MIG slice 1g.5gb of GPU 0 (NVIDIA A100-SXM4-40GB) has 5,120 MiB in all"],
    ),
    "sound memory": (
        Seen(answer(TWO.replace("570.86.15, 0, Disabled\n1", "570.86.15, 3, Disabled\n1")), 2),
        Asked("gpu"),
        ["GPU 0 (NVIDIA H100 80GB HBM3) counts 3 uncorrected ECC errors"],
    ),
}


@pytest.mark.parametrize(("seen", "asked", "words"), LACKS.values(), ids=LACKS)
def test_what_gpu_training_lacks_is_said_exactly(seen, asked, words):
    found = missing(asked, seen)
    assert len(found) == len(words)
    for text, expected in zip(found, words, strict=True):
        assert expected in text


def test_memory_that_nvidia_smi_does_not_tell_refuses_nothing():
    seen = Seen(answer(f"0, {A}, NVIDIA GB10, [N/A], [N/A], 580.95.05, [N/A], [N/A]\n"), 1)
    assert missing(Asked("gpu", 1, 4000), seen) == ()


CHOICES = {
    "cpu, with GPUs": ("cpu", GOOD, "cpu"),
    "auto, with GPUs": ("auto", GOOD, "gpu"),
    "auto, without": ("auto", ABSENT, "cpu"),
    "auto, with GPUs that TensorFlow cannot use": (
        "auto",
        dataclasses.replace(GOOD, tensorflow_gpus=0),
        "cpu",
    ),
    "auto, with a GPU but no nvidia-smi": ("auto", dataclasses.replace(ABSENT, tensorflow_gpus=1), "gpu"),
    "gpu, with GPUs": ("gpu", GOOD, "gpu"),
    "gpu, without": ("gpu", ABSENT, ""),
    "gpu, that TensorFlow cannot use": ("gpu", dataclasses.replace(GOOD, tensorflow_gpus=0), ""),
    "gpu, but no nvidia-smi": ("gpu", dataclasses.replace(ABSENT, tensorflow_gpus=1), ""),
}


@pytest.mark.parametrize(("accelerator", "seen", "kind"), CHOICES.values(), ids=CHOICES)
def test_what_training_takes(accelerator, seen, kind):
    choice = decide(Asked(accelerator), seen)
    assert choice.kind == kind
    assert choice.refused == (kind == "")


def test_gpu_never_becomes_cpu_whatever_is_missing():
    for seen, asked, words in LACKS.values():
        assert decide(asked, seen).kind == ("" if words else "gpu")


def test_auto_says_what_it_took_and_why():
    assert decide(Asked("auto"), GOOD).sentence.startswith(
        "training on 2 GPUs: GPU 0 (NVIDIA H100 80GB HBM3)"
    )
    choice = decide(Asked("auto"), ABSENT)
    assert choice.sentence == (
        "train.accelerator is auto: training on the CPU, because nvidia-smi is not on PATH"
    )
    assert choice.warnings == ()


def test_auto_warns_loudly_of_a_gpu_that_stays_unused():
    choice = decide(Asked("auto"), dataclasses.replace(GOOD, tensorflow_gpus=0, tensorflow_has_cuda=False))
    assert "a GPU is here and not used" in choice.warnings[0]


def test_other_programs_on_the_gpu_are_a_warning():
    seen = Seen(answer(TWO, processes=f"{B}, 77, /opt/other, 512\n"), 2)
    assert decide(Asked("gpu"), seen).warnings == ("GPU 1 is shared with /opt/other (process 77, 512 MiB)",)
