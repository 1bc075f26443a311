// The entry point of gs.stream_view.

import { lines } from "../lines.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith((el, spec, data) => lines(el, spec, data.values), ...view);
