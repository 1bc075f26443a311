// The entry point of gs.sweep_view.

import { grid } from "../grid.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith((el, spec, data) => grid(el, spec, { marks: null, ...data }), ...view);
