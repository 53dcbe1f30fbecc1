"""How does a photo go through the network, and become a picture of its size? From Python:

    from support.renderer import Renderer
    render = Renderer("small")
    render("photo.jpg", "depth.png").save("bokeh.png")
"""

import math
import threading

import numpy as np
from PIL import Image

import utils
from load_dataset import resize, size_text
from support import checkpoints, depth_networks, detail, focus_maps, own_photos, training_log
from utils import DataError, LazyModule, UsageError, tf

model = LazyModule("model")
FRAME = 16  # pixels of the input that are added to own photos on every side


class Renderer:
    """Renders photos of any kind with a network that is loaded once; several threads may use it.

        render = Renderer("small")
        render("photo.jpg", "depth.png").save("bokeh.png")

    Args:
      weights: "small", "orig" (the released weights in models/original/), or the prefix of a checkpoint.
      level: 1-7; the pictures of the levels above 1 are halved in size for each, without the photo's detail.
      precision: of the feature maps: "float32", "bfloat16" or "float16".
      depth_model: depth network for photos without a depth map, see `depth_networks.open_network`, loaded when needed.

    Raises DataError where the checkpoint is missing or damaged.
    """

    def __init__(self, weights="small", level=1, precision="float32", depth_model=depth_networks.DEFAULT):
        published = {"small": utils.SMALL, "orig": utils.ORIGINAL}
        prefix = checkpoints.find_published(published[weights]) if weights in published else weights
        network = checkpoints.network_of(prefix)
        pynet = model.build_pynet(seed=None, precision=precision, **network)
        checkpoints.restore_checkpoint(pynet.variables, prefix)
        self.level, self.kind = level, training_log.map_kind(prefix)
        self.depth_model, self._to_depth = depth_model, None
        self._render = make_renderer(model.network_for_level(pynet, level), level)
        self.lock = threading.RLock()  # whoever computes with TensorFlow; its eager operations do not bear two threads

    def __call__(self, photo, depth=None, depth_is="inverse", side=None, with_detail=True, focus=None, aperture=1.0):
        """Renders one photo. Returns a Pillow image of its size, with its colour profile and dates in `info`.

        Args:
          photo: path, Pillow image, or array, uint8 (height, width, 3), RGB.
          depth: its depth map, of any size: path, Pillow image, or array of numbers, (height, width). None takes the
            one inside the photo file, or has the depth network make one.
          depth_is: what the numbers of `depth` mean: "inverse" (bright = near), "depth", "distance" or "log_depth".
          side: longer side in pixels at which the network computes; by default 1536 for photos larger than 1920.
          with_detail: what is in focus keeps the photo's own detail; False gives the network's bare picture.
          focus, aperture: what is in focus, and how much the rest is blurred, see `refocus`.

        Raises DataError where photo or depth map cannot be used, UsageError where the network has no say in the focus.
        """
        if not self.kind:
            depth = None
        elif depth is None:
            depth = self.find_depth(photo)
        pair = own_photos.Pair("photo", photo, depth, bokeh=None, size=None)
        seen, size, photo = own_photos.load_input(pair, side, depth_is)
        name = own_photos.name_of(pair.photo)
        return self.render_own(self.refocus(seen, focus, aperture, name), size, photo, with_detail, name)

    def find_depth(self, photo):
        """Returns the photo's path where a depth map is inside it; else what the depth network makes of the photo."""
        if own_photos.holds_depth(photo):
            return photo
        pixels = own_photos.as_photo(photo)  # first, since the network may have to be fetched
        with self.lock:
            self._to_depth = self._to_depth or depth_networks.open_network(self.depth_model)
        return self._to_depth(pixels, own_photos.name_of(photo))

    def check_focus(self, focus, aperture):
        """Raises UsageError where the network does not obey a focus or an aperture, see `refocus`."""
        if focus and not self.kind:
            raise UsageError("focus: the network takes no maps and decides by itself what is in focus")
        if aperture != 1 and self.kind != "focus":
            raise UsageError("aperture: is for networks that were trained on focus maps, as small=true is")

    def check_maps(self, settings, pairs):
        """Prints where the maps of `Pair`s are not what the network was trained on, by test_model.py's `settings`.

        Raises DataError where it cannot use them, UsageError as `check_focus` does.
        """
        self.check_focus(settings.focus, settings.aperture)
        kinds = {pair.kind for pair in pairs} - {None}
        if not settings.images_dir and self.kind == "depth" and kinds == {"focus"}:
            raise DataError(f"{settings.dataset_dir}: has focus maps, and the network was trained on depth maps; test "
                            "it on a data set with original_depth/")
        if not settings.images_dir and self.kind == "focus" and kinds == {"depth"}:
            print("Note: the network was trained on focus maps; they are made of the depth maps, with what is near "
                  "around the middle in focus")
        if settings.focus and self.kind == "depth":
            print("Note: the network was trained on depth maps; focus= gives it the distance from the focus instead, "
                  "a trick for which it was not trained")

    def refocus(self, seen, focus=None, aperture=1.0, name="the photo"):
        """Puts the map that the network takes in place of the depth map in its input, uint8 (height, width, channels).

        A network that was trained on focus maps gets that of `focus_maps.refocus`. It learned discs in pixels, in
        photos of LEARNED_SIDE; the aperture is scaled so that discs keep their share of photos of other sizes. Others
        take depth maps, and blur what is dark: with a focus, they get the distance from its depth. That moves the
        focus, but is a trick.
        """
        self.check_focus(focus, aperture)
        if self.kind == "focus":
            scale = 2 * max(seen.shape) / own_photos.LEARNED_SIDE
            return np.dstack([seen[..., :3], focus_maps.refocus(seen[..., 3], focus, aperture * scale, name)])
        if focus:
            at_focus = focus_maps.depth_in_focus(seen[..., 3], focus)
            return np.dstack([seen[..., :3], focus_maps.focus_map(seen[..., 3], at_focus, strength=1)])
        return seen

    def render_own(self, seen, size, photo, with_detail=True, name="the photo"):
        """Renders what `own_photos.load_input` gave, after `refocus`. Returns a Pillow image, as `__call__` says."""
        framed, frame = add_frame(seen, self.level)
        image = self.render_whole(framed, tuple(side + 2 * frame for side in size), name)
        image = Image.fromarray(utils.to_uint8(image[tuple(
            slice(frame >> (self.level - 1), (frame + side) >> (self.level - 1)) for side in reversed(size))]))
        colours, focus_map = seen[..., :3], seen[..., 3] if self.kind == "focus" else None
        if with_detail and self.level == 1:
            picture = detail.add_detail(photo, image, Image.fromarray(colours), focus_map)
        else:
            picture = resize(image, tuple(side >> (self.level - 1) for side in photo.size))
        if np.all(colours == colours[..., :1]):  # a grey photo stays grey
            picture = picture.convert("L").convert("RGB")
        picture.info = photo.info
        return picture

    def render_whole(self, seen, size, name="the photo"):
        """Returns what the network makes of an input, see `make_renderer`. Raises DataError where it is not finite."""
        if not min(size) >> (self.level - 1):
            raise DataError(f"{name}: is {size_text(size)}, too small for level {self.level}")
        with self.lock:
            image = self._render(seen, size)
        if not np.isfinite(image).all():
            raise DataError(f"{name}: its picture is not finite; try precision=float32, or other weights")
        return image


def make_renderer(network, level):
    """Returns render(photo, size) -> image, which passes a whole photo through the network.

    photo: uint8 (height / 2, width / 2, channels), the network's input; size: (width, height) of the photo in pixels.
    image: float32 (height / s, width / s, 3), s = 2^(level - 1), clipped to [0, 1].
    Where the photo's size is no multiple of 64 the input is continued by reflection, and the image cut back.
    """
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([1, None, None, network.input_shape[-1]], tf.uint8)])
    def run_network(photo):
        output = network(tf.cast(photo, tf.float32) / 255, training=False)
        return tf.clip_by_value(output, 0.0, 1.0)

    def render(photo, size):
        width, height = size
        right, below = (math.ceil(side / 2 / model.INPUT_MULTIPLE) * model.INPUT_MULTIPLE - side // 2 for side in size)
        padded = np.pad(photo, [(0, below), (0, right), (0, 0)], "reflect")
        return run_network(padded[np.newaxis])[0, :height >> (level - 1), :width >> (level - 1)].numpy()

    return render


def add_frame(seen, level):
    """Continues the network's input by reflection on all sides, since the network darkens what lies at its border.

    Returns (the larger input, width of the frame in pixels of the photo). At level 7, a pixel is 32 of the input.
    """
    width = max(FRAME, 2 ** level // 4)
    return np.pad(seen, [(width, width), (width, width), (0, 0)], "reflect"), 2 * width
