"""What is a run? Its settings, photos, code and start, put together once and handed on whole."""

import dataclasses
import hashlib
import math
import os
import pathlib
import re
from types import SimpleNamespace
from typing import Any, NamedTuple

from support import checkpoints, training_log, updates
from utils import MODELS, DataError, UsageError, parse_stored, say, warn


@dataclasses.dataclass
class Run:
    """Where a run stands: what resuming it takes besides the weights and Adam's moments."""

    iteration: int = 0  # updates done
    evaluation_due: bool = True  # whether this iteration is to be saved and measured, and is not yet
    losses: list = dataclasses.field(default_factory=list)  # of the iterations since the last evaluation
    scale: updates.LossScale = dataclasses.field(default_factory=updates.LossScale)
    name: str = "run_1"  # of its curves
    start: str = ""  # from what, in words
    iterations_above: int = 0  # that the levels above were trained
    checkpoints: list = dataclasses.field(default_factory=list)  # iterations of those that this run has written

    @classmethod
    def from_notes(cls, notes):
        """Returns the run that `as_notes` described. Raises TypeError on names that it does not know."""
        scale = {name: notes[name] for name in updates.LossScale.__annotations__ if name in notes}
        others = {name: value for name, value in notes.items() if name not in ("evaluated", *scale)}
        return cls(**others, scale=updates.LossScale(**scale), evaluation_due=not notes.get("evaluated", False))

    def as_notes(self):
        """Returns the fields as they stand in the notes of a state."""
        notes = dataclasses.asdict(self)
        scale, due = notes.pop("scale"), notes.pop("evaluation_due")
        return notes | scale | {"evaluated": not due}

    def is_sound(self):
        """Returns whether all values, as read from a file, are of their types and in their ranges."""
        scale = self.scale
        counts = [self.iteration, scale.steps_at_scale, self.iterations_above, *self.checkpoints]
        numbers = [scale.loss_scale, *self.losses]
        return (all(type(count) is int and 0 <= count < 10 ** 18 for count in counts)
                and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
                and type(self.losses) is type(self.checkpoints) is list
                and scale.loss_scale >= 1 and type(self.start) is str
                and re.fullmatch("run_[0-9]{1,18}", self.name) is not None)

    def count(self, loss, settings):
        """Counts an update."""
        self.iteration += 1
        self.losses.append(loss)
        self.evaluation_due = self.iteration % settings.eval_step == 0 or self.iteration >= settings.num_train_iters


class Start(NamedTuple):
    """Where a level starts: `prefix` of the weights, None for random ones; `resumed`: notes of the state, or None."""

    run: Run
    prefix: Any
    resumed: Any


@dataclasses.dataclass
class Experiment:
    """What a run is. Made once, by `train_model.main`, and handed on whole to all that save, log and compare it."""

    settings: SimpleNamespace  # complete
    start: Start
    train_pairs: list
    test_pairs: list
    code: dict  # {"commit": ..., "loss_weights": ...}
    writes: bool = True  # whether this process writes files; of several workers only the first does

    @property
    def run(self):
        return self.start.run

    @property
    def map_kind(self):
        """Which of load_dataset.MAPS the network sees, None without maps."""
        return self.train_pairs[0].kind if self.train_pairs else None

    def kept_settings(self):
        """Returns {name: value} of the settings that a resumed run takes over: not those that say where to start."""
        return {name: value for name, value in vars(self.settings).items()
                if name not in ("level", "restore_iter", "weights", "resume", "given")}

    def counts(self):
        """Returns how many photos there are."""
        return {"training": len(self.train_pairs), "test": len(self.test_pairs)}

    def photos(self):
        """Tells the training photos from others: returns their number, and a checksum of their names."""
        names = "\n".join(pair.name for pair in self.train_pairs).encode(errors="surrogateescape")
        return {"count": len(self.train_pairs), "names_sha256": hashlib.sha256(names).hexdigest()}

    def shared_by_workers(self):
        """Returns text that is the same for all workers if they train the same; their folders may differ."""
        same = {name: value for name, value in self.kept_settings().items() if not name.endswith("_dir")}
        same["vgg_dir"] = self.settings.vgg_dir.lower() == "none"
        index = pathlib.Path(f"{self.start.prefix}.index")  # has checksums of all weights
        weights = hashlib.sha256(index.read_bytes() if self.start.prefix else b"").digest()
        return repr((self.settings.level, self.run.iteration, same, self.map_kind, self.photos(), weights))

    def check_maps(self):
        """Warns where the weights saw another kind of map than the data set has; DataError, unless by weights=."""
        prefix, settings = self.start.prefix, self.settings
        seen = training_log.map_kind(prefix) if prefix else self.map_kind
        if seen == self.map_kind:
            return
        text = f"{prefix}: was trained with {seen} maps, and {settings.dataset_dir} has {self.map_kind} maps"
        if self.start.resumed or not settings.weights:
            raise DataError(f"{text}: train on maps of one kind, or go on from other weights with weights={prefix}")
        warn(f"{text}: what the map means is learned anew")

    def say_start(self):
        """Prints the number of photos and, where a run goes on, what has changed: settings, photos, loss, commit."""
        settings, counts, before = self.settings, self.counts(), self.start.resumed
        say(f"Data: {counts['training']} training and {counts['test']} test photos in {settings.dataset_dir}")
        if not before:
            return
        say(f"Level {settings.level} goes on after iteration {self.run.iteration} of {settings.num_train_iters} "
            f"({self.start.prefix})")
        was = before.settings | before.code
        for name, value in (self.kept_settings() | self.code).items():
            if was.get(name) != value:
                say(f"Note: {name} was {was.get(name)} until iteration {self.run.iteration}, and is {value} from now "
                    "on")
        if before.photos != self.photos():
            say(f"Note: the training photos are not those of the run until now ({before.photos['count']} photos): it "
                "goes on with the new ones")


def find_start(settings, parameters):
    """Returns the `Start` of a level, and prints it. `parameters`: the `Parameter`s of the settings of a state."""
    level, prefix = settings.level, checkpoints.resume_prefix(settings.level)
    before = read_state(prefix, parameters)
    if before and settings.resume:
        for name in {"restore_iter", "weights"} & settings.given:
            say(f"Note: {name}={getattr(settings, name)} is not used, since there is a state to resume")
        return Start(before.run, prefix, before)
    if settings.resume:
        say(f"Nothing to resume: {MODELS}/ holds no state of level {level}, so it starts as usual")
    elif before:
        say(f"Note: this run of level {level} starts anew; resume=true would go on after iteration "
            f"{before.run.iteration}")
    run, prefix = Run(name=training_log.next_run(level), start="from random weights"), None
    if settings.weights:
        prefix = pathlib.Path(settings.weights)
        if not checkpoints.exists(prefix):
            raise DataError(f"weights={prefix}: no such checkpoint; give the path of its .index file, without .index")
        run.start = f"from all weights of {prefix}"
    elif level < 7:
        prefix, iteration = checkpoints.find_checkpoint(level + 1, settings.restore_iter)
        run.start = f"from level {level + 1}, iteration {iteration}"
        run.iterations_above = training_log.iterations_above(level, iteration)
    say(f"Level {level} starts {run.start}")
    return Start(run, prefix, None)


def read_state(prefix, parameters):
    """Returns the notes of a resumable state as a namespace, with its `Run`; None without one.

    Its settings are checked as those of the command line are. Raises DataError if anything is damaged.
    """
    try:
        notes = checkpoints.read_notes(prefix)
        if notes is None:
            return None
        state = SimpleNamespace(run=Run.from_notes(notes["run"]), settings=parse_stored(notes["settings"], parameters),
                                photos={"count": 0, **notes["photos"]}, code=dict(notes["code"]))
        if state.run.is_sound():
            return state
        problem = "is damaged or of another version"
    except UsageError as error:
        problem = error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        problem = "is damaged or of another version"
    raise DataError(f"{prefix}.json: {problem}; delete {prefix}.* and the level starts anew")


def complete_settings(settings, start, num_train_iters):
    """Sets what the command line leaves open: as in the run that is resumed, else by default. Needs no TensorFlow.

    Only this function and `follow_network` change settings. num_train_iters: the default of the level.
    """
    if start.resumed:
        for name, value in start.resumed.settings.items():
            if name not in settings.given or name == "kernel_start":  # which has had its effect
                setattr(settings, name, value)
    elif start.prefix:
        settings.val_size = inherited_val_size(settings, start.prefix)
    settings.num_train_iters = settings.num_train_iters or num_train_iters


def follow_network(settings, prefix):
    """Sets what the checkpoint decides that a level starts from, None for random weights.

    Raises DataError where it is of another network than the command line says.
    """
    for name, value in checkpoints.network_settings(prefix).items() if prefix else ():
        if name in settings.given and getattr(settings, name) != value:
            raise DataError(f"{prefix}: is of a network with {name}={str(value).lower()}; leave {name}= out, or "
                            "start at level 7 with it, from random weights")
        setattr(settings, name, value)
    settings.kernel_start = settings.kernel_start or ("paper" if settings.width == "1" else "he")


def inherited_val_size(settings, prefix):
    """Returns that of the checkpoint to start from, so that no test photo has been trained on, or the one given."""
    before = training_log.settings_of(prefix)
    inherited, folders = before.get("val_size"), {str(before.get("dataset_dir")), settings.dataset_dir}
    elsewhere = settings.weights and len(set(map(os.path.realpath, folders))) > 1  # fine-tuning on other photos
    if type(inherited) is not int or elsewhere or inherited == settings.val_size:
        return settings.val_size
    if "val_size" not in settings.given:
        say(f"val_size={inherited}, as {prefix} was trained with")
        return inherited
    warn(f"val_size={settings.val_size}: {prefix} was trained with val_size={inherited}, so perhaps on photos that are "
         "test photos now")
    return settings.val_size


def find_vgg19(settings, terms):
    """Returns the VGG-19 file, or None. `terms` of the loss, a set of names, require it, unless vgg_dir=none."""
    path, wanted = pathlib.Path(settings.vgg_dir), settings.vgg_dir.lower() != "none"
    path = path / "imagenet-vgg-verydeep-19.mat" if path.is_dir() else path
    if wanted and path.is_file():
        return path
    if wanted and terms:
        raise DataError(f"{path}: no such file, needed by level {settings.level}: python -m tools.download what=vgg19 "
                        "fetches it; vgg_dir=none trains without it")
    if terms:
        say(f"Note: vgg_dir=none leaves the term {', '.join(terms)} out of the loss of level {settings.level}")
    elif wanted:
        say(f"Note: no {path}, so the content term is not reported; the loss of level {settings.level} is without it")
    return None


def is_done(settings, run):
    """Returns whether nothing is left to do. What has become the last iteration must have a checkpoint, and metrics."""
    left = settings.num_train_iters - run.iteration
    if left == 0 and run.iteration not in checkpoints.saved_iterations(settings.level):
        run.evaluation_due = True
    return left < 0 or left == 0 and not run.evaluation_due
