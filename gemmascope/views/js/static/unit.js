// The entry point of gs.feature_page, gs.head_page and gs.neuron_page.

import { unit } from "../unit.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith(unit, ...view);
