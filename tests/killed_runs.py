"""Kills a small training run again and again, and compares what it ends with to a run that nobody stopped.

    python tests/killed_runs.py FOLDER [KILLS]

Each time the run is resumed and killed (SIGKILL) at another kind of moment: some time after two saves, while it starts,
while weights are written, while the resumable state is written, and between the end of writing and the files' move to
their place. Prints one line for each kill, and in the end whether both runs' files are the same, byte for byte.
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import time

REPOSITORY = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))

from conftest import QUICK  # noqa: E402

import train_model  # noqa: E402
from support import scripts  # noqa: E402
from tools import make_scenes  # noqa: E402

MOMENTS = (  # name, what appears in models/ when it has come, and up to how many seconds later the run is killed
    ("after two saves", "*_iteration_*.index.new", 1.0),
    ("starting", "*", 3.0),
    ("writing weights", ".*_iteration_*.writing", 0.02),
    ("writing the state", ".*_resume*.writing", 0.02),
    ("moving files", ".*.writing/whole", 0.0),
)


def main(folder, kills):
    """Returns 0 if the killed run's last files equal the other run's."""
    dataset = folder / "ebb_dataset"
    make_scenes.write_dataset(dataset, 3, 1, size=(192, 160))
    arguments = ["level=7", *QUICK, "eval_step=1", f"dataset_dir={dataset}", "learning_rate=0.001", "max_to_keep=2",
                 "resume=true"]
    import tensorflow  # once for all runs, which are forked from this process  # noqa: F401
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    chance = random.Random(0)
    count = 0
    for moment in itertools.islice(itertools.cycle(MOMENTS), kills):
        count += kill_a_run(killed, [*arguments, "num_train_iters=1000000"], moment, chance)
    iterations = 1 + max([0, *(int(path.name.split("_")[-1].split(".")[0])
                               for path in (killed / "models").glob("*_iteration_*.index"))])
    for run in (killed, undisturbed):
        wait_for(start_run(run, [*arguments, f"num_train_iters={iterations}"]))
    same = compare(undisturbed, killed, iterations)
    print(f"{count} kills in {iterations} iterations, the last files are {'the same' if same else 'different'}")
    return 0 if same and count == kills else 1


def start_run(folder, arguments):
    """Forks a process that trains in `folder`; gives its number."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    os.chdir(folder)
    log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv[1:] = arguments
    with contextlib.suppress(BaseException):
        status = scripts.run(train_model.main)
        sys.stdout.flush()
        os._exit(status)
    os._exit(99)


def kill_a_run(folder, arguments, moment, chance):
    """True if the run was killed, False if it had ended by itself."""
    name, sign, delay = moment
    before = set(pathlib.Path(folder, "models").glob("*_iteration_*.index")) if folder.exists() else set()
    process = start_run(folder, arguments)
    while not has_come(folder / "models", sign, before):
        if os.waitpid(process, os.WNOHANG)[0]:
            print(f"ended by itself before: {name}")
            return False
        time.sleep(0.0005)
    delay = chance.uniform(0, delay)
    time.sleep(delay)
    if os.waitpid(process, os.WNOHANG)[0]:
        print(f"ended by itself: {name}")
        return False
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    left = sorted(path.name for path in (folder / "models").glob(".*.ckpt.*"))
    print(f"killed {name}, {delay:.2f} s later; left behind: {', '.join(left) or 'nothing'}", flush=True)
    return True


def has_come(models, sign, before):
    if sign.endswith(".new"):
        return len(set(models.glob(sign.removesuffix(".new"))) - before) == 2
    return sign == "*" or any(models.glob(sign))


def wait_for(process):
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        raise SystemExit(f"the run ended with status {status}: see output.txt")


def compare(undisturbed, killed, iterations):
    """Whether weights, state and the metrics in the log are the same."""
    prefixes = [f"pynet_level_7_iteration_{iterations}.ckpt", "pynet_level_7_resume.ckpt"]
    names = [prefix + suffix for prefix in prefixes for suffix in (".index", ".data-00000-of-00001")]
    return what_is_left(undisturbed / "models", names) == what_is_left(killed / "models", names)


def what_is_left(models, names):
    """The bytes of the files, the notes of the state, the metrics in the log."""
    notes = json.loads((models / "pynet_level_7_resume.ckpt.json").read_text())
    del notes["run"]["name"]  # of the curves: a run that was killed before its first state left some, too
    metrics = {line for line in (models / "logs.txt").read_text().splitlines() if line.startswith("step")}
    return [(models / name).read_bytes() for name in names], notes, metrics


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
