"""Everything that is wrong with a data set, at once: what training or evaluation would refuse, and
what is worth knowing."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from alignmask._printing import counted
from alignmask.data.coco_json import inspect_coco
from alignmask.data.faults import CROWD, NO_POLYGON, SHOWN_FAULTS, ZERO_AREA, Faults, brief, some
from alignmask.data.file_names import find_files
from alignmask.data.images import Exif, ImageError, SampleRange, read_header, read_image
from alignmask.data.records import CocoFile

SAME_MASK = "with the mask and class of another one"
NO_INSTANCES = "without instances"
CROWDED = "with more than 100 instances"
SAME_PIXELS = "with the pixels of another one"
TURNED = "turned upright, as EXIF's orientation says"
DARK = "of 16 bits that are nearly black"

NOTES = {
    SAME_MASK: "one of two such queries can only be a false positive",
    NO_INSTANCES: "they are trained on, as images of nothing",
    CROWDED: (
        "COCO's AP looks at the 100 best predictions of an image (--max-detections), and a model "
        "finds at most as many as it has queries"
    ),
    SAME_PIXELS: "the same image twice",
    TURNED: "--data.exif ignore takes them as they are stored",
    DARK: "set --data.sample-range",
}
_DARK_LEVEL = 64  # of 256: no sample above 16383, as in `FewBitsWarning`


@dataclass
class Report:
    """What `check` found."""

    annotations: Path
    summary: str
    """One line: images, instances, classes."""
    faults: Faults
    """Training and evaluation refuse these."""
    notes: Faults
    """They accept these."""
    pixels: dict[str, str] = field(default_factory=dict)
    """Hash of the decoded image by file name, to find the same image in another data set."""

    def text(self, shown: int = SHOWN_FAULTS) -> str:
        """Some lines: the summary, faults and notes, the first `shown` places of each kind."""
        lines = [f"{self.annotations}: {self.summary}"]
        for title, found in (("faults", self.faults), ("worth knowing", self.notes)):
            if found:
                lines += [f"{title}: {found.summary()}", *found.lines(shown)]
        if not self.faults:
            lines.append("nothing that training or evaluation would refuse")
        return "\n".join(lines)


def check(
    annotations: Path,
    images: Path | None = None,
    *,
    exif: Exif = "auto",
    sample_range: SampleRange | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Check an annotation file, and decode every one of its images.

    Args:
        images: The images' folder; None checks the annotations alone.
        exif, sample_range: As in `read_image`.
        progress: Called with (images done, images in total).

    Raises:
        CocoError: The file cannot be read as a COCO file at all.
    """
    file, faults = inspect_coco(annotations, images)
    notes = Faults(NOTES)
    _look_at_annotations(file, faults, notes)
    report = Report(annotations, _summary(file), faults, notes)
    if images is not None:
        _look_at_images(file, images, exif, sample_range, report, progress)
    return report


def shared_images(reports: list[Report]) -> list[str]:
    """A sentence for each two data sets that have images in common: what is trained on cannot
    measure what was learnt."""
    sentences = []
    for number, one in enumerate(reports):
        for other in reports[number + 1 :]:
            by_hash = {pixels: name for name, pixels in one.pixels.items()}
            both = [
                f"{by_hash[pixels]} and {name}"
                for name, pixels in other.pixels.items()
                if pixels in by_hash
            ]
            if both:
                sentences.append(
                    f"{counted(len(both), 'image')} in both {one.annotations} and "
                    f"{other.annotations}: {some(both)}"
                )
    return sentences


def _look_at_annotations(file: CocoFile, faults: Faults, notes: Faults) -> None:
    for where in file.without_polygon:
        notes.add(NO_POLYGON, where)
    instances: Counter[int] = Counter(dict.fromkeys(file.images, 0))
    classes: Counter[int] = Counter()
    seen: dict[tuple[int, int, bytes], int] = {}
    for annotation in file.annotations:
        where = file.where(annotation)
        if not annotation.is_instance:
            notes.add(CROWD if annotation.crowd else ZERO_AREA, where)
            continue
        instances[annotation.image_id] += 1
        classes[annotation.category_id] += 1
        key = (annotation.image_id, annotation.category_id, annotation.counts)
        first = seen.setdefault(key, annotation.id)
        if first != annotation.id:
            notes.add(SAME_MASK, f"{where}: as {file.places.get(first, f'annotation id {first}')}")
    for image_id, count in instances.items():
        if count == 0 or count > 100:
            kind = CROWDED if count else NO_INSTANCES
            notes.add(kind, f"image id {image_id}" + (f": {count}" if count else ""))
    for category_id, name in file.categories.items():
        if not classes[category_id]:
            notes.add("classes that no instance has", f"category id {category_id} ({name})")
    same = defaultdict(list)
    for name in file.categories.values():
        same[name.strip().casefold()].append(name)
    for names in same.values():
        if len(set(names)) < len(names):
            notes.add("class names that occur twice", ", ".join(map(brief, names)))
        elif len(names) > 1:
            notes.add(
                "class names that differ in case or spaces alone", ", ".join(map(brief, names))
            )
    if file.images and not any(instances.values()) and not faults:
        faults.add(
            "file without any instance", f"none of {counted(file.listed, 'annotation')} is one"
        )


def _look_at_images(
    file: CocoFile,
    images: Path,
    exif: Exif,
    sample_range: SampleRange | None,
    report: Report,
    progress: Callable[[int, int], None],
) -> None:
    faults, notes = report.faults, report.notes
    named = [image for image in file.images.values() if image.file_name]
    for image in file.images.values():
        if not image.file_name:
            faults.add("without a file_name", f"image id {image.id}")
    missing = Faults()
    found, renamed = find_files(
        images, [str(i.file_name) for i in named], [f"image id {i.id}" for i in named], missing
    )
    if renamed:
        notes.add("spellings of file names", renamed)
    faults.update(missing)
    gone = {place.partition(": ")[0] for places in missing.places.values() for place in places}

    def look(number: int) -> tuple[str, bool, bool] | ImageError | str:
        image, path = named[number], images / found[number]
        size = (image.height, image.width)
        try:
            header = read_header(path, size, exif=exif)
            image_CHW = read_image(path, size, exif=exif, sample_range=sample_range)
        except ImageError as error:
            return error
        if tuple(image_CHW.shape[1:]) != size:
            return (
                f"{path}: the file has {image_CHW.shape[1]} x {image_CHW.shape[2]} pixels (height "
                f"x width), the JSON says {size[0]} x {size[1]}"
            )
        pixels = hashlib.blake2b(image_CHW.numpy().tobytes(), digest_size=16).hexdigest() + str(
            size
        )
        dark = header.deep and sample_range is None and 0 < int(image_CHW.max()) < _DARK_LEVEL
        return pixels, header.turned, dark

    twins: dict[str, int] = {}
    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, seen in enumerate(pool.map(look, range(len(named)))):
            progress(number + 1, len(named))
            where = f"image id {named[number].id}"
            if isinstance(seen, ImageError):
                if where not in gone:
                    faults.add("that cannot be read", f"{where}: {seen}")
            elif isinstance(seen, str):
                faults.add("whose file has another size", f"{where}: {seen}")
            else:
                pixels, turned, dark = seen
                report.pixels[found[number]] = pixels
                if turned:
                    notes.add(TURNED, f"{where}: {found[number]}")
                if dark:
                    notes.add(DARK, f"{where}: {found[number]}")
                first = twins.setdefault(pixels, number)
                if first != number:
                    of = f"{found[first]}, image id {named[first].id}"
                    notes.add(SAME_PIXELS, f"{where}: {found[number]} is {of}")


def _summary(file: CocoFile) -> str:
    instances = sum(a.is_instance for a in file.annotations)
    return (
        f"{counted(len(file.images), 'image')}, {counted(instances, 'instance')} of "
        f"{counted(len(file.categories), 'class', 'classes')}"
    )
