// The entry point of gs.plan_view.

import { plan } from "../plan.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith(plan, ...view);
