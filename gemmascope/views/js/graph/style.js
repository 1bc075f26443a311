// What the graph's page adds to the style of all views.

import { EXAMPLE_STYLE } from "../examples.js";

export const GRAPH_STYLE = `${EXAMPLE_STYLE}
.gs-influence{display:inline-flex;gap:8px;align-items:center;vertical-align:bottom}
.gs-influence input{width:168px;height:20px;margin:0 0 0 4px}
.gs-influence output{min-width:40px}
.gs-stage{position:relative}
.gs-stage canvas{position:absolute;left:0;top:0}
.gs-stage canvas:first-child{position:relative}
.gs-stage canvas:last-child{touch-action:pan-x pan-y}
.gs-stage.gs-looks canvas:nth-child(2){opacity:.3}
.gs-legend{display:flex;flex-wrap:wrap;gap:4px 24px;margin-top:8px;font-size:12px;line-height:16px;color:var(--gs-faint)}
.gs-legend i{display:inline-block;width:10px;height:10px;margin-right:8px;vertical-align:-1px;border-radius:5px;background:var(--gs-faint)}
.gs-legend i.gs-error{border:1px solid var(--gs-faint);background:none;border-radius:0}
.gs-legend i.gs-square{border-radius:2px;background:var(--gs-ink)}
.gs-legend i.gs-line{height:4px;width:16px;border-radius:2px;vertical-align:2px;background:var(--gs-positive)}
.gs-legend i.gs-line.gs-minus{background:var(--gs-negative)}
.gs-node-pane{min-height:480px}
@container (min-width:900px){.gs-side-pane:has(>.gs-node-pane){position:relative;min-height:560px}.gs-node-pane{position:absolute;inset:0;padding:16px 24px;min-height:0;overflow:auto}}
.gs-node-pane h4{margin:16px 0 4px;font-size:14px;line-height:20px;font-weight:600}
.gs-node-pane .gs-in{margin-top:8px}
.gs-node-pane .gs-facts{display:flex;gap:24px;margin:16px 0 8px;align-items:flex-end}
.gs-node-pane .gs-facts>div{display:grid}
.gs .gs-node-pane .gs-edge{display:grid;grid-template-columns:minmax(0,176px) minmax(64px,1fr) 56px;gap:16px;align-items:center;width:100%;min-height:24px;padding:0 4px;margin:0 -4px;text-align:left;font-size:12px;line-height:16px}
.gs-edge>span:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.gs-edge>span:last-child{text-align:right;color:var(--gs-faint)}
.gs-heads{font-size:12px;line-height:16px;color:var(--gs-faint);padding:0 0 4px 12px}
.gs-node-pane input[type=text]{font:inherit;font-size:18px;font-weight:600;width:100%;padding:0 4px;margin:0 -5px;border:1px solid transparent;border-radius:4px;background:transparent;color:inherit}
.gs-node-pane input[type=text]:hover,.gs-group input:hover{border-color:var(--gs-line)}
.gs-node-pane input::placeholder{color:var(--gs-ink);opacity:1}
.gs-groups{display:flex;flex-wrap:wrap;gap:16px;align-items:stretch;padding:8px 0}
.gs-group{flex:0 1 264px;min-height:96px;padding:8px 12px;border:1px solid var(--gs-line);border-left:4px solid var(--gs-tint,var(--gs-line));border-radius:8px}
.gs-group.gs-new{border-style:dashed;border-left-width:1px;display:flex;flex-direction:column;align-items:center;justify-content:center;gap:4px;color:var(--gs-faint);text-align:center;font-size:12px}
.gs-group.gs-over{background:var(--gs-highlight)}
.gs-group input{font:inherit;font-weight:600;width:100%;border:1px solid transparent;border-radius:4px;background:transparent;color:inherit;padding:0 4px;margin:0 -4px}
.gs-group ul{list-style:none;margin:4px 0;padding:0}
.gs-group li{display:grid;grid-template-columns:minmax(0,1fr) 24px;align-items:center}
.gs .gs-group li button{min-height:24px;padding:0 4px;margin-left:-4px;font-size:12px;line-height:16px;text-align:left;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.gs .gs-group li button:last-child{margin:0;text-align:center;color:var(--gs-faint)}
.gs-flow{font-size:12px;line-height:16px;color:var(--gs-faint)}
.gs-dragged{position:fixed;z-index:20;pointer-events:none;font-size:12px;line-height:16px;padding:4px 8px;border:1px solid var(--gs-accent);border-radius:4px;background:var(--gs-ground)}
.gs-stage.gs-points{cursor:pointer}
@media print{.gs-side-pane>.gs-node-pane{position:static;padding:0;overflow:visible}.gs-group.gs-new{display:none}.gs-stage.gs-looks canvas:nth-child(2){opacity:1}}
`;
