"""On what is it computed? TensorFlow's start, precision, and which devices."""

import gc
import os
import pathlib
import re
import resource
import sys

from utils import tf, warn

FAST_FROM = {"float32": (0, 0), "float16": (7, 0), "bfloat16": (8, 0)}  # NVIDIA's compute capability: tensor cores
CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # in /proc/cpuinfo


def start_tensorflow(use_gpu=True, precision="float32"):
    """Imports TensorFlow, quietly, and prints on which device it computes; warns where that emulates a precision.

    A GPU's memory is taken as it is needed, not all at once. TF_CPP_MIN_LOG_LEVEL=0 in the environment brings
    TensorFlow's own messages back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "0"}
    if not use_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if "tensorflow" not in sys.modules:
        _import()
    tf.keras.config.set_image_data_format("channels_last")  # whatever the user's keras.json says
    tf.keras.config.set_floatx("float32")
    gpus = tf.config.list_physical_devices("GPU") if use_gpu else []
    tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    names = [detail.get("device_name", "a GPU") for detail in details]
    no_gpu = ": TensorFlow sees no GPU (TF_CPP_MIN_LOG_LEVEL=0 shows why)" if use_gpu else ""
    print("Computing on " + (", ".join(names) or f"the CPU{no_gpu}"), flush=True)
    slow = [name for name, detail in zip(names, details)
            if detail.get("compute_capability", (0, 0)) < FAST_FROM[precision]]
    if slow or not gpus and not cpu_computes(precision):
        warn(f"{', '.join(slow) or 'this CPU'} emulates {precision}, which can take longer than float32")


def cpu_computes(precision):
    """Returns whether the CPU has arithmetic for a precision: bfloat16 with AVX512_BF16 or AMX (x86), or BF16 (ARM)."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    features = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return precision == "float32" or precision == "bfloat16" and bool(features & CPU_BFLOAT16)


def peak_memory():
    """Returns the most bytes that were taken so far: of the first GPU where there is one, or of this process."""
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    status = pathlib.Path("/proc/self/status")  # getrusage() would count the parent process, too
    peak = re.search(r"VmHWM:\s*([0-9]+) kB", status.read_text(encoding="utf-8") if status.exists() else "")
    return 1024 * (int(peak[1]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _import():
    """Imports TensorFlow and Keras, without Python's garbage collector.

    An import leaves no garbage, and to look for it among a million objects, then and later, takes more than a second.
    """
    gc.disable()
    try:
        if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":
            _import_quietly()
        tf.keras.layers  # noqa: B018
        gc.freeze()
    finally:
        gc.enable()


def _import_quietly():
    """Imports TensorFlow, whose libraries write a page to stderr before any setting of the log level is heard."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        tf.config.list_physical_devices()  # looks for a GPU's libraries
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
