"""Which depth map, and which sharp original, is inside a phone's photo?

JPEG with GDepth and GImage ("Depthmap Metadata", Google Lens Blur): GDepth:Format, Near, Far and Data, an image in
base64, are properties in the photo's XMP; GImage:Data is the photo before it was blurred. Most of it lies in the
extended XMP (Adobe, XMP specification, part 3), APP1 segments that are put together.

JPEG with Dynamic Depth 1.0 (Google Camera): the images are files of their own behind the photo. Container:Directory in
the XMP lists them in order. The depth map is the item whose Item:Semantic is "Depth", or whose Item:DataURI is
DepthMap:DepthURI; the sharp photo is "Original", or Image:ItemURI. DepthMap:Format, Near, Far as above.

HEIC (ISO/IEC 23008-12), which pillow-heif reads: the depth map is an auxiliary image, represented as in H.265.

In JPEGs a pixel d, from 0 to 1, grows with the distance z: RangeLinear is d = (z - near) / (far - near), RangeInverse
is d = far (z - near) / (z (far - near)). In HEIC it grows with 1 / z, except in representation 2, which is RangeLinear.
"""

import base64
import functools
import importlib.util
import io
import pathlib
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from load_dataset import size_text
from utils import DataError

XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
GUID_LENGTH, NUMBER_LENGTH = 32, 4  # of an extended segment's head: GUID, length of the whole, offset of this part
PADDING = b"\0 \n"  # that may surround the XML
LIST_ENTRY = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
DEPTH, IMAGE, ITEM = "/depthmap/", "/image/", "/item/"  # what the namespaces end in, of either kind
ORIGINAL_URI = "android/original_image"  # in files whose items have no Semantic
ORIENTATION = 0x0112  # EXIF 2.32
UNIFORM_Z = 2  # HEIC's representation_type of distances


class _Contents(NamedTuple):
    """What is in a photo: the depth map with its Format, Near and Far, and the file of the sharp original, or None.
    `orientation` (EXIF) turns the depth map upright, `size` is the photo's."""

    depth: Image.Image | bytes | None
    properties: dict
    original: bytes | None
    orientation: int
    size: tuple


@functools.cache
def phone_formats():
    """Returns Pillow's names of the formats of phones that can be read: AVIF needs Pillow 11.3, HEIF pillow-heif."""
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in ("JPEG", "AVIF", "HEIF") if name in Image.OPEN)


def contains(path):
    """Returns whether there is a depth map in a photo, be it damaged."""
    try:
        return _find(path).depth is not None
    except UnidentifiedImageError:  # of another format
        return False
    except Exception:  # reading it says why
        return True


def sharp_original(path):
    """Returns the bytes of the JPEG with everything in focus that a blurred portrait holds; None without one."""
    try:
        return _find(path).original
    except Exception:  # a damaged depth map does not cost the photo
        return None


def read(path):
    """Reads the depth map in a photo as uint8 (height, width), bright = near, turned upright as the photo is.

    The values are inverse depth: 255 at `near`, 0 at `far`. Raises DataError where it is damaged.
    """
    try:
        contents = _find(path)
        image = contents.depth
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image), formats=("PNG", "JPEG"))
        if np.prod(image.size, dtype=np.int64) > np.prod(contents.size, dtype=np.int64):  # before it is decoded
            raise ValueError(f"it is {size_text(image.size)}, larger than its photo")
        image.getexif()[ORIENTATION] = contents.orientation
        return _inverse_depth(ImageOps.exif_transpose(image), contents.properties)
    except UnidentifiedImageError:
        raise DataError(f"{path}: the depth map in it is damaged (no PNG or JPEG)") from None
    except Exception as error:  # Pillow raises many kinds
        raise DataError(f"{path}: the depth map in it is damaged ({error})") from None


def _inverse_depth(image, properties):
    """Returns uint8 (height, width) by the formulas above, solved for 1 / z, which becomes 1 at near and 0 at far."""
    if image.mode.startswith("I"):
        pixels, greatest = np.asarray(image, np.uint16), 65535
    else:
        pixels, greatest = np.asarray(image.convert("L")), 255
    d = np.arange(greatest + 1) / greatest
    form = properties.get("Format")
    if form == "RangeLinear":
        near, far = float(properties.get("Near", "nan")), float(properties.get("Far", "nan"))
        if not 0 < near < far < np.inf:
            raise ValueError(f"it reaches from Near={near:g} to Far={far:g}")
        inverse = near * (1 - d) / (near + d * (far - near))
    elif form in ("RangeInverse", "Disparity"):
        inverse = 1 - d if form == "RangeInverse" else d
    else:
        raise ValueError(f"its Format is {form}, neither RangeInverse nor RangeLinear")
    return np.uint8(np.round(255 * inverse))[pixels]


# Where it lies -------------------------------------------------------------------------------------------------------


def _find(path):
    """Returns the `_Contents` of a photo."""
    with Image.open(path, formats=[name for name in phone_formats() if name != "AVIF"]) as photo:
        if photo.format == "HEIF":
            return _in_heif(photo)
        segments = [content for marker, content in photo.applist if marker == "APP1"]
        orientation, size = photo.getexif().get(ORIENTATION, 1), photo.size
    try:
        trees = _metadata(segments)
    except ElementTree.ParseError:
        if not any(DEPTH.encode() in segment for segment in segments):
            return _Contents(None, {}, None, orientation, size)  # an ordinary photo with broken XMP
        raise
    depth, image = _properties(trees, DEPTH), _properties(trees, IMAGE)
    original_uri = image.get("ItemURI") if image.get("ItemSemantic") == "Original" else ORIGINAL_URI
    depth_file = _decode(depth) or _item(path, trees, "Depth", depth.get("DepthURI"))
    if depth_file is None and {"Format", "DepthURI"} & set(depth):
        raise ValueError("its data are missing or incomplete")
    original = _decode(image) or _item(path, trees, "Original", original_uri) or None
    return _Contents(depth_file, depth, original, orientation, size)


def _in_heif(photo):
    """Returns the `_Contents` of a HEIC photo. pillow-heif turns it upright; a depth map may lie as the sensor did."""
    for depth in photo.info.get("depth_images", ())[:1]:
        metadata, image = depth.info.get("metadata") or {}, depth.to_pillow()
        sideways = (image.width - image.height) * (photo.width - photo.height) < 0
        orientation = photo.info.get("original_orientation") or 1 if sideways else 1
        properties = {"Format": "Disparity"}
        if metadata.get("representation_type") == UNIFORM_Z:
            properties = {"Format": "RangeLinear", "Near": metadata.get("z_near"), "Far": metadata.get("z_far")}
        return _Contents(image, properties, None, orientation, photo.size)
    return _Contents(None, {}, None, 1, photo.size)


def _metadata(segments):
    """Returns the XML trees of a JPEG's XMP: none, the main one, or this and the extended one that it names."""
    packets = [segment[len(XMP):] for segment in segments if segment.startswith(XMP)]
    trees = [ElementTree.fromstring(packet.strip(PADDING)) for packet in packets[:1]]
    guid = _properties(trees, "/xmp/note/").get("HasExtendedXMP", "").encode()
    head = EXTENDED_XMP + guid
    parts = [segment[len(head):] for segment in segments if len(guid) == GUID_LENGTH and segment.startswith(head)]
    parts.sort(key=lambda part: part[NUMBER_LENGTH:2 * NUMBER_LENGTH])  # big-endian offsets
    extended = b"".join(part[2 * NUMBER_LENGTH:] for part in parts)
    complete = parts and len(extended) == int.from_bytes(parts[0][:NUMBER_LENGTH], "big")
    return trees + [ElementTree.fromstring(extended.strip(PADDING))] if complete else trees


def _properties(trees, namespace):
    """Returns {name: value} of the XMP properties whose namespace ends so, be they attributes or elements."""
    found = {}
    for node in (node for tree in trees for node in tree.iter()):
        for tag, value in ((node.tag, node.text or ""), *node.attrib.items()):
            space, _, name = tag.rpartition("}")
            if space.endswith(namespace):
                found.setdefault(name, value.strip())
    return found


def _decode(properties):
    """Returns the file that lies in the property Data in base64, whose padding some leave out; None where none does."""
    return base64.b64decode(properties["Data"] + "==") if "Data" in properties else None


def _item(path, trees, semantic, uri):
    """Returns the bytes of the item of Container:Directory with this Semantic or DataURI, None where there is none.

    The first item is the photo; the others, each `Length` bytes and `Padding`, follow it to the end of the file.
    """
    position, items = 0, [_properties([entry], ITEM) for tree in trees for entry in tree.iter(LIST_ENTRY)]
    for item in reversed([item for item in items if "Mime" in item or "Semantic" in item]):
        length = int(item.get("Length", 0))
        position -= length + int(item.get("Padding", 0))
        if item.get("Semantic") == semantic or uri and item.get("DataURI") == uri:
            return pathlib.Path(path).read_bytes()[position:][:length]
    return None
