"""Opens a page on which a click says what is sharp: python -m tools.app

Upload a photo, click on what must be in focus, move the slider of the aperture. The page follows at once in a small
size, and at the photo's own size when the hand rests. What it then shows is the file that test_model.py writes.
"""

import contextlib
import html
import math
import os
import pathlib
import re
import shlex
import signal
import sys
import tempfile
import time
import types
import warnings

import numpy as np
from PIL import ImageDraw

import load_dataset
import test_model
import utils
from support import checkpoints, dataset_files, depth_networks, devices, focus_maps, own_photos, scripts
from support.renderer import Renderer
from tools import make_scenes
from utils import DataError, Parameter, UsageError, tf

QUICK_SIDE = 1024  # longer side in pixels of what a click shows at once
RESTING = 0.3  # seconds without a click or a move after which the photo is rendered at its own size
SCENES, SEED = 3, 7  # the examples: synthetic scenes, those of the demo
LARGEST_APERTURE = 2
LARGEST_FILE = "100mb"  # of an upload
HOURS_KEPT = 2  # that uploads and pictures stay while the page is open; all are deleted at the end
VISITS_KEPT = 20  # whose photos are held in memory
LOCAL = "127.0.0.1"
FONTS = "system-ui", "sans-serif"  # the browser's own, so that nothing is fetched

PARAMETERS = (
    Parameter("small", bool, True, "use the small network; orig=, level= and restore_iter= turn this off"),
    Parameter("orig", bool, False, "use the released weights in models/original/"),
    Parameter("level", int, 1, "level to render; without orig= or small=, of your own network", minimum=1, maximum=7),
    Parameter("restore_iter", int, None, "iteration of the level to use", minimum=1, default_text="last saved"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps; float32 is exact"),
    Parameter("depth_model", str, depth_networks.DEFAULT, "depth network for photos without a depth map: name or file"),
    Parameter("host", str, LOCAL, "address to listen on; 0.0.0.0 opens the page to everybody in your network"),
    Parameter("port", int, None, "port to listen on", minimum=1, maximum=65535, default_text="first free from 7860"),
)
USAGE = "python -m tools.app [name=value ...]"


def main(argv):
    """Opens the page, until it is stopped."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    if "small" not in settings.given and settings.given & {"orig", "level", "restore_iter"}:
        settings.small = False
    checkpoints.check_weights(settings)
    depth_networks.check_name(settings.depth_model)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the uploads are deleted then, too
    with tempfile.TemporaryDirectory(prefix="pynet_bokeh_") as folder, contextlib.suppress(KeyboardInterrupt):
        page = open_page(settings, pathlib.Path(folder))
        print(f"Open {page.local_url} in a browser; Ctrl-C ends it", flush=True)
        try:
            while True:
                time.sleep(60)
        finally:
            page.close(verbose=False)


def open_page(settings, folder):
    """Loads the network, makes the examples, and starts to listen in threads. Returns the `gradio.Blocks`.

    folder: a pathlib.Path for uploads and pictures, which the caller deletes. Raises DataError without gradio or
    weights, or where the port is taken.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    try:
        import gradio
    except ImportError:
        raise DataError("gradio is missing: pip install gradio") from None
    if int(gradio.__version__.partition(".")[0]) < 6:
        raise DataError(f"gradio {gradio.__version__} is too old: pip install --upgrade gradio")
    from starlette.middleware import Middleware, trustedhost
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    # gradio calls itself, which must not go through a proxy.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), LOCAL, "localhost"]))
    warnings.filterwarnings("ignore")  # Pillow's about odd metadata, gradio's about its libraries
    prefix, suffix = checkpoints.find_weights(settings)
    devices.start_tensorflow(precision=settings.precision)
    renderer = Renderer(prefix, settings.level, settings.precision, settings.depth_model)
    print(f"Weights: {prefix}", flush=True)
    make_scenes.write_dataset(folder / "scenes", 0, SCENES, seed=SEED)
    page = build_page(Studio(settings, renderer, suffix, folder), folder / "scenes" / "test")
    # A page of another host name, which leads to this machine, must not use this one.
    own_names = Middleware(trustedhost.TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost"])
    try:
        page.queue(default_concurrency_limit=1).launch(
            server_name=settings.host, server_port=settings.port, share=False, quiet=True, prevent_thread_lock=True,
            max_file_size=LARGEST_FILE, footer_links=[], enable_monitoring=False, ssr_mode=False, pwa=False,
            mcp_server=False, state_session_capacity=VISITS_KEPT,
            theme=gradio.themes.Default(font=FONTS, font_mono=FONTS),
            app_kwargs={"middleware": [own_names]} if settings.host == LOCAL else {})
    except OSError:
        port = settings.port or "7860 and the next"
        raise DataError(f"host={settings.host}: cannot listen at port {port}; give another host= or port=") from None
    return page


# What the page does --------------------------------------------------------------------------------------------------


class Studio:
    """Reads and renders photos; the methods take and return what the page's components hold.

    They raise `gradio.Error`, one sentence on the page, where a photo cannot be used.
    """

    def __init__(self, settings, renderer, suffix, folder):
        self._settings, self.renderer, self._suffix, self._folder = settings, renderer, suffix, folder

    def open(self, photo, depth):
        """Reads a photo and its depth map, two paths, once for all renderings. depth: None where there is none.

        Returns (what the other methods take as `opened`, focus to begin with, depth map uint8 (height, width) or None).
        """
        with self._sentences(photo):
            photo, depth = pathlib.Path(photo), depth and pathlib.Path(depth)
            used = (depth or self.renderer.find_depth(photo)) if self.renderer.kind else None
            whole = own_photos.load_input(load_dataset.Pair("photo", photo, used, None, None))
            map_, size = whole[0][..., 3] if self.renderer.kind else None, whole[2].size
            scale = min(1, max(QUICK_SIDE / max(size), own_photos.SMALLEST_SIDE / min(size)))
            small = load_dataset.resize(whole[2], tuple(math.ceil(scale * side) for side in size))
            quick = own_photos.load_input(load_dataset.Pair("photo", small, map_, None, None))
            folder = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
            utils.write_image(folder / "photo.jpg", np.asarray(whole[2]), whole[2].info)
        return types.SimpleNamespace(photo=photo, depth=depth, whole=whole, quick=quick, folder=folder), "", map_

    def render_quickly(self, opened, focus, aperture):
        """Renders in a small size.

        Returns (small photo with a ring around the focus, files of photo and rendering, command, no download yet).
        """
        import gradio
        with self._sentences(opened):
            opened.wish = focus, aperture = focus_maps.parse_focus(focus) if focus else None, float(aperture)
            picture = self._render(opened.quick, focus, aperture)
            utils.write_image(opened.folder / "quick.jpg", np.asarray(picture), picture.info)
            ringed = opened.quick[2].copy()
            if focus:
                draw_ring(ringed, focus)
        files = opened.folder / "photo.jpg", opened.folder / "quick.jpg"
        return ringed, files, self._command(opened, focus, aperture), gradio.DownloadButton(interactive=False)

    def render_whole(self, opened, focus, aperture, ending):
        """Renders as test_model.py does, after a rest; ending: ".png" or ".jpg".

        Returns (files of photo and rendering, file to download); nothing new if another rendering was asked for since.
        """
        import gradio
        with self._sentences(opened):
            wish = opened.wish
            time.sleep(RESTING)
            if opened.wish is wish:
                picture = self._render(opened.whole, *wish)
            if opened.wish is not wish:
                return gradio.skip(), gradio.skip()
            path = opened.folder / f"{dataset_files.name_of(opened.photo)}{self._suffix.removesuffix('.png')}{ending}"
            utils.write_image(path, np.asarray(picture), picture.info)
        return (opened.folder / "photo.jpg", path), gradio.DownloadButton(value=path, interactive=True)

    def _render(self, prepared, focus, aperture):
        seen, size, photo = prepared
        return self.renderer.render_own(self.renderer.refocus(seen, focus, aperture), size, photo)

    def _command(self, opened, focus, aperture):
        """Returns the call of test_model.py that writes the same picture."""
        wanted = vars(self._settings) | {
            "images_dir": opened.photo.name, "depth_dir": opened.depth and opened.depth.name,
            "focus": focus and "{},{}".format(*focus), "aperture": aperture}
        given = {p.name: wanted[p.name] for p in test_model.PARAMETERS if wanted.get(p.name, p.default) != p.default}
        return shlex.join(["python", "test_model.py", *(f"{name}={'true' if value is True else value}"
                                                        for name, value in given.items())])

    @contextlib.contextmanager
    def _sentences(self, photo):
        import gradio
        try:
            if not photo:
                raise DataError("no photo: drop one on the page first")
            yield
        except (DataError, UsageError) as error:
            text = re.sub(rf"{re.escape(str(self._folder))}\S*/", "", str(error))  # the user's name for it is left
        except (MemoryError, tf.errors.ResourceExhaustedError):
            text = "the photo does not fit into memory; make it smaller"
        except Exception as error:  # of one photo, whatever it is: the page goes on
            text = f"{type(error).__name__}: {utils.first_line(error)}"
        else:
            return
        raise gradio.Error(html.escape(text), duration=None, print_exception=False)


def draw_ring(image, focus):
    """Draws a ring around the focus, on a Pillow image."""
    radius = max(image.size) / 50
    x, y = (share * side for share, side in zip(focus, image.size))
    for width, colour in ((5, "black"), (3, "white")):
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)


# What it looks like --------------------------------------------------------------------------------------------------


def build_page(studio, scenes):
    """Returns the page as `gradio.Blocks`. scenes: pathlib.Path with original/ and original_depth/ of the examples."""
    import gradio as gr

    def open_scene(number=0):
        return studio.open(scenes / "original" / f"{number}.jpg", scenes / "original_depth" / f"{number}.png")

    def choose_scene(event: gr.SelectData):
        return open_scene(event.index)

    def point(opened, event: gr.SelectData):
        return ",".join(f"{(pixel + 0.5) / side:.3f}" for pixel, side in zip(event.index, opened.quick[2].size))

    with gr.Blocks(title="PyNET Bokeh", analytics_enabled=False, delete_cache=(600, 3600 * HOURS_KEPT)) as page:
        opened = gr.State(time_to_live=3600 * HOURS_KEPT)
        with gr.Row():
            photo = gr.File(label="Your photo", height=140, min_width=200)
            depth = gr.File(label="Its depth map, if you have one", height=140, min_width=200)
            with gr.Column(min_width=320):
                examples = gr.Gallery([scenes / "original" / f"{number}.jpg" for number in range(SCENES)], height=140,
                                      label="Or a synthetic scene", columns=SCENES, allow_preview=False, buttons=[])
        load = gr.Button("Open the photo", variant="primary")
        with gr.Row():
            clicked = gr.Image(label="Click on what must be sharp", format="jpeg", interactive=False, buttons=[],
                               min_width=320, elem_id="clicked")
            compared = gr.ImageSlider(label="Photo and rendering", interactive=False, buttons=["fullscreen"],
                                      min_width=320, elem_id="compared")
        with gr.Row():
            with gr.Column(min_width=320):
                aperture = gr.Slider(0, LARGEST_APERTURE, 1, step=0.05, label="Aperture", buttons=[],
                                     visible=studio.renderer.kind == "focus")
                focus = gr.Textbox(label="Focus: X,Y as shares of width and height", max_lines=1,
                                   placeholder="what is near around the middle")
            with gr.Column(min_width=320):
                ending = gr.Radio([".png", ".jpg"], value=".png", label="At full size as")
                download = gr.DownloadButton("Download", interactive=False)
        with gr.Accordion("Depth map", open=False):
            depth_shown = gr.Image(show_label=False, format="png", interactive=False, buttons=[])
        command = gr.Textbox(label="The same on the command line", interactive=False, buttons=["copy"],
                             elem_id="command")

        asked, read = [opened, focus, aperture], [opened, focus, depth_shown]

        def show(event, api="private"):
            event(studio.render_quickly, asked, [clicked, compared, command, download], show_progress="hidden",
                  trigger_mode="always_last", api_visibility=api).success(
                studio.render_whole, [*asked, ending], [compared, download], show_progress="hidden",
                concurrency_limit=None, trigger_mode="multiple", api_visibility=api)

        show(load.click(studio.open, [photo, depth], read, show_progress_on=photo).success, "public")
        show(examples.select(choose_scene, None, read).success)
        show(page.load(open_scene, None, read).success)
        show(clicked.select(point, opened, focus).success)
        show(aperture.input)
        show(focus.submit)
        ending.change(studio.render_whole, [*asked, ending], [compared, download])
    return page


if __name__ == "__main__":
    sys.exit(scripts.run(main))
