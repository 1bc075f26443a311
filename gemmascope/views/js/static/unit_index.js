// The entry point of the index that gs.save_pages writes.

import { unitIndex } from "../unit_index.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith(unitIndex, ...view);
