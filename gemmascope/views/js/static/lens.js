// The entry point of gs.lens_view.

import { lens } from "../lens.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith(lens, ...view);
