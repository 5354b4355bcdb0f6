"""The characters that are the classes of the glyphs: their list, their undistorted images, and hierarchies of them."""

from nc_jax.extras import require

require("matplotlib", "data", __name__)

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import scipy.cluster.hierarchy
from jaxtyping import Bool, Float, UInt8
from matplotlib.ft2font import FT2Font, LoadFlags

from nc_jax.hierarchy import cut_linkage

# Fonts by file name. Matplotlib also ships a last-resort font, which must not be used: it claims every character.
FAMILIES = {
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "DejaVu Sans Mono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSansMono-BoldOblique",
    ),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
FACES = tuple(face for family in FAMILIES.values() for face in family)
REGULAR = tuple(family[0] for family in FAMILIES.values())

# The result of `select_characters` with Matplotlib 3.11.2, stored so that classes never change. The first 338 are in
# all 16 faces, the others in four to fifteen. The class number is the place in this string: append, never insert.
CHARACTERS = (
    "0123456789ABCDEHJKLMNPQRSTUVWXYZabdefjkmnopqrtyΓΞΣΦΨΩαβγδεζηικλμνξςτυφχωДЖЙЛЦЧШЩЪЫЬЭЮЯифщы!\"#$%&'()*"
    "+,-./:;<=>?@[\\_{~¡¢£¤¦§©«¬®°±¶º»¼½¾¿ÀÆÇÈÏÑÒ×ÚÝÞßàåæèìñó÷øùýþāĄąĆćċďēĘęĜĝĢĤĥħįĲĴĶķĹĻŀŅņŉŒŔŕŖŗŚśŞţŤťůŲ"
    "ųŴŵŹźƈƒƕơƪƯƺƾǁǂǼǽǾǿɐɔɕɖɚɝɞɣɤɧɭɮɯɰɱɲɳɹɻɽɿʁʂʆʇʉʍʎʐʑʒʕʚʛʞʠʡʣʤʦʧʨΈΉΎΐάέήίΰϋώϐϑϒϖϘϙϛϝϞϟϠϡϰϱЂЃЉЊЋЌђџѣҐ‛“‟†"
    "…‰‱‹›€№™∂␣┐├┤┴┼╒╓╔╖╗╘╙╚╛╜╝╞╟╡╢╤╥╦╧╨╩╬ﬁƁƇƊƋƍƎƑƝƢƣƤƦƧƮƱƳƴƸƿǄǅǆǇǈǊǌǕǝǤǥǩǬǮǯǰǱǶǷǻȑșȜȡȢȣȤȫȴȵȸȺȻȾɀɁɂɆɇɉɊʩʪ"
    "ʫʬʭʮʯͰͳͼϏϓϔϗϢϣϦϧϨϪϬϺϻѝѤѦѨѪѬѮѰѱѴѶѷѸѹѺѼѾҀ҂ҊҌғҔҖҘҚҞҠңҤҥҦҨҭҲҴҵҶҸҼҾӁӂӃӅӆӇӉӊӌӍӚӛӞӟӴӶӸӹӺӻӽӿԁԂԃԄԅԆԈԉԎԏԒԔԖԗԘԙ"
    "ԠԣԤԲԳԴԵԶԷԸԹԺԻԽԾԿՀՁՃՅՆՇՉՊՌՎՐՔՖ՛՜՝՞՟էըթխկձմնչջֆև׆אבגדהזטלםמנעףץצקרשתװױײ״؆؉؊؛؟ءؤئبةتثجخدذرزسشصضطعغفقكلم"
    "نوىي١٢٤٥٦٧٨٩٪٫٭ٹٻڑڤکگھ۴۶฿ກຂຄງຈຊຍດຖທນບປຜຝພມຣລວສຫຮຯະາຳຽເແໂໃໄ໑໒໓໔໖໗໘໙ໜႡႢႣႥႦႧႨႩႪႫႬႮႯႰႱႳႴႵႸႼႽႾႿჁჂჃჄჅაგდეზ"
    "თკლნპჟრსტუფქშცჭჯჰჱჴჵჶჸჹჺ჻ᐂᐃᐄᐅᐆᐊᐋᐌᐍᐏᐑᐒᐓᐔᐕᐗᐘᐙᐚᐟᐠᐡᐢᐣᐥᐦᐫᐬᐮᐳᐴᐸᐼᐾᑀᑁᑂᑃᑆᑈᑍᑏᑐᑑᑗᑘᑙᑚᑛᑜᑝᑞᑟᑠᑡᑢᑣᑤᑥᑩᑫᑬᑮᑯᑰᑱᑳᑴᑵᑶᑷᑸᑹᑺᑻ"
    "ᑼᑽᑾᑿᒀᒁᒉᒋᒌᒍᒎᒐᒑᒒᒓᒔᒕᒘᒙᒛᒜᒝᒠᒤᒧᒨᒩᒬᒭᒮᒯᒰᒱᒲᒳᒵᒶᒷᒸᒹᒺᒼᓀᓁᓂᓃᓄᓅᓇᓈᓉᓊᓋᓍᓒᓓᓔᓕᓖᓗᓘᓚᓛᓜᓝᓞᓟᓠᓡᓢᓣᓤᓥᓦᓧᓨᓩᓪᓬᓭᓮᓯᓰᓱᓲᓳᓴᓵᓶᓷᓸᓹᓺᓻᓼᓽᔀᔁᔂᔃ"
    "ᔄᔐᔑᔒᔓᔔᔕᔖᔗᔘᔙᔚᔛᔜᔝᔞᔟᔠᔡᔢᔣᔤᔥᔦᔧᔨᔩᔪᔫᔬᔭᔮᔯᔰᔱᔲᔳᔴᔵᔶᔷᔸᔹᔺᔻᔼᔽᕂᕃᕄᕅᕆᕇᕉᕊᕋᕌᕍᕎᕏᕒᕓᕕᕖᕗᕘᕙᕚᕠᕡᕦᕧᕴᕵᕶᕷᕸᕹᕻᕾᕿᖀᖁᖂᖃᖄᖅᖎᖏᖐᖑᖒᖓᖔᖕᖖᖠᖢᖣᖤ"
)
NUM_CLASSES = 100  # as in CIFAR-100
FEWEST_FACES = 4  # a character must be in at least so many faces, which is one family
LOOK_ALIKE = 0.85  # correlation above which characters look alike: the highest, in steps of 0.05, that joins c and C
SIZE = 28  # as in MNIST
INK_SHARE = 20 / 28  # the longer side of the ink over the side of the image: LeCun et al. (1998), MNIST
OVERSAMPLING = 2  # template pixels per image pixel, on each axis
NOMINAL = 64.0  # pixels per em at which ink is measured; the value does not matter


def class_means(num_classes: int = NUM_CLASSES, size: int = SIZE) -> Float[np.ndarray, "classes size size"]:
    """The undistorted characters without noise, averaged over their faces.

    Args:
        num_classes: number of classes K, 2 to 1000: the first K of `CHARACTERS`.
        size: height and width in pixels, at least 8.

    Returns:
        Images in [0, 1], shape (K, size, size).

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> class_means(2).shape
        (2, 28, 28)
    """
    check_sizes(num_classes, size)
    fonts = open_fonts(FACES)
    return np.stack([shrunk(draw_templates(character, fonts, size)).mean(0) for character in CHARACTERS[:num_classes]])


def script_tree(num_classes: int = NUM_CLASSES) -> dict[str, dict[str, list[str]]]:
    """A hierarchy that follows from the Unicode names: script, then case, then character.

    Args:
        num_classes: number of classes K, 2 to 1000: the first K of `CHARACTERS`.

    Returns:
        {script: {case: characters}}, with the scripts "Latin", "Greek", "Cyrillic", "digit" and "other", the cases
        "upper", "lower" and "uncased", and class names as leaves.

    Raises:
        ValueError: if `num_classes` is out of its range.

    Example:
        >>> script_tree(12)
        {'digit': {'uncased': ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']}, 'Latin': {'upper': ['A', 'B']}}
    """
    check_sizes(num_classes, SIZE)
    tree: dict[str, dict[str, list[str]]] = {}
    for character in CHARACTERS[:num_classes]:
        tree.setdefault(_script(character), {}).setdefault(_case(character), []).append(character)
    return tree


def shape_levels(
    num_classes: int = NUM_CLASSES,
    cuts: Sequence[int] = (10, 35, 100),  # three levels with about three children per node
    size: int = SIZE,
) -> list[list[int]]:
    """A hierarchy of shapes: Ward's clustering of the class means, cut at several numbers of clusters (nodes).

    Args:
        num_classes: number of classes K, 2 to 1000: the first K of `CHARACTERS`.
        cuts: number of nodes at each level, ascending, each in 1..K.
        size: height and width of the images in pixels, at least 8.

    Returns:
        One list per level, with the node of each class. Nodes are numbered in the order of their first class. Each node
        lies within one node of the level before.

    Raises:
        ValueError: if an argument is out of its range, or if the cuts are not ascending in 1..K.

    Example:
        >>> "".join(CHARACTERS[:10]), shape_levels(10, cuts=(3, 10))[1]
        ('0123456789', [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])

    Reference: Ward (1963).
    """
    means = class_means(num_classes, size)
    if list(cuts) != sorted(set(cuts)) or not cuts or not 1 <= cuts[0] <= cuts[-1] <= num_classes:
        raise ValueError(f"cuts must be ascending numbers in 1..{num_classes}; got {tuple(cuts)}")
    linkage = scipy.cluster.hierarchy.ward(means.reshape(num_classes, -1))
    return [cut_linkage(linkage, nodes) for nodes in cuts]


def select_characters(limit: int = 1000, threshold: float = LOOK_ALIKE) -> str:
    """Select the characters of the fonts, without those that look like an earlier one. `CHARACTERS` is its result.

    First come ASCII digits and the plain Latin, Greek and Cyrillic letters, then characters that all faces have, then
    characters that at least four faces have; each group is in the order of Unicode.

    Args:
        limit: largest number of characters.
        threshold: leave out a character if, in the regular style of any family, the correlation of its image with that
            of an earlier character exceeds this. The ink is scaled to one size first, so c and C look alike.

    Returns:
        The characters as one string.

    Example:
        >>> select_characters(limit=20)
        '0123456789ABCDEHJKLM'
    """
    covered = coverage(FACES)
    fonts = open_fonts(REGULAR)
    regular = [FACES.index(face) for face in REGULAR]
    chosen: list[str] = []
    seen = np.zeros((limit, len(REGULAR), SIZE * SIZE), np.float32)
    for character in sorted(covered, key=lambda character: (_tier(character, covered[character]), character)):
        if len(chosen) == limit:
            break
        faces = np.flatnonzero(covered[character][regular])
        vectors = np.zeros((len(REGULAR), SIZE * SIZE), np.float32)
        vectors[faces] = standardised(shrunk(draw_templates(character, [fonts[face] for face in faces], SIZE)))
        if np.einsum("kfp,fp->kf", seen[: len(chosen)], vectors).max(initial=0) <= threshold:
            seen[len(chosen)] = vectors
            chosen.append(character)
    return "".join(chosen)


def _tier(character: str, covered: Bool[np.ndarray, " faces"]) -> int:
    plain = ("0", "9"), ("A", "Z"), ("a", "z"), ("Α", "Ω"), ("α", "ω"), ("А", "я")
    if any(first <= character <= last for first, last in plain):
        return 0
    return 1 if covered.all() else 2


def coverage(faces: Sequence[str]) -> dict[str, Bool[np.ndarray, " faces"]]:
    """Return, for each character that at least `FEWEST_FACES` faces have, which faces have it."""
    charmaps = [font.get_charmap() for font in open_fonts(faces)]
    candidates = sorted(set().union(*charmaps))
    return {
        chr(code): covered
        for code in candidates
        # Letters, numbers, punctuation and symbols; no combining marks, modifiers, spaces or private-use characters.
        if unicodedata.category(chr(code))[0] in "LNPS" and unicodedata.category(chr(code)) not in ("Lm", "Sk")
        if (covered := np.array([code in charmap for charmap in charmaps])).sum() >= FEWEST_FACES
    }


def _script(character: str) -> str:
    first = unicodedata.name(character).split()[0]
    scripts = {"LATIN": "Latin", "GREEK": "Greek", "CYRILLIC": "Cyrillic", "DIGIT": "digit"}
    return scripts.get(first, "other")


def _case(character: str) -> str:
    return {"Lu": "upper", "Ll": "lower"}.get(unicodedata.category(character), "uncased")


def check_sizes(num_classes: int, size: int) -> None:
    """Raise a ValueError unless `num_classes` lies in 2..1000 and `size` is at least 8."""
    if not 2 <= num_classes <= len(CHARACTERS):
        raise ValueError(
            f"num_classes must lie in 2..{len(CHARACTERS)}, the characters that do not look alike; got {num_classes}"
        )
    if size < 8:
        raise ValueError(f"size must be at least 8; got {size}")


def open_fonts(faces: Sequence[str]) -> list[FT2Font]:
    """Read fonts from Matplotlib's folder, anew in each call (16 fonts take 13 ms): threads must not share them."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [FT2Font(str(folder / f"{face}.ttf")) for face in faces]


def draw_templates(character: str, fonts: Sequence[FT2Font], size: int) -> UInt8[np.ndarray, "faces side side"]:
    """Draw the character in the middle of a square, once for each font that has it."""
    side = OVERSAMPLING * size
    fonts = [font for font in fonts if font.get_char_index(ord(character))]
    templates = np.zeros((len(fonts), side, side), np.uint8)
    for template, font in zip(templates, fonts, strict=True):
        ink = _ink(font, character, side * INK_SHARE)
        top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
        template[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return templates


def _ink(font: FT2Font, character: str, longer_side: float) -> UInt8[np.ndarray, "height width"]:
    # Without hinting, which would move outlines to the pixels of the template.
    font.set_size(NOMINAL, 72)
    left, bottom, right, top = font.load_char(ord(character), flags=LoadFlags.NO_HINTING).bbox  # in 1/64 pixel
    font.set_size(NOMINAL * longer_side * 64 / max(right - left, top - bottom), 72)
    font.set_text(character, 0.0, flags=LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    bitmap = font.get_image()
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    return bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def shrunk(templates: UInt8[np.ndarray, "faces side side"]) -> Float[np.ndarray, "faces size size"]:
    """Shrink templates to the size of images, by averages over blocks of pixels; values in [0, 1]."""
    faces, side, _ = templates.shape
    blocks = templates.reshape(faces, side // OVERSAMPLING, OVERSAMPLING, side // OVERSAMPLING, OVERSAMPLING)
    return blocks.mean((2, 4)) / 255


def standardised(images: Float[np.ndarray, "faces size size"]) -> Float[np.ndarray, "faces pixels"]:
    """Return a vector for each image; the inner products of these vectors are the correlations of the images."""
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)
