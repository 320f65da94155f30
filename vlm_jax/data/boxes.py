"""Boxes and points in text: thousandths of the whole picture, whatever tiles it is cut into.

    <ref>a dog</ref><box>[[90, 112, 541, 906], [560, 120, 998, 900]]</box>      several boxes of one thing
    <ref>a dog</ref><point>[[315, 509]]</point>
    <c1,CAM_FRONT,[315, 509]>                                                    DriveLM: number, camera, middle

Numbers count from the upper left corner: x from 0 to 1000 over the width, y over the height, of the picture as it lies
upright before any tiling (chat data format of InternVL's documentation, section on grounding). A camera's point counts
over the one picture that all cameras' views are put together into (`tools/images_stitching.py` of InternVL).

How pixels become thousandths must be said, because two ways are about: InternVL's documentation rounds to the nearest
number (`round`, halves to the even one, as Python does); one of its maintainers, asked for the code behind the training
data, cuts off what follows the point (`floor`, InternVL's issue 285). They differ by at most one thousandth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vlm_jax.errors import UserError

FULL = 1000
"""The right and the lower border of a picture."""

Rounding = Literal["round", "floor"]

_NUMBER = r"\s*([-+]?\d+(?:\.\d+)?)\s*"
BOX_PATTERN = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")
"""Four comma-separated decimal numbers in square brackets. In `<box>[[10, 20, 30, 40], [1, 2, 3, 4]]</box>` it finds
both boxes; the outer brackets and the tags around them are not required, because scorers of referring expressions
accept a bare `[x1, y1, x2, y2]` too (InternVL's `eval/refcoco/evaluate_grounding.py`)."""

_POINT_PATTERN = re.compile(r"\[" + ",".join([_NUMBER] * 2) + r"\]")
_MARKED_POINTS = re.compile(r"<point>([^<]*)</point>")
_REFERENCE = re.compile(r"<ref>([^<]*)</ref>\s*<(box|point)>([^<]*)</\2>")
_VIEW = re.compile(r"<c(\d+),\s*(\w+),\s*\[" + _NUMBER + "," + _NUMBER + r"\]>")


class Box(NamedTuple):
    """Corners of a box in thousandths of the width (x) and the height (y) of the original image, origin top left."""

    x1: float
    y1: float
    x2: float
    y2: float


class Point(NamedTuple):
    """A place in thousandths of the width (x) and the height (y) of the original image, origin top left."""

    x: float
    y: float


class ViewPoint(NamedTuple):
    """A thing in a DriveLM text: its number, the camera that sees it, and where, as `Point`."""

    number: int
    camera: str
    x: float
    y: float


def to_thousandths(pixels: Sequence[float], size: tuple[int, int], rounding: Rounding = "round") -> list[int]:
    """Places in pixels as they are written in text.

    Args:
      pixels: x, y, x, y, ... in pixels of the original image: a box or a point, or a polygon.
      size: the image's width and height in pixels.
      rounding: to the nearest whole number, or down; see above.

    Raises:
      UserError: the size is not positive, or a number is none.
    """
    if min(size) <= 0 or not all(map(math.isfinite, pixels)):
        raise UserError(f"no place in a picture of {size[0]} x {size[1]} pixels: {list(pixels)}")
    shares = [value / size[number % 2] * FULL for number, value in enumerate(pixels)]
    return [round(share) if rounding == "round" else math.floor(share) for share in shares]


def to_pixels(thousandths: Sequence[float], size: tuple[int, int]) -> list[float]:
    """The inverse of `to_thousandths`, to within what rounding lost: half a thousandth of a side, or a whole one."""
    return [value * size[number % 2] / FULL for number, value in enumerate(thousandths)]


def format_box(pixels: Sequence[float], size: tuple[int, int], rounding: Rounding = "round") -> str:
    """`<box>[[x1, y1, x2, y2]]</box>` of one box in pixels."""
    return format_boxes([pixels], size, rounding)


def format_boxes(boxes: Sequence[Sequence[float]], size: tuple[int, int], rounding: Rounding = "round") -> str:
    """`<box>[[x1, y1, x2, y2], ...]</box>` of boxes in pixels."""
    return f"<box>{_listed(to_thousandths(box, size, rounding) for box in boxes)}</box>"


def format_points(points: Sequence[Sequence[float]], size: tuple[int, int], rounding: Rounding = "round") -> str:
    """`<point>[[x, y], ...]</point>` of points in pixels."""
    return f"<point>{_listed(to_thousandths(point, size, rounding) for point in points)}</point>"


def format_reference(name: str) -> str:
    """`<ref>name</ref>`, what stands before the boxes or points of a thing."""
    return f"<ref>{name}</ref>"


def format_view_point(
    number: int, camera: str, pixels: Sequence[float], size: tuple[int, int], rounding: Rounding = "round"
) -> str:
    """`<c1,CAM_FRONT,[x,y]>` of a point in pixels of the picture of all views."""
    x, y = to_thousandths(pixels, size, rounding)
    return f"<c{number},{camera},[{x},{y}]>"


def parse_boxes(text: str) -> list[Box]:
    """All boxes in a text, in order, found by `BOX_PATTERN`; `[[x1, y1, x2, y2]]` gives one."""
    return [Box(*map(float, match.groups())) for match in BOX_PATTERN.finditer(text)]


def parse_points(text: str) -> list[Point]:
    """All points between `<point>` and `</point>` in a text, in order."""
    found = (match for marked in _MARKED_POINTS.findall(text) for match in _POINT_PATTERN.finditer(marked))
    return [Point(*map(float, match.groups())) for match in found]


def parse_references(text: str) -> list[tuple[str, list[Box] | list[Point]]]:
    """All things in a text that are named by `<ref>`, in order, each with the boxes or points right behind its name."""
    return [
        (name, parse_boxes(places) if kind == "box" else parse_points(f"<point>{places}</point>"))
        for name, kind, places in _REFERENCE.findall(text)
    ]


def parse_view_points(text: str) -> list[ViewPoint]:
    """All things of DriveLM's form in a text, in order."""
    return [ViewPoint(int(number), camera, float(x), float(y)) for number, camera, x, y in _VIEW.findall(text)]


def problem_of(numbers: Sequence[float]) -> str:
    """What is wrong with a box, point or polygon in thousandths; '' where nothing is.

    Args:
      numbers: x, y, x, y, ...; four of them are a box.
    """
    if not all(0 <= value <= FULL for value in numbers):
        return f"lies outside of the picture; coordinates are thousandths of its width and height, 0 to {FULL}"
    if len(numbers) == 4 and (numbers[2] < numbers[0] or numbers[3] < numbers[1]):
        return "has its corners in the wrong order; they are left, top, right, bottom"
    return ""


def _listed(places: object) -> str:
    return str(list(places))
