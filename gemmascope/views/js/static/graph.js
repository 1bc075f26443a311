// The entry point of gs.graph_view.

import { graphPage } from "../graph/graph.js";
import { mountWith } from "./mount.js";

export const mount = (...view) => mountWith(graphPage, ...view);
