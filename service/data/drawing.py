"""Four renderings of a painted figure: photo, near-infrared, colour pencil and sketch.

All four start from one map of parts (`service/data/figure.py`), so that they show one person.

Letters: H, W final height and width; h, w those of the map, OVERSAMPLING times larger.
"""

import cv2
import numpy as np

from service.data.figure import OVERSAMPLING, Material, PartMap, draw_pose, paint
from service.data.people import COLOURS, HAIR_COLOURS, SKIN, Colour, Person, Tuning, nuisance
from service.modality import Modality

_GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


def render(
    modality: Modality,
    person: Person,
    view: str,
    image_size: tuple[int, int],
    difficulty: float,
    tuning: Tuning,
    pose_rng: np.random.Generator,
    rng: np.random.Generator,
) -> np.ndarray:
    """One image, uint8 [H, W, 3] RGB.

    `pose_rng` decides the pose and `rng` everything else: a sketch and a colour-pencil drawing
    from equal pose generators are lines of the same drawing.
    """
    strength = nuisance(difficulty)
    pose = draw_pose(view, strength, tuning, pose_rng)
    parts = paint(person, pose, image_size)
    renderer = {
        Modality.VIS: _render_vis,
        Modality.NIR: _render_nir,
        Modality.CP: _render_cp,
        Modality.SK: _render_sk,
    }[modality]
    image = renderer(parts, person, strength, tuning, rng)
    return np.clip(image * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)


# Renderers: PartMap -> float32 [H, W, 3] in about [0, 1]


def _render_vis(
    parts: PartMap, person: Person, strength: float, tuning: Tuning, rng: np.random.Generator
) -> np.ndarray:
    palette = _palette(person)
    palette += rng.normal(0.0, strength * tuning.tone_spread, (len(Material), 1))
    image = _on_background(_shaded(parts, palette, rng), parts, _scenery(parts, rng))
    gain = 1.0 + strength * tuning.vis_gain * rng.uniform(-1, 1)
    balance = 1.0 + strength * tuning.vis_balance * rng.standard_normal(3)
    image = image * (gain * balance).astype(np.float32)
    if rng.random() < strength * tuning.vis_occluder:
        _occlude(image, rng.uniform(0.3, 0.7) + rng.uniform(-0.1, 0.1, 3), rng)
    image = _blurred(image, strength * tuning.vis_blur * rng.random())
    return _noisy(image, strength * tuning.vis_noise, rng)


def _render_nir(
    parts: PartMap, person: Person, strength: float, tuning: Tuning, rng: np.random.Generator
) -> np.ndarray:
    grey = _reflectances(person)
    grey = grey.mean() + tuning.nir_contrast * (grey - grey.mean())
    grey += rng.normal(0.0, strength * tuning.nir_dye_spread, len(Material))
    palette = np.repeat(grey[:, None], 3, axis=1)
    scenery = np.repeat(_scenery(parts, rng) @ _GREY_WEIGHTS[:, None], 3, axis=2)
    image = _on_background(_shaded(parts, palette, rng), parts, 0.15 + 0.5 * scenery)
    image *= _vignette(image.shape, rng)
    if rng.random() < strength * tuning.nir_occluder:
        _occlude(image, np.full(3, rng.uniform(0.1, 0.8)), rng)
    image = _blurred(image, strength * tuning.nir_blur * (0.4 + 0.6 * rng.random()))
    grain = strength * tuning.nir_noise * rng.standard_normal(image.shape[:2], dtype=np.float32)
    return image + grain[..., None]


def _render_cp(
    parts: PartMap, person: Person, strength: float, tuning: Tuning, rng: np.random.Generator
) -> np.ndarray:
    palette = _palette(person)
    palette += rng.normal(0.0, strength * tuning.cp_colour_spread, palette.shape)
    palette = tuning.cp_paleness + (1.0 - tuning.cp_paleness) * palette
    palette[Material.BACKGROUND] = 1.0
    colour = palette.astype(np.float32)[parts.material]
    stroke = _strokes(parts, period=0.022, share=0.35, slope=rng.uniform(0.6, 1.4))
    colour += (0.35 * stroke * (parts.material > 0))[..., None] * (1.0 - colour)
    lines = _lines(parts, tuning.cp_line)
    colour *= (1.0 - 0.75 * lines)[..., None]
    return _noisy(_reduced(colour), 0.01, rng)


def _render_sk(
    parts: PartMap, person: Person, strength: float, tuning: Tuning, rng: np.random.Generator
) -> np.ndarray:
    darkness = 1.0 - _palette(person) @ _GREY_WEIGHTS
    darkness[Material.BACKGROUND] = darkness[Material.SKIN] = 0.0
    tone = darkness.astype(np.float32)[parts.material]
    strokes = _strokes(parts, period=0.04, share=0.4, slope=rng.uniform(0.8, 1.2))
    ink = tuning.sk_tone * tone * (0.6 + 0.4 * strokes)
    kept = 1.0 - _gaps(parts, strength * tuning.sk_gaps, rng)
    ink = np.maximum(ink, _lines(parts, tuning.sk_line) * kept)
    paper = _noisy(_reduced(1.0 - 0.92 * ink), 0.01, rng)
    return np.repeat(paper[..., None], 3, axis=2)


# Pieces of renderers


def _wardrobe(person: Person) -> dict[Material, Colour]:
    """The colour of each material, as far as the person has it."""
    dyes = {
        Material.UPPER: person.upper_colour,
        Material.SECOND: person.second_colour,
        Material.LOWER: person.lower_colour,
        Material.SHOE: person.shoe_colour,
        Material.HAT: person.hat_colour,
        Material.BAG: person.bag_colour,
    }
    colours = {material: COLOURS[dye] for material, dye in dyes.items() if dye}
    return colours | {Material.SKIN: SKIN, Material.HAIR: HAIR_COLOURS[person.hair_colour]}


def _palette(person: Person) -> np.ndarray:
    """float64 [materials, 3] in [0, 1]."""
    palette = np.zeros((len(Material), 3))
    for material, colour in _wardrobe(person).items():
        palette[material] = np.asarray(colour.rgb) / 255.0
    return palette


def _reflectances(person: Person) -> np.ndarray:
    """float64 [materials] in [0, 1]."""
    grey = np.full(len(Material), 0.5)
    for material, colour in _wardrobe(person).items():
        grey[material] = colour.reflectance
    return grey


def _shaded(parts: PartMap, palette: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The figure in light from one side, with dark seams; float32 [h, w, 3]."""
    light = 1.0 + rng.uniform(-1.2, 1.2) * parts.x + rng.uniform(-0.2, 0.1) * parts.y
    seams = 1.0 - 0.3 * _lines(parts, 0.006)
    return palette.astype(np.float32)[parts.material] * (light * seams)[..., None]


def _on_background(figure: np.ndarray, parts: PartMap, scenery: np.ndarray) -> np.ndarray:
    """`figure` [h, w, 3] over `scenery` [H, W, 3], with soft edges."""
    alpha = (parts.material > 0).astype(np.float32)[..., None]
    covered = _reduced(figure * alpha)
    return covered + (1.0 - _reduced(alpha)[..., None]) * scenery


def _reduced(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    size = (width // OVERSAMPLING, height // OVERSAMPLING)
    return cv2.resize(image.astype(np.float32, copy=False), size, interpolation=cv2.INTER_AREA)


def _scenery(parts: PartMap, rng: np.random.Generator) -> np.ndarray:
    """A wall, a floor and a few boxes in muted colours; float32 [H, W, 3]."""
    height, width = (n // OVERSAMPLING for n in parts.material.shape)
    grey = rng.uniform(0.5, 0.85, 2)
    wall, floor = (grey[:, None] + rng.uniform(-0.04, 0.04, (2, 3))).tolist()
    image = np.empty((height, width, 3), np.float32)
    horizon = int(height * rng.uniform(0.55, 0.85))
    image[:horizon], image[horizon:] = wall, floor
    for _ in range(int(rng.integers(2, 5))):
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, horizon))
        box = (x + int(rng.uniform(0.1, 0.5) * width), y + int(rng.uniform(0.05, 0.5) * height))
        shade = (grey[0] + rng.uniform(-0.2, 0.2) + rng.uniform(-0.06, 0.06, 3)).tolist()
        cv2.rectangle(image, (x, y), box, shade, -1)
    return cv2.GaussianBlur(image, (0, 0), 0.03 * height)


def _occlude(image: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> None:
    """Covers one side or the foot of `image`, in place."""
    height, width = image.shape[:2]
    share = rng.uniform(0.15, 0.35)
    side = int(rng.integers(4))
    if side == 0:
        image[:, : int(width * share)] = colour
    elif side == 1:
        image[:, width - int(width * share) :] = colour
    else:
        image[height - int(height * share) :] = colour


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """`sigma` as a share of the height; below a third of a pixel nothing is done."""
    pixels = sigma * image.shape[0]
    return image if pixels < 0.33 else cv2.GaussianBlur(image, (0, 0), pixels)


def _noisy(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)


def _vignette(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W, 1]: a lamp's cone, brightest near the middle."""
    height, width = shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(rng.uniform(-0.3, 0.3))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] - np.float32(rng.uniform(-0.3, 0.3))
    return (1.1 - np.float32(rng.uniform(0.2, 0.45)) * (x * x + y * y))[..., None]


def _strokes(parts: PartMap, period: float, share: float | np.ndarray, slope: float) -> np.ndarray:
    """Parallel pencil strokes that cover `share` of the paper, float32 [h, w] of 0 and 1."""
    phase = (parts.x + slope * parts.y) / period
    return ((phase % 1.0) < share).astype(np.float32)


def _lines(parts: PartMap, thickness: float) -> np.ndarray:
    """Outlines of all parts and of the pattern, float32 [h, w] of 0 and 1."""
    both = parts.part.astype(np.int16) * len(Material) + parts.material
    edge = np.zeros(both.shape, np.uint8)
    edge[:, 1:] |= both[:, 1:] != both[:, :-1]
    edge[1:] |= both[1:] != both[:-1]
    pixels = max(1, round(thickness * parts.scale))
    if pixels > 1:
        edge = cv2.dilate(edge, np.ones((pixels, pixels), np.uint8))
    return edge.astype(np.float32)


def _gaps(parts: PartMap, share: float, rng: np.random.Generator) -> np.ndarray:
    """Patches where the pencil skips, float32 [h, w] of 0 and 1, about `share` of the paper."""
    height, width = parts.material.shape
    patches = (rng.random((24, 12)) < share).astype(np.float32)
    return cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)
