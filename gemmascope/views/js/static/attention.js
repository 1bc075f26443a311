// The entry point of gs.attention_view.

import { attention } from "../attention.js";
import { layersOf } from "../attention/patterns.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith((el, spec, data) => attention(el, spec, layersOf(spec, data, "first"), spec.other ? layersOf(spec, data, "second") : null), ...view);
