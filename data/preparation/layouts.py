"""Define the folders and pairing rules of the public datasets, as they are distributed.

The table is :data:`SETS`. Its folders are relative to ``--root``; case is ignored. ``*`` matches any one folder (a
sequence), whose name becomes a prefix of the image's name (``GOPR0372_07_00_000047``). The first layout of a part that
exists is used, or all that exist if the part is ``gathered``.

A pairing rule maps the name of a degraded image, without its extension, to that of its clean image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from restormixer_arch.data.degradations.labels import CDD11


def same(stem: str) -> str:
    """Return the same name, for pairs that differ in their extensions at most."""
    return stem


def before_last_underscore(stem: str) -> str:
    """Return the name up to its last ``_``: in Rain1400, ``901_1`` to ``901_14`` belong to ``901``."""
    return stem.rpartition("_")[0]


def no_in_front(stem: str) -> str:
    """Return the name with ``no`` in front: in Rain100H and Rain100L, ``rain-001`` belongs to ``norain-001``."""
    return f"no{stem}"


@dataclass(frozen=True)
class Layout:
    """The folders that contain the images of a part.

    Args:
        gt: folder of the clean images.
        lq: folder of the degraded ones, or label -> folder; None if they are created from the clean ones.
        rule: pairing rule.
        gt_is_larger: whether the clean folder also contains partners of other parts' images.
    """

    gt: str
    lq: str | dict[str, str] | None = None
    rule: Callable[[str], str] = same
    gt_is_larger: bool = False

    @property
    def labelled(self) -> dict[str, str]:
        """Label -> folder of degraded images; the label is empty if there is only one kind."""
        if self.lq is None:
            return {}
        return self.lq if isinstance(self.lq, dict) else {"": self.lq}


@dataclass(frozen=True)
class Part:
    """A part of a set, which becomes ``<part>_gt`` and ``<part>_lq``; labels become subfolders of the latter.

    Args:
        name: name of the part, such as train or test.
        layouts: possible layouts of the part.
        crop: side in pixels of the sub-images that are cut for training, 0 for none.
        step: distance in pixels between the corners of adjacent sub-images.
        gathered: whether to use all existing layouts instead of the first.
    """

    name: str
    layouts: tuple[Layout, ...]
    crop: int = 0
    step: int = 0
    gathered: bool = False


@dataclass(frozen=True)
class PublicSet:
    """A dataset; ``scales`` are the factors of the bicubic downsampling that creates degraded images."""

    name: str
    task: str
    parts: tuple[Part, ...]
    scales: tuple[int, ...] = ()


def _restormer(part: str, name: str) -> tuple[Layout, ...]:
    """Return the layouts in which MPRNet's and Restormer's authors distribute deraining and deblurring sets."""
    folders = (f"{part}/{name}", f"{name}/{part}", f"Datasets/{part}/{name}", f"{name}/{part}/{name}")
    return tuple(Layout(f"{folder}/target", f"{folder}/input") for folder in folders)


def _pairs(lq: str, gt: str, *folders: str, rule: Callable[[str], str] = same) -> tuple[Layout, ...]:
    return tuple(Layout(f"{folder}/{gt}", f"{folder}/{lq}", rule) for folder in folders)


def _rain_test(name: str, *more: Layout) -> PublicSet:
    within = (*_pairs("input", "target", name, f"Rain13K/test/{name}"), *_pairs("lq", "gt", name))
    return PublicSet(name, "derain", (Part("test", (*_restormer("test", name), *within, *more)),))


def _rain100(name: str) -> PublicSet:
    original = Layout(f"{name}/norain", f"{name}/rain", no_in_front)
    older = Layout(name, f"{name}/rainy", no_in_front, gt_is_larger=True)
    return _rain_test(name, original, older)


_SNOW100K_TEST = "media/jdway/GameSSD/overlapping/test"  # the path within the authors' archive


def _snow100k_test(size: str) -> Part:
    tops = ("Snow100K/test", "Snow100K-testset", f"Snow100K-testset/{_SNOW100K_TEST}", f"Snow100K/{_SNOW100K_TEST}")
    tops += (_SNOW100K_TEST, "Snow100K-testset/jdway/GameSSD/overlapping/test", "Snow100K-testset/test")
    tops += ("Snow100K/Snow100K-testset", "Snow100K")
    return Part(f"test_{size}", _pairs("synthetic", "gt", *(f"{top}/Snow100K-{size}" for top in tops)))


def _snow(name: str, *degraded: str) -> PublicSet:
    train = [_pairs(lq, "Gt", f"{name}/train", f"{name}/train2500") for lq in degraded]
    test = [_pairs(lq, "Gt", f"{name}/test", f"{name}/test2000") for lq in degraded]
    return PublicSet(name, "desnow", (Part("train", sum(train, ())), Part("test", sum(test, ()))))


def _gopro(part: str, crop: int) -> Part:
    tops = (f"GOPRO_Large/{part}", f"GoPro/{part}", f"GoPro/GOPRO_Large/{part}")
    return Part(part, (*_pairs("blur", "sharp", *(f"{top}/*" for top in tops)), *_restormer(part, "GoPro")), crop, 256)


def _hide() -> Part:
    tops = ("HIDE_dataset", "HIDE/HIDE_dataset", "HIDE")
    original = [Layout(f"{top}/GT", f"{top}/test/{kind}", gt_is_larger=True) for top in tops for kind in _HIDE_KINDS]
    within = _pairs("input", "target", "HIDE", "HIDE/test", "test/HIDE", "Datasets/test/HIDE")
    return Part("test", (*original, *within), gathered=True)


_HIDE_KINDS = ("test-close-ups", "test-long-shot")


def _benchmark(name: str, *other_names: str) -> PublicSet:
    names = (name, *other_names)
    within = [f"{top}{n}/{folder}" for n in names for top in ("", "benchmark/") for folder in ("HR", "GTmod12")]
    bare = [f"{top}{n}" for n in names for top in ("", "benchmark/")]
    return PublicSet(name, "sr", (Part("test", tuple(Layout(gt) for gt in (*within, *bare))),), (2, 3, 4))


def _clean_test(name: str, task: str, *folders: str) -> PublicSet:
    """Return a set of clean images, whose degraded ones are created during testing."""
    return PublicSet(name, task, (Part("test", tuple(Layout(f"{name}/{folder}".rstrip("/")) for folder in folders)),))


def _cdd11(part: str, crop: int) -> Part:
    tops = (f"CDD-11_{part}", f"CDD-11/CDD-11_{part}", f"CDD-11_{part}/CDD-11_{part}", f"CDD-11/{part}")
    layouts = [Layout(f"{top}/clear", {label: f"{top}/{label}" for label in CDD11}) for top in tops]
    return Part(part, tuple(layouts), crop, 256)


_DF2K = (
    "DIV2K/DIV2K_train_HR",
    "DIV2K_train_HR",
    "Flickr2K/Flickr2K_HR",
    "Flickr2K_HR",
    "DF2K/DF2K_train_HR",
    "DF2K/HR",
)
_DIV2K_VALID = ("DIV2K/DIV2K_valid_HR", "DIV2K_valid_HR")

SETS: dict[str, PublicSet] = {
    public.name: public
    for public in (
        PublicSet(
            "Rain13K",
            "derain",
            (Part("train", (*_restormer("train", "Rain13K"), *_pairs("input", "target", "Rain13K"))),),
        ),
        _rain100("Rain100H"),
        _rain100("Rain100L"),
        _rain_test(
            "Test2800",
            *_pairs(
                *("rainy_image", "ground_truth", "rainy_image_dataset/testing", "Rain1400/testing", "Rain1400/test"),
                rule=before_last_underscore,
            ),
        ),
        _rain_test("Test1200"),
        _rain_test("Test100"),
        PublicSet(
            "RainCityscapes",
            "derain",
            (
                Part(
                    "test",
                    (
                        *_pairs("rain100mm", "norain", "rain_cityscapes/test/small", "RainCityscapes/test/small"),
                        *_pairs("lq", "gt", "RainCityscapes", "RainCityscapes40"),
                    ),
                ),
            ),
        ),
        PublicSet(
            "RainHeavy",
            "derain",
            (
                Part(
                    "test",
                    (
                        *_pairs("rain", "norain", "rain_data_test_heavy", "RainHeavy", rule=no_in_front),
                        *_pairs("lq", "gt", "RainHeavy", "rain_heavy20"),
                    ),
                ),
            ),
        ),
        PublicSet(
            "Snow100K",
            "desnow",
            (
                Part(
                    "train",
                    (
                        *_pairs("synthetic", "gt", "Snow100K-training/all", "Snow100K/Snow100K-training/all"),
                        *_pairs("synthetic", "gt", "Snow100K/train", "Snow100K/all", "Snow100K-training"),
                        *_pairs("Snow", "Gt", "Snow100K/train2500"),
                    ),
                ),
                *(_snow100k_test(size) for size in "SML"),
                Part("test", _pairs("Snow", "Gt", "Snow100K/test2000")),
            ),
        ),
        _snow("SRRS", "Syn", "Snow"),
        _snow("CSD", "Snow"),
        PublicSet("GoPro", "deblur", (_gopro("train", 512), _gopro("test", 0))),
        PublicSet("HIDE", "deblur", (_hide(),)),
        PublicSet(
            "DF2K", "sr", (Part("train", tuple(Layout(gt) for gt in _DF2K), 480, 240, gathered=True),), (2, 3, 4)
        ),
        PublicSet("DIV2K", "sr", (Part("valid", tuple(Layout(gt) for gt in _DIV2K_VALID)),), (2, 3, 4)),
        _benchmark("Set5"),
        _benchmark("Set14"),
        _benchmark("BSD100", "B100"),
        _benchmark("Urban100"),
        _benchmark("Manga109"),
        _clean_test("CBSD68", "denoise", "original_png", "HR", "HQ", ""),
        _clean_test("Kodak24", "denoise", "HR", "HQ", ""),
        _clean_test("McMaster", "denoise", "HR", "HQ", ""),
        PublicSet("CDD-11", "mixed", (_cdd11("train", 512), _cdd11("test", 0))),
    )
}
TASKS = tuple(dict.fromkeys(public.task for public in SETS.values()))
