"""Breeds of the built-in sample, and their appearance."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["BREEDS", "Breed", "Colour", "Ears", "Marking"]

Colour: TypeAlias = tuple[int, int, int]
Ears: TypeAlias = Literal["pointed", "bat", "button", "rose", "floppy"]
Marking: TypeAlias = Literal[
    "beard",
    "bib",
    "blaze",
    "brindle",
    "eye_patches",
    "mask",
    "points",
    "ruff",
    "saddle",
    "spots",
    "tabby",
    "tan_points",
    "ticked",
    "wrinkles",
]


@dataclass(frozen=True, slots=True)
class Breed:
    """One breed: its ids in the published lists, and its appearance.

    Lengths are in head units: 1 is half the height of the head.

    Attributes:
        name: Name in the published lists; capitalised for cats, lower case for dogs.
        class_id: 1 to 37, over both species.
        breed_id: 1 to 12 for cats, 1 to 25 for dogs.
        coats: Possible (main, second) colours; each photo shows one pair.
        markings: Patterns in the second colour or white.
        ears: Shape of the ears.
        ear_size: Length of the ears.
        muzzle: Length of the muzzle; 0: flat face.
        width: Half the width of the head.
        jaw: Narrowing of the head towards the chin; 0: round.
        eye: Colour of the iris.
        fur: Relative hair length; 0: hairless or sleek, 1: longest.
        body: Half the width of the shoulders.
    """

    name: str
    class_id: int
    breed_id: int
    coats: tuple[tuple[Colour, Colour], ...]
    markings: frozenset[Marking]
    ears: Ears
    ear_size: float
    muzzle: float
    width: float
    jaw: float
    eye: Colour
    fur: float
    body: float

    @property
    def is_cat(self) -> bool:
        """Whether the breed is a cat; otherwise it is a dog."""
        return self.name[0].isupper()

    @property
    def species(self) -> int:
        """Published species id: 1 for cats, 2 for dogs."""
        return 1 if self.is_cat else 2


def _breed(
    name: str,
    ids: tuple[int, int],
    coats: tuple[tuple[Colour, Colour], ...],
    markings: tuple[Marking, ...],
    ears: tuple[Ears, float],
    face: tuple[float, float, float],
    eye: Colour,
    fur: float,
    body: float,
) -> Breed:
    """Create a breed; ids are (class, breed), face is (muzzle, width, jaw)."""
    return Breed(name, *ids, coats, frozenset(markings), *ears, *face, eye, fur, body)


_WHITE = (240, 236, 228)
_BLACK = (36, 33, 35)
_TAN = (178, 112, 58)
_HAZEL = (96, 58, 30)
_DARK = (52, 34, 24)
_ICE = (112, 164, 220)
_COPPER = (216, 142, 40)
_SEAL = (84, 62, 52)
_CREAM = (232, 219, 198)
_BULL_COATS = (
    ((150, 96, 58), (86, 54, 34)),
    ((112, 112, 122), (74, 74, 84)),
    ((60, 50, 46), (34, 28, 26)),
    ((196, 150, 104), (140, 98, 62)),
)

# fmt: off
BREEDS: tuple[Breed, ...] = (
    _breed("Abyssinian", (1, 1), (((180, 116, 66), (112, 68, 38)),), ("ticked",),
           ("pointed", 0.85), (0.2, 0.92, 0.30), (176, 164, 70), 0.05, 0.9),
    _breed("american_bulldog", (2, 1), ((_WHITE, (178, 124, 78)), (_WHITE, (110, 82, 64))),
           ("eye_patches", "wrinkles"),
           ("rose", 0.5), (0.45, 1.12, 0.02), _HAZEL, 0.05, 1.55),
    _breed("american_pit_bull_terrier", (3, 2), _BULL_COATS, ("bib", "blaze"),
           ("rose", 0.55), (0.55, 1.0, 0.14), _HAZEL, 0.03, 1.35),
    _breed("basset_hound", (4, 3), ((_TAN, (70, 46, 34)), ((196, 134, 80), (150, 92, 50))),
           ("blaze", "bib", "saddle", "wrinkles"),
           ("floppy", 1.75), (0.8, 0.82, 0.12), _DARK, 0.05, 1.35),
    _breed("beagle", (5, 4), ((_TAN, (46, 38, 36)), ((190, 130, 76), (90, 62, 46))),
           ("blaze", "bib", "saddle"),
           ("floppy", 1.1), (0.6, 0.88, 0.2), _HAZEL, 0.05, 1.05),
    _breed("Bengal", (6, 2), (((204, 152, 92), (84, 50, 28)), ((190, 172, 144), (78, 60, 48))),
           ("spots", "tabby"),
           ("pointed", 0.62), (0.25, 0.98, 0.24), (160, 184, 84), 0.05, 1.0),
    _breed("Birman", (7, 3), ((_CREAM, _SEAL), (_CREAM, (120, 112, 116))), ("points", "ruff"),
           ("pointed", 0.64), (0.2, 1.06, 0.16), _ICE, 0.65, 1.1),
    _breed("Bombay", (8, 4), ((_BLACK, _BLACK),), (),
           ("pointed", 0.6), (0.2, 1.02, 0.18), _COPPER, 0.05, 0.95),
    _breed("boxer", (9, 5), (((186, 122, 68), (46, 36, 34)), ((136, 86, 50), (40, 32, 30))),
           ("mask", "blaze", "bib", "wrinkles"),
           ("button", 0.7), (0.45, 0.96, 0.02), _DARK, 0.03, 1.3),
    _breed("British_Shorthair", (10, 5), (((124, 128, 140), (98, 102, 114)),), (),
           ("pointed", 0.5), (0.15, 1.12, 0.08), (206, 154, 60), 0.25, 1.2),
    _breed("chihuahua", (11, 6),
           (((206, 160, 108), _WHITE), (_BLACK, _TAN), ((226, 206, 178), _WHITE)), ("bib",),
           ("bat", 1.0), (0.4, 0.95, 0.34), _DARK, 0.12, 0.75),
    _breed("Egyptian_Mau", (12, 6),
           (((184, 174, 156), (72, 64, 58)), ((196, 160, 112), (80, 56, 40))),
           ("spots", "tabby"),
           ("pointed", 0.66), (0.22, 0.94, 0.26), (152, 194, 96), 0.05, 0.9),
    _breed("english_cocker_spaniel", (13, 7),
           (((172, 108, 56), (136, 82, 40)), (_BLACK, _BLACK), ((120, 70, 44), (86, 50, 32))), (),
           ("floppy", 1.45), (0.6, 0.86, 0.12), _HAZEL, 0.55, 1.05),
    _breed("english_setter", (14, 8), ((_WHITE, (70, 66, 68)), (_WHITE, (176, 116, 66))),
           ("ticked", "eye_patches"),
           ("floppy", 1.3), (0.8, 0.8, 0.14), _HAZEL, 0.5, 1.1),
    _breed("german_shorthaired", (15, 9), (((98, 62, 44), (212, 200, 186)),),
           ("ticked", "bib", "saddle"),
           ("floppy", 1.15), (0.85, 0.82, 0.14), _HAZEL, 0.03, 1.15),
    _breed("great_pyrenees", (16, 10), ((_WHITE, (214, 196, 168)),), ("ruff",),
           ("floppy", 0.95), (0.65, 1.04, 0.12), _DARK, 0.75, 1.5),
    _breed("havanese", (17, 11), (((218, 192, 152), _WHITE), ((78, 66, 60), _WHITE),
                                  ((236, 226, 210), _WHITE)), ("beard",),
           ("floppy", 1.2), (0.3, 1.0, 0.02), _DARK, 0.9, 1.0),
    _breed("japanese_chin", (18, 12), ((_WHITE, _BLACK), (_WHITE, (166, 92, 48))),
           ("eye_patches", "ruff"),
           ("floppy", 1.15), (0.08, 1.02, 0.0), _DARK, 0.65, 0.95),
    _breed("keeshond", (19, 13), (((168, 160, 152), (64, 60, 62)),), ("mask", "ruff", "saddle"),
           ("pointed", 0.6), (0.5, 0.98, 0.24), _DARK, 0.95, 1.35),
    _breed("leonberger", (20, 14), (((182, 124, 70), (48, 38, 34)),), ("mask", "ruff"),
           ("floppy", 1.0), (0.7, 1.0, 0.06), _DARK, 0.75, 1.5),
    _breed("Maine_Coon", (21, 7),
           (((150, 116, 80), (70, 50, 36)), ((152, 148, 144), (74, 70, 70))), ("tabby", "ruff"),
           ("pointed", 0.82), (0.4, 1.0, 0.12), (188, 178, 80), 0.85, 1.25),
    _breed("miniature_pinscher", (22, 15), ((_BLACK, _TAN), ((146, 82, 44), (186, 122, 70))),
           ("tan_points",),
           ("bat", 0.8), (0.6, 0.86, 0.32), _DARK, 0.02, 0.85),
    _breed("newfoundland", (23, 16), ((_BLACK, _BLACK), ((70, 48, 38), (52, 36, 28))), ("ruff",),
           ("floppy", 0.95), (0.65, 1.08, 0.02), _DARK, 0.75, 1.6),
    _breed("Persian", (24, 8), (((230, 214, 186), _WHITE), ((172, 166, 164), (140, 134, 134)),
                                ((214, 158, 104), (238, 214, 180))), ("ruff",),
           ("pointed", 0.5), (0.0, 1.28, 0.0), _COPPER, 1.0, 1.2),
    _breed("pomeranian", (25, 17), (((220, 152, 84), (240, 200, 150)), (_CREAM, _WHITE)),
           ("ruff",),
           ("pointed", 0.56), (0.4, 1.0, 0.26), _DARK, 1.0, 1.05),
    _breed("pug", (26, 18), (((212, 180, 136), (44, 36, 34)), ((196, 166, 130), (50, 42, 40))),
           ("mask", "wrinkles"),
           ("button", 0.6), (0.12, 1.14, 0.0), _DARK, 0.03, 1.15),
    _breed("Ragdoll", (27, 9), ((_CREAM, (94, 72, 62)), (_CREAM, (124, 116, 120))),
           ("points", "blaze", "ruff"),
           ("pointed", 0.62), (0.22, 1.08, 0.16), _ICE, 0.7, 1.15),
    _breed("Russian_Blue", (28, 10), (((120, 130, 146), (96, 106, 122)),), (),
           ("pointed", 0.66), (0.2, 1.0, 0.2), (142, 182, 90), 0.1, 0.95),
    _breed("saint_bernard", (29, 19), (((170, 96, 52), (60, 42, 36)),),
           ("mask", "blaze", "bib", "wrinkles"),
           ("floppy", 0.95), (0.6, 1.08, 0.0), _DARK, 0.5, 1.6),
    _breed("samoyed", (30, 20), (((246, 244, 240), (230, 222, 210)),), ("ruff",),
           ("pointed", 0.66), (0.55, 1.0, 0.22), _DARK, 0.95, 1.35),
    _breed("scottish_terrier", (31, 21), ((_BLACK, _BLACK), ((74, 66, 62), (50, 44, 42)),
                                          ((206, 180, 136), (186, 156, 112))), ("beard",),
           ("pointed", 0.75), (0.75, 0.84, 0.0), _DARK, 0.6, 1.1),
    _breed("shiba_inu", (32, 22), (((206, 136, 74), (244, 230, 208)),), ("bib", "tan_points"),
           ("pointed", 0.5), (0.5, 1.02, 0.22), _DARK, 0.3, 1.1),
    _breed("Siamese", (33, 11), (((230, 212, 184), (62, 46, 40)), (_CREAM, (116, 108, 114))),
           ("points",),
           ("pointed", 0.92), (0.3, 0.86, 0.36), (96, 158, 228), 0.03, 0.82),
    _breed("Sphynx", (34, 12), (((226, 178, 158), (198, 144, 128)),
                                ((168, 140, 132), (136, 108, 104))), ("wrinkles",),
           ("pointed", 1.1), (0.22, 0.86, 0.34), (168, 194, 160), 0.0, 0.85),
    _breed("staffordshire_bull_terrier", (35, 23), _BULL_COATS, ("bib", "brindle"),
           ("rose", 0.5), (0.45, 1.1, 0.05), _HAZEL, 0.03, 1.4),
    _breed("wheaten_terrier", (36, 24), (((216, 182, 130), (196, 158, 106)),), ("beard",),
           ("button", 0.75), (0.65, 0.94, 0.0), _DARK, 0.8, 1.15),
    _breed("yorkshire_terrier", (37, 25), (((190, 128, 72), (84, 82, 92)),), ("beard", "saddle"),
           ("pointed", 0.72), (0.35, 0.9, 0.06), _DARK, 0.85, 0.8),
)
# fmt: on
