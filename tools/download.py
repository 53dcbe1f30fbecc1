"""Fetches what others publish into the folders where the scripts look for it:

    python -m tools.download what=depth      a depth network, for photos that have no depth map
    python -m tools.download what=vgg19      VGG-19, for training level 1
    python -m tools.download what=weights    the released PyNET weights

support/downloads.py has the addresses, checksums and licences. What is there is not fetched again.
"""

import shutil
import sys
import zipfile

import utils
from support import checkpoints, depth_networks, devices, downloads, scripts
from utils import DataError, Parameter

NAMES = {"depth": depth_networks.DEFAULT, "vgg19": "vgg19", "weights": "weights"}  # in downloads.DOWNLOADS

PARAMETERS = (
    Parameter("what", tuple(NAMES), utils.REQUIRED, "what to fetch"),
)
USAGE = "python -m tools.download what=depth|vgg19|weights"


def main(argv):
    """Fetches what the arguments ask for. Returns the exit status."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    if settings.what != "weights":
        print(f"Ready: {downloads.fetch(NAMES[settings.what])}")
        return 0
    if not checkpoints.exists(utils.ORIGINAL):
        devices.start_tensorflow(use_gpu=False)
        archive = downloads.fetch("weights", find_weights)
        unpack_weights(archive)
        archive.unlink()
    print(f"Ready: {utils.ORIGINAL}")
    return 0


def find_weights(archive):
    """Returns {file name: its path in a zip file} of the released weights. Raises DataError where it lacks them."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {name.rpartition("/")[2]: name for name in opened.namelist()}
    except Exception as error:  # zipfile raises many kinds
        raise DataError(f"{archive}: is no zip file, or damaged ({error})") from None
    names = [utils.ORIGINAL.name + suffix for suffix in checkpoints.SUFFIXES]
    if not set(names) <= set(members):
        raise DataError(f"{archive}: holds {', '.join(members)[:300]}; {' and '.join(names)} must be in it")
    return {name: members[name] for name in names}


def unpack_weights(archive):
    """Unpacks the released weights from a zip file into models/original/, after comparing all variables with PyNET's.

    Nothing else in the zip file is unpacked, and nothing to another place. Raises DataError where it is damaged.
    """
    members, partial = find_weights(archive), archive.parent / ".weights.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with zipfile.ZipFile(archive) as opened:
            for name, member in members.items():
                with opened.open(member) as source, open(partial / name, "wb") as target:
                    shutil.copyfileobj(source, target)
        check_variables(partial / utils.ORIGINAL.name)
        for name in members:  # the index last: without it the rest is no checkpoint
            (partial / name).replace(archive.parent / name)
    except Exception as error:  # zipfile raises many kinds
        raise DataError(f"{archive}: cannot be used ({error}); delete it to fetch it again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_variables(prefix):
    """Raises DataError where a checkpoint lacks one of PyNET's 440 variables, or has one of another shape."""
    import model
    pynet = model.build_pynet(seed=None, **checkpoints.network_of(prefix))
    checkpoints.restore_checkpoint(pynet.variables, prefix)
    utils.say(f"Checked: {len(pynet.variables)} variables")


if __name__ == "__main__":
    sys.exit(scripts.run(main))
