"""support/embedded_depth.py: the depth map inside a photo is found, bright = near, upright as its photo.

The files are written here by the formats' specifications; no camera's own file was at hand.
"""

import base64
import hashlib
import io
import struct
import types

import numpy as np
import pytest
from PIL import Image
from test_own_photos import ORIENTATION, TO_STORE, colours

from support import embedded_depth, own_photos
from utils import DataError

SIZE = WIDTH, HEIGHT = 48, 40  # of the depth maps; the photos have twice that
NEAR, FAR = 0.5, 8.0
RAMP = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)  # 0 top left, 1 bottom right
RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
GDEPTH = 'xmlns:GDepth="http://ns.google.com/photos/1.0/depthmap/"'
GIMAGE = 'xmlns:GImage="http://ns.google.com/photos/1.0/image/"'
DYNAMIC_IMAGE = 'xmlns:Image="http://ns.google.com/photos/dd/1.0/image/"'
NOTE = 'xmlns:xmpNote="http://ns.adobe.com/xmp/note/"'
DYNAMIC = ('xmlns:Container="http://ns.google.com/photos/dd/1.0/container/" '
           'xmlns:Item="http://ns.google.com/photos/dd/1.0/item/" '
           'xmlns:Device="http://ns.google.com/photos/dd/1.0/device/" '
           'xmlns:Camera="http://ns.google.com/photos/dd/1.0/camera/" '
           'xmlns:DepthMap="http://ns.google.com/photos/dd/1.0/depthmap/"')


def distances():
    """Distances whose inverse depth falls evenly from near, top left, to far, bottom right."""
    return 1 / (1 / NEAR + RAMP * (1 / FAR - 1 / NEAR))


def pixels(form, dtype=np.uint8):
    """The depth map of `distances` as both specifications define it."""
    z = distances()
    d = (z - NEAR) / (FAR - NEAR) if form == "RangeLinear" else FAR * (z - NEAR) / (z * (FAR - NEAR))
    return dtype(np.round(d * np.iinfo(dtype).max))


def encoded(array, image_format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, image_format, **options)
    return file.getvalue()


def photo_bytes(orientation=1, **options):
    """A JPEG of 96 x 80 pixels, upright; its depth map lies in it as its pixels do."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(colours((2 * WIDTH, 2 * HEIGHT)))
    turn = TO_STORE[orientation]
    file = io.BytesIO()
    (image if turn is None else image.transpose(turn)).save(file, "JPEG", quality=95, exif=exif, **options)
    return file.getvalue()


def description(namespaces, attributes="", elements=""):
    return (f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}><rdf:Description rdf:about="" {namespaces} '
            f'{attributes}>{elements}</rdf:Description></rdf:RDF></x:xmpmeta>')


def xmp_packet(text):
    start = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{start}{text}<?xpacket end="w"?>'.encode()


def with_segments(jpeg, *contents):
    """Puts APP1 segments behind the others at a JPEG's start."""
    place = 2
    while jpeg[place + 1] in (0xE0, 0xE1):
        place += 2 + int.from_bytes(jpeg[place + 2:place + 4], "big")
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content for content in contents)
    return jpeg[:place] + segments + jpeg[place:]


def gdepth(form="RangeInverse", image=None, near=NEAR, far=FAR, jpeg=None, part=200, lost=(), as_elements=False,
           padded=True):
    """A photo with GDepth, its data in extended XMP in parts of so many bytes, the last part first; `lost` are gone."""
    data = base64.b64encode(encoded(pixels(form)) if image is None else image).decode()
    data = data if padded else data.rstrip("=")
    extended = description(GDEPTH, f'GDepth:Data="{data}"').encode()
    guid = hashlib.md5(extended).hexdigest().upper().encode()
    properties = {"Format": form, "Near": near, "Far": far, "Mime": "image/png"}
    attributes = " ".join(f'GDepth:{name}="{value}"' for name, value in properties.items())
    elements = "".join(f"<GDepth:{name}>{value}</GDepth:{name}>" for name, value in properties.items())
    main = description(f"{GDEPTH} {NOTE}", f'xmpNote:HasExtendedXMP="{guid.decode()}" '
                       + ("" if as_elements else attributes), elements if as_elements else "")
    parts = [b"http://ns.adobe.com/xmp/extension/\0" + guid + struct.pack(">II", len(extended), offset)
             + extended[offset:offset + part] for offset in range(0, len(extended), part)]
    other = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 3, 0) + b"abc"
    kept = [content for number, content in enumerate(parts) if number not in lost]
    return with_segments(jpeg or photo_bytes(), b"http://ns.adobe.com/xap/1.0/\0" + xmp_packet(main), other,
                         *reversed(kept))


def dynamic_depth(form="RangeInverse", image=None, padding=0, jpeg=None, nested=False, length=None):
    """A photo in Dynamic Depth format: photo, padding, another image, depth map, and something behind."""
    image = encoded(pixels(form), "JPEG", quality=100) if image is None else image
    other = encoded(np.zeros((8, 8), np.uint8), "JPEG")
    items = [{"Mime": "image/jpeg", "Semantic": "Primary", "Padding": padding},
             {"Mime": "image/jpeg", "Semantic": "Confidence", "Length": len(other)},
             {"Mime": "image/jpeg", "Semantic": "Depth", "Length": len(image) if length is None else length},
             {"Mime": "video/mp4", "Semantic": "MotionPhoto", "Length": 4}]
    if nested:
        entries = "".join('<rdf:li rdf:parseType="Resource"><Container:Item rdf:parseType="Resource">' + "".join(
            f"<Item:{name}>{value}</Item:{name}>" for name, value in item.items()) + "</Container:Item></rdf:li>"
            for item in items)
    else:
        entries = "".join('<rdf:li rdf:parseType="Resource"><Container:Item ' + " ".join(
            f'Item:{name}="{value}"' for name, value in item.items()) + "/></rdf:li>" for item in items)
    camera = (f'<Device:Cameras><rdf:Seq><rdf:li rdf:parseType="Resource"><Device:Camera rdf:parseType="Resource">'
              f'<Camera:DepthMap DepthMap:Format="{form}" DepthMap:Near="{NEAR}" DepthMap:Far="{FAR}" '
              f'DepthMap:ItemSemantic="Depth"/></Device:Camera></rdf:li></rdf:Seq></Device:Cameras>')
    main = description(DYNAMIC, "", f"<Container:Directory><rdf:Seq>{entries}</rdf:Seq></Container:Directory>{camera}")
    photo = with_segments(jpeg or photo_bytes(), b"http://ns.adobe.com/xap/1.0/\0" + xmp_packet(main))
    return photo + bytes(padding) + other + image + b"film"


def lens_blur(original, jpeg):
    """A blurred portrait with GDepth and GImage, both in the extended XMP, the sharp photo without base64's padding."""
    depth = base64.b64encode(encoded(pixels("RangeInverse"))).decode()
    sharp = base64.b64encode(original).decode().rstrip("=")
    extended = description(f"{GDEPTH} {GIMAGE}", f'GDepth:Data="{depth}" GImage:Data="{sharp}"').encode()
    guid = hashlib.md5(extended).hexdigest().upper().encode()
    main = description(f"{GDEPTH} {GIMAGE} {NOTE}", f'xmpNote:HasExtendedXMP="{guid.decode()}" '
                       f'GImage:Mime="image/jpeg" GDepth:Format="RangeInverse" GDepth:Near="{NEAR}" GDepth:Far="{FAR}"')
    parts = [b"http://ns.adobe.com/xmp/extension/\0" + guid + struct.pack(">II", len(extended), offset)
             + extended[offset:offset + 65000] for offset in range(0, len(extended), 65000)]
    return with_segments(jpeg, b"http://ns.adobe.com/xap/1.0/\0" + xmp_packet(main), *parts)


def google_camera(original, jpeg):
    """A portrait as phones write Dynamic Depth: all in extended XMP, items without Semantic, the sharp photo first."""
    depth = encoded(pixels("RangeLinear"), "JPEG", quality=100)
    items = {"primary_image": b"", "android/original_image": original, "android/depthmap": depth,
             "android/confidencemap": encoded(np.zeros((8, 8), np.uint8), "JPEG")}
    entries = "".join('<rdf:li rdf:parseType="Resource"><Container:Item Item:Mime="image/jpeg" '
                      f'Item:Length="{len(data)}" Item:DataURI="{name}"/></rdf:li>' for name, data in items.items())
    camera = ('<Device:Cameras><rdf:Seq><rdf:li rdf:parseType="Resource"><Device:Camera rdf:parseType="Resource">'
              '<Camera:Image Image:ItemSemantic="Original" Image:ItemURI="android/original_image"/>'
              f'<Camera:DepthMap DepthMap:ItemSemantic="Segmentation" DepthMap:Format="RangeLinear" '
              f'DepthMap:Near="{NEAR}" DepthMap:Far="{FAR}" DepthMap:DepthURI="android/depthmap"/>'
              '</Device:Camera></rdf:li></rdf:Seq></Device:Cameras>')
    container = ('<Device:Container rdf:parseType="Resource"><Container:Directory><rdf:Seq>'
                 f"{entries}</rdf:Seq></Container:Directory></Device:Container>")
    extended = description(f"{DYNAMIC} {DYNAMIC_IMAGE}", "", container + camera).encode()
    guid = hashlib.md5(extended).hexdigest().upper().encode()
    main = description(NOTE, f'xmpNote:HasExtendedXMP="{guid.decode()}"')
    part = b"http://ns.adobe.com/xmp/extension/\0" + guid + struct.pack(">II", len(extended), 0) + extended
    photo = with_segments(jpeg, b"http://ns.adobe.com/xap/1.0/\0" + xmp_packet(main), part)
    return photo + b"".join(items.values())


def box(kind, content):
    return struct.pack(">I", 8 + len(content)) + kind + content


def boxes(data):
    """Returns [[kind, content], ...] of ISO/IEC 14496-12."""
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append([data[4:8], data[8:size]])
        data = data[size:]
    return found


def heic(orientation=1, turned=False):
    """A HEIC photo whose second image is made its depth map (ISO/IEC 23008-12: auxC, auxl), turned by `irot` or not."""
    import pillow_heif
    turn, exif, file = TO_STORE[orientation], Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    photo, depth = Image.fromarray(colours((2 * WIDTH, 2 * HEIGHT))), Image.fromarray(np.uint8(np.round(EXPECTED)))
    stored = [image if turn is None else image.transpose(turn) for image in (photo, depth)]
    both = pillow_heif.from_pillow(stored[0])
    both.add_from_pillow(stored[1])
    both.save(file, quality=100, exif=exif.tobytes())
    data = file.getvalue()
    meta = dict(boxes(data))[b"meta"]
    parts = boxes(meta[4:])
    properties = next(part for part in parts if part[0] == b"iprp")
    (_, known), (_, table) = boxes(properties[1])
    kinds = [kind for kind, _ in boxes(known)]
    more = [0x80 | (1 + len(kinds)), *([0x80 | (1 + kinds.index(b"irot"))] if turned else [])]
    rest, own = table[8:], b""
    while rest:  # the last is the second image; between may be EXIF
        place, (item, count) = len(table) - len(rest), struct.unpack(">HB", rest[:3])
        own, rest = rest[3:3 + count] + bytes(more), rest[3 + count:]
    table = table[:place] + struct.pack(">HB", item, len(own)) + own
    auxiliary = box(b"auxC", bytes(4) + b"urn:mpeg:hevc:2015:auxid:2\0")
    properties[1] = box(b"ipco", known + auxiliary) + box(b"ipma", table)
    references = next((part for part in parts if part[0] == b"iref"), None) or [b"iref", bytes(4)]
    parts = [part for part in parts if part is not references]
    parts.append([b"iref", references[1] + box(b"auxl", struct.pack(">3H", item, 1, 1))])
    place = data.index(b"meta")  # the old box stays as free space, so that the places of the pixels stay, too
    return data[:place] + b"free" + data[place + 4:] + box(b"meta", meta[:4] + b"".join(box(*part) for part in parts))


@pytest.fixture
def written(tmp_path):
    """written(bytes) is the path of photo.jpg with this content."""
    def write(data):
        (tmp_path / "photo.jpg").write_bytes(data)
        return tmp_path / "photo.jpg"
    return write


FORMS = ["RangeInverse", "RangeLinear"]
EXPECTED = 255 * (1 - RAMP)  # inverse depth: 255 at near, 0 at far


@pytest.mark.parametrize("form, tolerance", [("RangeInverse", 1), ("RangeLinear", 8)])  # near steps of 1/255 are coarse
@pytest.mark.parametrize("options", [{}, {"part": 65400}, {"part": 97}, {"padded": False}, {"as_elements": True}])
def test_gdepth_in_extended_xmp_is_inverse_depth_bright_where_near(written, form, tolerance, options):
    path = written(gdepth(form, **options))
    depth = embedded_depth.read(path)
    assert embedded_depth.contains(path) and depth.dtype == np.uint8 and depth.shape == (HEIGHT, WIDTH)
    assert np.abs(depth - EXPECTED).max() <= tolerance


@pytest.mark.parametrize("write", [lens_blur, google_camera])
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_of_a_portrait_the_sharp_photo_inside_is_read_with_its_depth_map(written, write, orientation):
    turn = TO_STORE[orientation]
    blurred = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", [(96, 80), (80, 96)][orientation > 4], "grey").save(blurred, "JPEG", exif=exif)
    sharp = Image.fromarray(colours((2 * WIDTH, 2 * HEIGHT)))
    sharp = encoded(np.asarray(sharp if turn is None else sharp.transpose(turn)), "JPEG", quality=95)
    path = written(write(sharp, blurred.getvalue()))
    assert np.abs(np.asarray(own_photos.read_photo(path), int) - colours((2 * WIDTH, 2 * HEIGHT))).max() <= 6
    assert embedded_depth.contains(path)
    depth = embedded_depth.read(path)
    assert depth.shape == ((HEIGHT, WIDTH) if turn is None else (WIDTH, HEIGHT))
    back = depth if turn is None else np.asarray(Image.fromarray(depth).transpose(turn))
    assert np.abs(back - EXPECTED).max() <= 14


@pytest.mark.skipif("HEIF" not in embedded_depth.phone_formats(), reason="pillow-heif is not installed")
@pytest.mark.parametrize("orientation, turned", [(1, False), (6, False), (6, True), (8, False), (8, True), (3, True)])
def test_depth_map_in_a_heic_is_read_and_turned_with_its_photo(tmp_path, orientation, turned):
    path = tmp_path / "photo.heic"
    path.write_bytes(heic(orientation, turned))
    [pair], without = own_photos.find_pairs(tmp_path, None)
    array, size, _ = own_photos.load_input(pair)
    assert size == (2 * WIDTH, 2 * HEIGHT) and not without
    assert np.abs(array[..., 3] - EXPECTED).max() <= 6
    assert np.abs(np.asarray(own_photos.read_photo(path), int) - colours((2 * WIDTH, 2 * HEIGHT))).mean() < 3


@pytest.mark.parametrize("kind, near_is", [(0, 255), (1, 255), (3, 255), (2, 0)])
def test_heics_representations_are_inverse_depth_but_for_that_of_distances(kind, near_is):
    depth = types.SimpleNamespace(info={"metadata": {"representation_type": kind, "z_near": NEAR, "z_far": FAR}},
                                  to_pillow=lambda: Image.fromarray(np.uint8([[0, 255]])))
    photo = types.SimpleNamespace(info={"depth_images": [depth]}, size=(4, 2), width=4, height=2)
    contents = embedded_depth._in_heif(photo)
    found = embedded_depth._inverse_depth(contents.depth, contents.properties)
    assert found.tolist() == [[255 - near_is, near_is]]


@pytest.mark.parametrize("form", FORMS)
def test_16_bit_images_are_read(written, form):
    image = encoded(pixels(form, np.uint16))
    path = written(gdepth(form, image))
    assert np.abs(embedded_depth.read(path) - EXPECTED).max() <= 1


@pytest.mark.parametrize("form, tolerance", [("RangeInverse", 2), ("RangeLinear", 14)])
@pytest.mark.parametrize("options", [{}, {"padding": 5}, {"nested": True}, {"jpeg": photo_bytes(progressive=True)},
                                     {"jpeg": photo_bytes(restart_marker_rows=1)}])
def test_dynamic_depth_is_the_item_behind_the_photo(written, form, tolerance, options):
    path = written(dynamic_depth(form, **options))
    assert embedded_depth.contains(path)
    assert np.abs(embedded_depth.read(path) - EXPECTED).max() <= tolerance


@pytest.mark.parametrize("orientation", TO_STORE)
@pytest.mark.parametrize("write", [gdepth, dynamic_depth])
def test_depth_map_is_turned_with_its_photo(written, write, orientation):
    turn = TO_STORE[orientation]
    stored = Image.fromarray(pixels("RangeInverse"))
    stored = np.asarray(stored if turn is None else stored.transpose(turn))
    path = written(write(image=encoded(stored), jpeg=photo_bytes(orientation)))
    np.testing.assert_array_equal(embedded_depth.read(path), 255 - pixels("RangeInverse"))
    [pair], without = own_photos.find_pairs(path, None)
    array, size, _ = own_photos.load_input(pair)
    assert size == (2 * WIDTH, 2 * HEIGHT) and not without
    np.testing.assert_array_equal(array[..., 3], 255 - pixels("RangeInverse"))


def test_depth_map_is_resized_to_half_of_what_max_side_leaves(written):
    [pair], _ = own_photos.find_pairs(written(gdepth(jpeg=photo_bytes())), None)
    array, size, _ = own_photos.load_input(pair, max_side=80)
    assert size == (80, 67) and array.shape == (33, 40, 4)
    assert array[0, 0, 3] > 250 and array[-1, -1, 3] < 5


NO_DEPTH = {
    "plain": photo_bytes(), "png": encoded(colours()), "empty": b"",
    "other XMP": with_segments(photo_bytes(), b"http://ns.adobe.com/xap/1.0/\0" + xmp_packet(description(NOTE))),
    "extended XMP of something else": with_segments(photo_bytes(), b"http://ns.adobe.com/xap/1.0/\0" + xmp_packet(
        description(NOTE, f'xmpNote:HasExtendedXMP="{"A" * 32}"'))),
    "broken XMP": with_segments(photo_bytes(), b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
    "motion photo": dynamic_depth().replace(b'Item:Semantic="Depth"', b'Item:Semantic="Depht"').replace(
        b"/depthmap/", b"/depthmop/")}


@pytest.mark.parametrize("name", NO_DEPTH)
def test_photo_without_a_depth_map_has_none(written, name):
    assert not embedded_depth.contains(written(NO_DEPTH[name]))


@pytest.mark.parametrize("data, reason", [
    (lambda: gdepth(lost=[1]), "data are missing or incomplete"),
    (lambda: gdepth(image=b"no image"), "no PNG or JPEG"),
    (lambda: with_segments(photo_bytes(), b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta " + GDEPTH.encode()), "unclosed"),
    (lambda: gdepth(image=encoded(np.zeros((13000, 13000), bool))), "it is 13000 x 13000, larger than its photo"),
    (lambda: gdepth(image=encoded(pixels("RangeInverse"))[:-90]), "truncated"),
    (lambda: gdepth(form="Metres"), "neither RangeInverse nor RangeLinear"),
    (lambda: gdepth(form="RangeLinear", near=0), "from Near=0 to Far=8"),
    (lambda: gdepth(form="RangeLinear", far="far"), "far"),
    (lambda: dynamic_depth()[:-400], "no PNG or JPEG"),
    (lambda: dynamic_depth(length=0), "no PNG or JPEG")])
def test_damaged_depth_map_is_one_line_that_names_the_photo(written, data, reason):
    path = written(data())
    [pair], _ = own_photos.find_pairs(path, None)
    with pytest.raises(DataError, match=rf"photo\.jpg: the depth map in it is damaged \(.*{reason}") as caught:
        own_photos.load_input(pair)
    assert "\n" not in str(caught.value)


def test_depth_map_that_lies_on_its_side_is_named(written):
    path = written(gdepth(image=encoded(np.zeros((WIDTH, HEIGHT), np.uint8))))
    with pytest.raises(DataError, match=r"photo\.jpg: the depth map in it is 40 x 48 and lies on its side"):
        own_photos.load_input(own_photos.find_pairs(path, None)[0][0])
