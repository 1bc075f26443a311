// The entry point of gs.sae_view.

import { features } from "../features.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith((el, spec, data) => features(el, spec, data.values), ...view);
