"""What is saved under which name, and how it comes back.

A checkpoint is a pair of files in TensorFlow's V2 format, PREFIX.index and PREFIX.data-00000-of-00001, with all 440
variables under the names that the original TensorFlow 1 code gave them.
"""

import atexit
import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import tempfile
import time

import load_dataset
import utils
from utils import MODELS, ORIGINAL, DataError, LazyModule, UsageError, first_line, tf, whole_file

model = LazyModule("model")

SUFFIXES = ".data-00000-of-00001", ".index"
OLDER = MODELS / "older"
UNFINISHED, WHOLE = ".writing", "whole"  # ending of the folder of a save; the file in it that makes it count
PAPER_BATCH_SIZES = {7: 50, 6: 50, 5: 40, 4: 14, 3: 9, 2: 9, 1: 5}  # on a GPU of 16 GB


def checkpoint_prefix(level, iteration):
    """Returns models/pynet_level_<level>_iteration_<iteration>.ckpt."""
    return MODELS / f"pynet_level_{level}_iteration_{iteration}.ckpt"


def resume_prefix(level):
    """Returns the prefix of the state from which a level resumes: weights, Adam's moments and notes."""
    return MODELS / f"pynet_level_{level}_resume.ckpt"


def iteration_of(prefix):
    """Returns the iteration in the name of a checkpoint, None for the released and the small weights."""
    match = re.search(r"_iteration_([0-9]+)\.ckpt$", str(prefix))
    return int(match[1]) if match else None


# Which checkpoints there are -----------------------------------------------------------------------------------------


def saved_iterations(level):
    """Returns the iterations of a level's checkpoints in models/, in rising order."""
    finish_interrupted_saves(MODELS)
    prefixes = (path.with_suffix("") for path in MODELS.glob(f"pynet_level_{level}_iteration_*.ckpt.index"))
    return sorted(iteration_of(prefix) for prefix in prefixes if exists(prefix) and iteration_of(prefix) is not None)


def find_checkpoint(level, iteration=None):
    """Returns (prefix, iteration) of a level's checkpoint, by default the last saved. Raises DataError without one."""
    saved = saved_iterations(level)
    if not saved:
        older = f" (earlier runs are in {OLDER}/)" if any(OLDER.glob(f"*/pynet_level_{level}_*.index")) else ""
        raise DataError(f"{MODELS}/ holds no checkpoint of level {level}{older}: train it first (python train_model.py "
                        f"level={level} batch_size={PAPER_BATCH_SIZES[level]})")
    iteration = iteration or saved[-1]
    if iteration not in saved:
        raise DataError(f"{checkpoint_prefix(level, iteration)}: no such checkpoint; restore_iter can be "
                        + ", ".join(map(str, saved)))
    return checkpoint_prefix(level, iteration), iteration


def find_published(prefix):
    """Returns the prefix of the released or the small weights. Raises DataError where they are missing."""
    if exists(prefix):
        return prefix
    fetch = "; python -m tools.download what=weights fetches them" if prefix == ORIGINAL else " (README)"
    raise DataError(f"{prefix.parent}/ holds no checkpoint: put {prefix.name}.index and "
                    f"{prefix.name}.data-00000-of-00001 there{fetch}")


def check_weights(settings):
    """Raises UsageError where more than one kind of weights is asked for."""
    weights = [name for name in ("orig", "small", "restore_iter") if getattr(settings, name)]
    if len(weights) > 1:
        raise UsageError(f"{weights[-1]}: orig=true, small=true and restore_iter= choose weights; give only one")


def find_weights(settings):
    """Returns the prefix of the checkpoint, and what the names of the results end in. Raises DataError without one."""
    if settings.orig:
        return find_published(ORIGINAL), f"_level_{settings.level}_orig.png"
    if settings.small:
        return find_published(utils.SMALL), f"_level_{settings.level}_small.png"
    try:
        prefix, iteration = find_checkpoint(settings.level, settings.restore_iter)
    except DataError as error:
        raise DataError(f"{error}; orig=true takes the released weights, small=true the small network's") from None
    return prefix, f"_level_{settings.level}_iteration_{iteration}.png"


def exists(prefix):
    """Returns whether both files of a checkpoint are there."""
    return all(_file(prefix, suffix).is_file() for suffix in SUFFIXES)


# Reading -------------------------------------------------------------------------------------------------------------


def network_of(prefix):
    """Returns what `model.build_pynet` needs to know of a checkpoint's network: {"channels", "width_multiplier"}.

    Raises DataError where the checkpoint is damaged or not PyNET's.
    """
    shape = _open(prefix).get_variable_to_shape_map().get(model.FIRST_KERNEL, ())
    network = model.describe(shape)
    known = network.get("channels") in map(load_dataset.input_channels, (None, *load_dataset.MAPS))
    if not known or not 0 < network["width_multiplier"] <= 1:  # before a network of a million maps is built
        raise DataError(f"{prefix}: is not a checkpoint of PyNET ({model.FIRST_KERNEL} has the shape {list(shape)})")
    return network


def takes_maps(network):
    """Returns whether a network, as `network_of` describes it, sees a map beside the photo."""
    return network["channels"] > load_dataset.input_channels(None)


def network_settings(prefix):
    """Returns {"use_depth", "width"}, the settings of training that are fixed by a checkpoint. Errors as above."""
    network = network_of(prefix)
    return {"use_depth": takes_maps(network), "width": f"{network['width_multiplier']:g}"}


def stored_names(prefix):
    """Returns the names of all that a checkpoint holds, a set. Raises DataError where it is missing or damaged."""
    return set(_open(prefix).get_variable_to_shape_map())


def restore_checkpoint(variables, prefix):
    """Reads every one of {name: tf.Variable} from a checkpoint; where that fails none is changed.

    Raises DataError where a file is missing or damaged, or a variable is missing or of another shape.
    """
    reader = _open(prefix)
    stored, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for name, variable in variables.items():
        if stored.get(name) != variable.shape.as_list() or types[name] != variable.dtype:
            raise DataError(f"{prefix}: {name} is {stored.get(name, 'missing')}, this network's is "
                            f"{variable.shape.as_list()}; the checkpoint was written by another network")
    try:
        values = {name: reader.get_tensor(name) for name in variables}
    except Exception as error:
        raise _damaged(prefix, error) from None
    for name, variable in variables.items():
        variable.assign(values[name])


def _open(prefix):
    for suffix in SUFFIXES:
        if not _file(prefix, suffix).is_file():
            raise DataError(f"{_file(prefix, suffix)}: is missing; a checkpoint is an .index and a .data file")
    try:
        return tf.train.load_checkpoint(plain_path(prefix, SUFFIXES))
    except Exception as error:
        raise _damaged(prefix, error) from None


def plain_path(path, suffixes=("",)):
    """Returns `path` as text, for TensorFlow, which reads brackets as a pattern and takes no names but in UTF-8.

    Such a path becomes a link to it, or to the files path + suffix that there are; the end of the process deletes it.
    """
    if not re.search(r"[][*?\\\udc80-\udcff]", str(path)):
        return str(path)
    path = os.path.abspath(path)
    folder = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for suffix in suffixes:
        if os.path.exists(path + suffix):
            (folder / f"link{suffix}").symlink_to(path + suffix)
    return str(folder / "link")


def _damaged(prefix, error):
    return DataError(f"{prefix}: is damaged, copy or download it again ({first_line(error)})")


def read_notes(prefix):
    """Returns what `save_checkpoint` was given as notes, None where there are none. Raises ValueError if damaged."""
    finish_interrupted_saves(pathlib.Path(prefix).parent)
    path = _file(prefix, ".json")
    if not path.exists():
        return None
    if not path.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{path} is no file")
    return json.loads(path.read_text(encoding="utf-8"))


# Writing -------------------------------------------------------------------------------------------------------------


def save_checkpoint(variables, prefix, notes=None, before_replacing=lambda: None):
    """Writes {name: tf.Variable} to PREFIX.index and PREFIX.data-00000-of-00001, and `notes` to PREFIX.json if given.

    A crash at any moment leaves either the checkpoint that was there before or the new one. `before_replacing` is
    called when the files are written, but do not count yet. Raises DataError where they cannot be written, for example
    because the disk is full; what was there before stays.
    """
    def write(path):
        try:
            tf.raw_ops.SaveV2(prefix=str(path), tensor_names=list(variables), shape_and_slices=[""] * len(variables),
                              tensors=[variable.read_value() for variable in variables.values()])
        except tf.errors.OpError as error:
            raise OSError(first_line(error)) from None
        if notes is not None:
            write_json(_file(path, ".json"), notes)

    try:
        _save(write, pathlib.Path(prefix), before_replacing)
    except OSError as error:
        raise DataError(f"{prefix}: could not be saved ({first_line(error)})") from None


def try_to_save(level):
    """Saves, replaces and deletes a few bytes as a checkpoint is. Raises DataError where models/ cannot hold one."""
    prefix = MODELS / f"pynet_level_{level}_trial.ckpt"
    try:
        for _ in range(2):
            _save(lambda path: [_file(path, suffix).write_bytes(b"trial") for suffix in SUFFIXES], prefix)
        remove_checkpoint(prefix)
    except OSError as error:
        raise DataError(f"{MODELS}/: a checkpoint cannot be saved there ({first_line(error)}): train on another disk"
                        ) from None


def _save(write, prefix, before_replacing=lambda: None):
    """Calls write(path) with a prefix in a folder of its own, and moves the files from there to `prefix`.

    A file WHOLE in that folder makes them count. So no folder is renamed, which some network drives cannot. The folder
    has another name each time: `finish_interrupted_saves` in another process may still be at work on the last one.
    """
    folder = prefix.with_name(f".{prefix.name}.{time.time_ns()}{UNFINISHED}")
    try:
        discard_half_saves(prefix.parent, prefix.name)
        folder.mkdir()
        write(folder / prefix.name)
        for path in (*folder.iterdir(), folder, prefix.parent):
            _to_disk(path)
        before_replacing()
        (folder / WHOLE).touch()
        with contextlib.suppress(FileNotFoundError):  # another process may have moved all to its place already
            _to_disk(folder)
        finish_interrupted_saves(prefix.parent)
        if (folder / WHOLE).exists():
            raise OSError(f"the files in {folder}/ could not be moved to {prefix.parent}/")
        _to_disk(prefix.parent)
    except OSError:
        if not (folder / WHOLE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def write_json(path, content):
    """Writes or replaces a JSON file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        _to_disk(partial)


def remove_checkpoint(prefix):
    """Deletes a checkpoint's files, the index first: without it the rest no longer counts as a checkpoint."""
    for suffix in reversed(SUFFIXES):
        _file(prefix, suffix).unlink(missing_ok=True)


def move_to_older(level, patterns):
    """Moves files of a level from models/ to models/older/<date and time>/. Returns that folder, None without files."""
    files = [file for pattern in patterns for file in sorted(MODELS.glob(f"pynet_level_{level}{pattern}"))]
    if not files:
        return None
    folder = OLDER / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        _move(file, folder / file.name)
    return folder


def _move(file, target):
    """Moves a file, also to another disk. At any moment it is whole in one of the two places."""
    try:
        file.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with whole_file(target) as partial:
            shutil.copy2(file, partial)
            _to_disk(partial)
        _to_disk(target.parent)
        file.unlink()


def discard_half_saves(folder, name):
    """Deletes what a crash left of checkpoints that were not whole. Call with the level locked.

    name: pattern of their names in `folder`.
    """
    finish_interrupted_saves(folder)
    for half in folder.glob(f".{name}.*{UNFINISHED}"):
        if not (half / WHOLE).exists():
            shutil.rmtree(half, ignore_errors=True)


def finish_interrupted_saves(folder):
    """Moves checkpoints that are whole from their folders to their place. What a crash cuts short can be done again.

    Another process that looks for checkpoints may be doing the same: a file that is gone is where it belongs.
    """
    for mark in sorted(folder.glob(f".*{UNFINISHED}/{WHOLE}")):  # the older ones first
        with contextlib.suppress(OSError):  # a folder that can only be read: then without it
            for file in sorted(mark.parent.glob("[!.]*")):  # the data before the index
                if file != mark:
                    with contextlib.suppress(FileNotFoundError):
                        file.replace(folder / file.name)
            mark.unlink(missing_ok=True)
            mark.parent.rmdir()


def _to_disk(path):
    """Waits until a file or a folder is on the disk, and not only in memory. Not every drive can do so for a folder."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not path.is_dir():
            raise


def _file(prefix, suffix):
    return pathlib.Path(f"{prefix}{suffix}")
