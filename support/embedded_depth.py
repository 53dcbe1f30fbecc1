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
import pathlib
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import DataError

XMP, EXTENDED_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
GUID_LENGTH, NUMBER_LENGTH = 32, 4  # of an extended segment's head: GUID, length of the whole, offset of this part
PADDING = b"\0 \n"  # that may surround the XML
LIST_ENTRY = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
ORIENTATION = 0x0112  # EXIF 2.32


def contains(path):
    """Returns whether there is a depth map in a photo, be it damaged."""
    try:
        return _find(path) is not None
    except UnidentifiedImageError:  # no JPEG
        return False
    except Exception:  # reading it says why
        return True


def read(path):
    """Reads the depth map in a photo as uint8 (height, width), bright = near, turned upright as the photo is.

    The values are inverse depth: 255 at `near`, 0 at `far`. Raises DataError where it is damaged.
    """
    try:
        properties, data, orientation = _find(path)
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            image.getexif()[ORIENTATION] = orientation
            return _inverse_depth(ImageOps.exif_transpose(image), properties)
    except UnidentifiedImageError:
        raise DataError(f"{path}: the depth map in it is damaged (no PNG or JPEG)") from None
    except Exception as error:  # Pillow raises many kinds
        raise DataError(f"{path}: the depth map in it is damaged ({error})") from None


def _find(path):
    """Returns (properties of the depth map, its PNG or JPEG file as bytes, EXIF orientation); None without one."""
    with Image.open(path, formats=("JPEG",)) as photo:
        segments = [content for marker, content in photo.applist if marker == "APP1"]
        orientation = photo.getexif().get(ORIENTATION, 1)
    trees = _metadata(segments)
    properties = _properties(trees, "/depthmap/")
    if "Data" in properties:
        return properties, base64.b64decode(properties["Data"] + "=="), orientation  # some leave the padding out
    data = _depth_item(path, trees)
    if data is None and "Format" in properties:
        raise ValueError("its data are missing or incomplete")
    return None if data is None else (properties, data, orientation)


def _inverse_depth(image, properties):
    """Returns uint8 (height, width) by the formulas above, solved for 1 / z, which becomes 1 at near and 0 at far."""
    d = np.float64(image.convert("F")) / (65535 if image.mode.startswith("I") else 255)
    if properties.get("Format") == "RangeInverse":
        return np.uint8(np.round(255 * (1 - d)))
    if properties.get("Format") != "RangeLinear":
        raise ValueError(f"its Format is {properties.get('Format')}, neither RangeInverse nor RangeLinear")
    near, far = float(properties.get("Near", "nan")), float(properties.get("Far", "nan"))
    if not 0 < near < far < np.inf:
        raise ValueError(f"it reaches from Near={near:g} to Far={far:g}")
    return np.uint8(np.round(255 * near * (1 - d) / (near + d * (far - near))))


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


def _depth_item(path, trees):
    """Returns the bytes of the item "Depth" of Container:Directory, None where there is no such item.

    The first item is the photo; the others, each `Length` bytes and `Padding`, follow it to the end of the file.
    """
    position, items = 0, [_properties([entry], "/item/") for tree in trees for entry in tree.iter(LIST_ENTRY)]
    for item in reversed([item for item in items if "Semantic" in item]):
        length = int(item.get("Length", 0))
        position -= length + int(item.get("Padding", 0))
        if item["Semantic"] == "Depth":
            return pathlib.Path(path).read_bytes()[position:][:length]
    return None
