"""Cells of a canvas under the pointer of a browser, and their colours."""

from __future__ import annotations

from typing import Any

import numpy as np


class Pointer:
    """A canvas under the pointer. A cell is found as people find it: by moving until the tooltip names it."""

    def __init__(self, page: Any, nth: int = 0, within: str = "") -> None:
        self.page, self.canvas = page, page.locator(f"{within} canvas[tabindex='0']").nth(nth)
        self.box = self.canvas.bounding_box()

    def says(self, x: float, y: float) -> str:
        """The text of the tooltip at a point of the canvas; empty where there is no cell."""
        self.page.mouse.move(self.box["x"] + x, self.box["y"] + y)
        texts = self.page.locator(".gs-tip:visible").all_inner_texts()
        return texts[0] if texts else ""

    def find(self, place: str) -> tuple[float, float]:
        """A point in the middle of the cell of that place, such as 'query 6: ·the, key 2: ·and'."""
        middle = self.canvas.evaluate(
            """(canvas, [row, column]) => {
                const box = canvas.getBoundingClientRect(), tip = canvas.closest(".gs").querySelector(".gs-tip");
                const says = (x, y) => {
                    const at = { clientX: box.left + x, clientY: box.top + y, bubbles: true };
                    canvas.dispatchEvent(new PointerEvent("pointermove", at));
                    return tip.hidden ? "" : tip.textContent.split("\\n")[0];
                };
                const steps = (size) => Array.from({ length: size / 4 }, (_, i) => 4 * i);
                const some = steps(box.width).find((x) => says(x, 12));
                const ys = steps(box.height).filter((y) => says(some, y).startsWith(row + ", "));
                const xs = steps(box.width).filter((x) => says(x, ys[0]) === row + ", " + column);
                const middle = (list) => list.reduce((a, b) => a + b) / list.length;
                return [middle(xs), middle(ys)];
            }""",
            place.split(", ", 1),
        )
        return middle[0], middle[1]

    def pixel(self, x: float, y: float) -> list[int]:
        rgb: list[int] = self.canvas.evaluate(
            """(element, [x, y]) => {
                const ratio = window.devicePixelRatio;
                return [...element.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3);
            }""",
            [x, y],
        )
        return rgb


def between(stops: list[str], value: float) -> np.ndarray[Any, Any]:
    """The colour at a place of a scale, 0 to 1."""
    rgb = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops])
    return np.array([np.interp(value, np.linspace(0, 1, len(stops)), rgb[:, i]) for i in range(3)])


BLUES = ["#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
RED_BLUE = ["#b2182b", "#ef8a62", "#f7f7f7", "#67a9cf", "#2166ac"]
