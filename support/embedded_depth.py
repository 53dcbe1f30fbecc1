"""The depth map inside a portrait photo: a JPEG in one of two formats of Google's.

GDepth ("Depthmap Metadata"): GDepth:Format, Near, Far and Data, an image in base64, are properties in the photo's XMP.
Most of it lies in the extended XMP (Adobe, XMP specification, part 3), APP1 segments that are to be put together.

Dynamic Depth 1.0: the image is a file of its own behind the photo. Container:Directory in the XMP lists what lies
there, in order; the item whose Item:Semantic is "Depth" is the depth map. DepthMap:Format, Near, Far as above.

A pixel d, from 0 to 1, grows with the distance z: RangeLinear is d = (z - near) / (far - near), RangeInverse is
d = far (z - near) / (z (far - near)).
"""

import base64
import io
import itertools
import pathlib
import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import DataError

JPEG_START, APP1, START_OF_SCAN, END_OF_IMAGE = b"\xff\xd8", 0xE1, 0xDA, 0xD9  # ITU-T T.81, table B.1
MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not a stuffed byte, a fill byte or a restart
XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
GUID_LENGTH, NUMBER_LENGTH = 32, 4  # of an extended segment's head: GUID, length of the whole, offset of this part
LIST_ENTRY = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
ORIENTATION = 0x0112  # EXIF 2.32
MODES_16_BIT = ("I", "I;16", "I;16B")  # of Pillow, for 16-bit PNG


def contains(path):
    """Returns whether there is a depth map in a photo, be it damaged."""
    try:
        return _find(path) is not None
    except Exception:  # reading the photo or the depth map says why
        return True


def read(path):
    """Reads the depth map in a photo as uint8 (height, width), bright = near, turned upright as the photo is.

    The values are inverse depth: 255 at `near`, 0 at `far`. Call it where `contains` says that there is a depth map.
    Raises DataError where that is damaged.
    """
    try:
        properties, image = _find(path)
        with Image.open(io.BytesIO(image), formats=("PNG", "JPEG")) as depth:
            return _inverse_depth(_turn_upright(depth, path), properties)
    except UnidentifiedImageError:
        raise DataError(f"{path}: the depth map in it is damaged (no PNG or JPEG)") from None
    except Exception as error:  # Pillow raises many kinds
        raise DataError(f"{path}: the depth map in it is damaged ({error})") from None


def _find(path):
    """Returns (the depth map's properties, its image as the bytes of a PNG or JPEG), None where there is none."""
    data = pathlib.Path(path).read_bytes()
    if not data.startswith(JPEG_START):
        return None
    trees = _metadata(data)
    properties = _properties(trees, "/depthmap/")
    if "Data" in properties:
        return properties, base64.b64decode(properties["Data"] + "==")  # some leave the padding out
    image = _depth_item(data, trees)
    if image is not None:
        return properties, image
    if "Format" in properties:
        raise ValueError("its data are missing or incomplete")
    return None


def _inverse_depth(image, properties):
    """Returns uint8 (height, width) by the formulas above, solved for 1 / z, which becomes 1 at near and 0 at far."""
    is_16_bit = image.mode in MODES_16_BIT
    d = np.asarray(image if is_16_bit else image.convert("L"), np.float64) / (65535 if is_16_bit else 255)
    if properties.get("Format") == "RangeInverse":
        return np.uint8(np.round(255 * (1 - d)))
    if properties.get("Format") != "RangeLinear":
        raise ValueError(f"its Format is {properties.get('Format')}, neither RangeInverse nor RangeLinear")
    near, far = float(properties.get("Near", "nan")), float(properties.get("Far", "nan"))
    if not 0 < near < far < np.inf:
        raise ValueError(f"it reaches from Near={near:g} to Far={far:g}")
    return np.uint8(np.round(255 * near * (1 - d) / (near + d * (far - near))))


def _turn_upright(image, path):
    """Turns a depth map by the EXIF orientation of its photo."""
    with Image.open(path, formats=("JPEG",)) as photo:
        image.getexif()[ORIENTATION] = photo.getexif().get(ORIENTATION, 1)
    return ImageOps.exif_transpose(image)


def _segments(data):
    """Yields (marker, start and end of the content) of a JPEG's segments, up to the end of the image or of the data."""
    position = len(JPEG_START)
    while data[position:position + 1] == b"\xff" and position + 2 <= len(data):
        marker, start = data[position + 1], position + 4
        if marker == END_OF_IMAGE:
            yield marker, position + 2, position + 2
            return
        position += 2 + int.from_bytes(data[position + 2:start], "big")
        yield marker, start, position
        if marker == START_OF_SCAN:
            following = MARKER_AFTER_SCAN.search(data, position)
            position = following.start() if following else len(data)


def _metadata(data):
    """Returns the XML trees of a JPEG's XMP: none, the main one, or this and the extended one that it names."""
    head = itertools.takewhile(lambda segment: segment[0] != START_OF_SCAN, _segments(data))
    contents = [data[start:end] for marker, start, end in head if marker == APP1]
    trees = [_parse(content[len(XMP):]) for content in contents if content.startswith(XMP)][:1]
    guid = _properties(trees, "/xmp/note/").get("HasExtendedXMP", "").encode()
    heads = EXTENDED_XMP + guid
    parts = [content[len(heads):] for content in contents if len(guid) == GUID_LENGTH and content.startswith(heads)]
    parts.sort(key=lambda part: part[NUMBER_LENGTH:2 * NUMBER_LENGTH])  # big-endian offsets
    extended = b"".join(part[2 * NUMBER_LENGTH:] for part in parts)
    complete = parts and len(extended) == int.from_bytes(parts[0][:NUMBER_LENGTH], "big")
    return trees + [_parse(extended)] if complete else trees


def _parse(xml):
    try:
        return ElementTree.fromstring(xml.strip(b"\0 \n"))
    except ElementTree.ParseError:
        return ElementTree.Element("damaged")


def _properties(trees, namespace):
    """Returns {name: value} of the XMP properties whose namespace ends so, be they attributes or elements."""
    found = {}
    for node in itertools.chain.from_iterable(tree.iter() for tree in trees):
        for tag, value in ((node.tag, node.text or ""), *node.attrib.items()):
            space, _, name = tag.rpartition("}")
            if space.endswith(namespace):
                found.setdefault(name, value.strip())
    return found


def _depth_item(data, trees):
    """Returns the bytes of the item "Depth" of Container:Directory, None where there is no such item.

    The first item is the photo. The others follow it, each `Length` bytes, after the `Padding` of the one before.
    """
    entries = [_properties([entry], "/item/") for tree in trees for entry in tree.iter(LIST_ENTRY)]
    photo, *others = [item for item in entries if "Semantic" in item] or [{}]
    position = next((end for marker, _, end in _segments(data) if marker == END_OF_IMAGE), len(data))
    position += int(photo.get("Padding", 0))
    for item in others:
        length = int(item.get("Length", 0))
        if item["Semantic"] == "Depth":
            return data[position:position + length]
        position += length + int(item.get("Padding", 0))
    return None
