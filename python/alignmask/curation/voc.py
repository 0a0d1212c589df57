"""Pascal VOC's instance masks, from and to COCO's format.

SegmentationObject/NAME.png numbers the pixels of the instances, SegmentationClass/NAME.png those of
the classes; 0 is background and 255 is void. (Libraries that read VOC take its boxes alone.) CVAT
and Datumaro write the same with colours, and labelmap.txt, which says the colour of each class.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from alignmask._files import must_be_new, new_folder
from alignmask.curation.drafts import Instance, instances_of, united, write_draft
from alignmask.data.batch import Size
from alignmask.data.draft import Draft
from alignmask.data.faults import CocoError, Faults, brief
from alignmask.data.file_names import find_files
from alignmask.data.images import ImageError, image_suffixes, read_header
from alignmask.data.records import CocoFile

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Those of Pascal VOC, 1 to 20."""
VOID, MOST = 255, 254
OBJECTS, KINDS, IMAGES = "SegmentationObject", "SegmentationClass", "JPEGImages"
Colour = tuple[int, int, int]


def palette_colour(index: int) -> Colour:
    """Of an index, in the palette that all of VOC's masks have."""
    red = green = blue = 0
    for bit in range(8):
        red |= (index >> 3 * bit & 1) << 7 - bit
        green |= (index >> 3 * bit + 1 & 1) << 7 - bit
        blue |= (index >> 3 * bit + 2 & 1) << 7 - bit
    return red, green, blue


PALETTE = [palette_colour(index) for index in range(256)]


def convert_voc(
    folder: Path,
    out: Path,
    *,
    split: str | None = None,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
) -> Counter[str]:
    """Write the COCO file of a folder of VOC masks; returns what was read and left out, counted.

    The class of an instance is that of most of its pixels. Void pixels belong to no instance.

    Args:
        out: The file to write. Must not exist.
        split: Read the images that ImageSets/Segmentation/SPLIT.txt names; None reads every mask.
        images: The images; by default JPEGImages in the folder.
        classes: The names of classes 1, 2, ...; None takes those in labelmap.txt or
            class_names.txt, and without these, VOC's own.

    Raises:
        FileExistsError: `out` exists.
        CocoError: Masks or images are missing or do not fit each other; all of them are counted.
    """
    must_be_new(out, "data")
    for name in (OBJECTS, KINDS):
        if not (folder / name).is_dir():
            raise CocoError(
                f"{folder}: expected Pascal VOC's folders {OBJECTS} and {KINDS}: there is no {name}"
            )
    images = images or folder / IMAGES
    names, colours = _classes(folder) if classes is None else (list(classes), None)
    draft = Draft(names)
    if names == list(CLASSES):
        draft.counts["classes, named as in Pascal VOC"] = len(names)
    files = {
        file.stem: file.name
        for file in sorted(images.glob("*"))
        if file.suffix.lower() in image_suffixes()
    }
    for stem in _stems(folder, split):
        objects, kinds = folder / OBJECTS / f"{stem}.png", folder / KINDS / f"{stem}.png"
        if missing := [str(path) for path in (objects, kinds) if not path.is_file()]:
            draft.faults.add("of masks that do not exist", ", ".join(missing))
        elif stem not in files:
            draft.faults.add("of masks without an image", f"{images / stem}.*")
        else:
            _read_masks(objects, kinds, images / files[stem], colours, draft)
    return write_draft(folder, draft, out)


def _read_masks(
    objects: Path, kinds: Path, image: Path, colours: list[Colour] | None, draft: Draft
) -> None:
    try:
        size = read_header(image).size
        object_HW, kind_HW = _indices(objects, None), _indices(kinds, colours)
    except (ImageError, OSError, SyntaxError, ValueError) as error:
        draft.faults.add("that cannot be read", str(error))
        return
    for path, index_HW in ((objects, object_HW), (kinds, kind_HW)):
        if index_HW.shape != size:
            draft.faults.add(
                "of masks of another size than the image",
                f"{path}: {index_HW.shape[0]} x {index_HW.shape[1]} pixels (height x width), the "
                f"image has {size[0]} x {size[1]}",
            )
            return
    image_id = draft.add_image(image.name, size)
    names = draft.classes or []
    for number in np.unique(object_HW).tolist():
        if number in (0, VOID):
            continue
        where = f"{objects}: instance {number}"
        instance_HW = (object_HW == number) & (kind_HW != VOID)
        found, pixels = np.unique(kind_HW[instance_HW], return_counts=True)
        if not (found > 0).any():
            draft.counts["instances of background or void left out"] += 1
            continue
        if len(found) > 1:
            draft.counts["instances with pixels of several classes, of which the most counts"] += 1
        pixels = np.where(found > 0, pixels, 0)
        label = int(found[pixels.argmax()])
        if label > len(names):
            draft.faults.add(
                "of a class that has no name",
                f"{where}: class {label}, there are names of {len(names)}",
            )
            continue
        draft.add(image_id, names[label - 1], united([instance_HW], size), where)


def _indices(path: Path, colours: list[Colour] | None) -> np.ndarray:
    """int64 [H, W]: 0 for background, `VOID` for void. Of a mask in colours, numbered by `colours`,
    or as they come, which leaves out `VOID`. A mask of 16 bits has no void."""
    with Image.open(path) as picture:
        if picture.mode in ("P", "L", "1", "I;16", "I"):
            index_HW = np.asarray(picture).astype(np.int64)
            if picture.mode.startswith("I") and colours is None:
                index_HW[index_HW == VOID] = index_HW.max() + 1  # is an instance like others
            return index_HW
        rgb_HW3 = np.asarray(picture.convert("RGB")).astype(np.int64)
    code_HW = rgb_HW3 @ np.array([65536, 256, 1])
    present, index_HW = np.unique(code_HW, return_inverse=True)
    index_HW = index_HW.reshape(code_HW.shape)
    known = {_code(PALETTE[0]): 0, _code(PALETTE[VOID]): VOID}
    if colours is None:
        rest = [code for code in present.tolist() if code not in known]
        known |= {code: n + (n >= VOID) for n, code in enumerate(rest, 1)}
    else:
        known |= {_code(colour): n for n, colour in enumerate(colours, 1)}
        if strange := [code for code in present.tolist() if code not in known]:
            shown = tuple(int(strange[0]) >> shift & 255 for shift in (16, 8, 0))
            raise ValueError(
                f"{path}: the colour {shown} is of no class: labelmap.txt says which colour is"
            )
    numbers: np.ndarray = np.array([known[code] for code in present.tolist()])[index_HW]
    return numbers


def _code(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _stems(folder: Path, split: str | None) -> list[str]:
    if split is None:
        return [path.stem for path in sorted((folder / OBJECTS).glob("*.png"))]
    lists = folder / "ImageSets" / "Segmentation"
    path = lists / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        raise CocoError(f"{path}: no such file; there are: {there}")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _classes(folder: Path) -> tuple[list[str], list[Colour] | None]:
    """The names of classes 1, 2, ..., and their colours if a file says them."""
    path = folder / "labelmap.txt"
    if path.is_file():
        names, colours = [], []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, *rest = line.rsplit(":", 3)
            try:
                red, green, blue = (int(value) for value in rest[0].split(","))
            except (IndexError, ValueError) as error:
                raise CocoError(
                    f"{path}:{number}: expected `name:red,green,blue:parts:actions`, got "
                    f"{brief(line)}"
                ) from error
            if (red, green, blue) not in (PALETTE[0], PALETTE[VOID]):
                names.append(name)
                colours.append((red, green, blue))
        return names, colours
    path = folder / "class_names.txt"
    if path.is_file():
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        return [line for line in lines if line not in ("_background_", "__ignore__")], None
    return list(CLASSES), PALETTE[1 : len(CLASSES) + 1]


def write_voc(
    annotations: Path, out: Path, *, split: str = "train", images: Path | None = None
) -> Counter[str]:
    """Write VOC's masks, ImageSets/Segmentation/SPLIT.txt and labelmap.txt; returns what was
    written and left out, counted.

    A pixel belongs to one instance: the smaller ones lie on top. Crowds become void.

    Args:
        out: The folder to write. Must not exist.
        images: Copy the images of this folder to JPEGImages.

    Raises:
        FileExistsError: `out` exists.
        CocoError: As `read_coco`; images are missing, or two would have one mask; or there are more
            than 254 classes, or instances in an image.
    """
    must_be_new(out, "data")
    counts: Counter[str] = Counter()
    file, found = instances_of(annotations, counts)
    faults = Faults()
    records = list(file.images.values())
    stems = [Path((image.file_name or str(image.id)).replace("\\", "/")).stem for image in records]
    occurs = Counter(stems)
    for image, stem in zip(records, stems, strict=True):
        if occurs[stem] > 1:
            faults.add("of images that would have one mask", f"image id {image.id}: {stem}.png")
        if len(found[image.id]) > MOST:
            faults.add(
                f"with more than {MOST} instances", f"image id {image.id}: {len(found[image.id])}"
            )
    names = list(file.categories.values())
    if len(names) > MOST:
        faults.add(f"with more than {MOST} classes", f"{len(names)}")
    for name in names:
        if "\n" in name or "\r" in name:
            faults.add("of class names of several lines", brief(name))
    files = [""] * len(records)
    if images is not None:
        where = [f"image id {image.id}" for image in records]
        files, _ = find_files(images, [image.file_name or "" for image in records], where, faults)
    faults.raise_if_any(str(annotations), "VOC masks")
    voids = _voids(file)
    counts["crowds made void"] = counts.pop("crowds left out", 0)
    classes = {category_id: n for n, category_id in enumerate(file.categories, 1)}
    with new_folder(out) as part:
        for name in (OBJECTS, KINDS, "ImageSets/Segmentation"):
            (part / name).mkdir(parents=True)
        for image, stem, source in zip(records, stems, files, strict=True):
            size = (image.height, image.width)
            drawn = _drawn(found[image.id], voids.get(image.id, []), size, classes, counts)
            for name, index_HW in zip((OBJECTS, KINDS), drawn, strict=True):
                picture = Image.fromarray(index_HW)
                picture.putpalette([value for colour in PALETTE for value in colour])  # now P
                picture.save(part / name / f"{stem}.png")
            if images is not None:
                (part / IMAGES).mkdir(exist_ok=True)
                shutil.copyfile(images / source, part / IMAGES / f"{stem}{Path(source).suffix}")
        (part / "ImageSets/Segmentation" / f"{split}.txt").write_text(
            "".join(f"{stem}\n" for stem in stems), encoding="utf-8"
        )
        lines = ["background:0,0,0::"]
        for number, name in enumerate(names, 1):
            lines.append(f"{name}:{','.join(map(str, PALETTE[number]))}::")
        (part / "labelmap.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return +counts


def _voids(file: CocoFile) -> dict[int, list[Instance]]:
    """The crowds by image."""
    found: dict[int, list[Instance]] = {}
    for record in file.annotations:
        if record.crowd:
            found.setdefault(record.image_id, []).append(Instance("", record, []))
    return found


def _drawn(
    instances: list[Instance],
    voids: list[Instance],
    size: Size,
    classes: dict[int, int],
    counts: Counter[str],
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of instances and of classes, uint8 [H, W]."""
    object_HW, kind_HW = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    for void in voids:
        mask_HW = void.mask_HW(size)
        object_HW[mask_HW] = kind_HW[mask_HW] = VOID
    order = sorted(enumerate(instances, 1), key=lambda pair: -pair[1].record.pixels)
    for number, instance in order:
        mask_HW = instance.mask_HW(size)
        object_HW[mask_HW], kind_HW[mask_HW] = number, classes[instance.record.category_id]
    left = np.bincount(object_HW.ravel(), minlength=VOID + 1)
    for number, instance in enumerate(instances, 1):
        if left[number] == 0:
            counts["instances hidden by others, which are lost"] += 1
            counts["instances"] -= 1
        elif left[number] < instance.record.pixels:
            counts["instances partly covered by smaller ones"] += 1
    return object_HW, kind_HW
