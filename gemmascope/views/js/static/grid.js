// The entry point of gs.sweep_view.

import { foldedGrid } from "../folded_grid.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith((el, spec, data) => foldedGrid(el, spec, { marks: null, ...data }), ...view);
