// The look of every view and lab. What is drawn on a canvas takes the same colours from theme.js.
//
// Sizes are multiples of 8 pixels, and of 4 for the smallest gaps. Text has 12, 14 or 18 pixels; one headline number a view
// may have 28. A view has one accent and at most one .gs-primary button; all other buttons have no border until they are
// pointed at. A colour is a variable that paint() sets (theme.js), never a literal.

export const STYLE = `
.gs{font:14px/20px system-ui,sans-serif;font-variant-numeric:tabular-nums;color:var(--gs-ink);background:var(--gs-ground);position:relative;max-width:100%;text-align:start}
.gs *{box-sizing:border-box}
.gs [hidden]{display:none!important}
.gs canvas{display:block;outline-offset:-2px}
.gs :focus-visible{outline:2px solid var(--gs-accent);outline-offset:1px}
.gs-card{border:1px solid var(--gs-line);border-radius:8px;container-type:inline-size;margin:4px 0}
.gs-card .gs-card{border:0;border-radius:0;margin:0}
.gs-body,.gs-plain{padding:16px 24px}
.gs-title{font-weight:600;font-size:14px;line-height:20px}
.gs-card>.gs-title,.gs-body>.gs-title{font-size:18px;line-height:24px}
.gs-card:not(.gs-plain)>.gs-title{padding:16px 24px 0}
.gs-card:not(.gs-plain)>.gs-note{padding:0 24px}
.gs-note{margin:0 0 8px;color:var(--gs-faint)}
.gs small,.gs-small{font-size:12px;line-height:16px}
.gs-faint{color:var(--gs-faint)}
.gs-big{font-size:28px;line-height:32px;font-weight:600;color:var(--gs-accent)}
.gs-head{font-size:18px;line-height:24px;font-weight:600}
.gs-token{font-family:ui-monospace,monospace;font-size:12px;white-space:pre;unicode-bidi:isolate}

.gs button,.gs select{font:inherit;min-height:28px;padding:3px 8px;border-radius:4px;border:1px solid transparent;background:transparent;color:inherit;cursor:pointer}
.gs button:hover:not(:disabled),.gs button[aria-pressed=true],.gs button[aria-expanded=true]{border-color:var(--gs-line);background:var(--gs-pane)}
.gs button[aria-pressed=true]{border-color:var(--gs-accent);color:var(--gs-accent)}
.gs button:disabled,.gs select:disabled{opacity:.5;cursor:default}
.gs button.gs-primary,.gs button.gs-primary:hover:not(:disabled){background:var(--gs-accent);border-color:var(--gs-accent);color:var(--gs-on-accent);font-weight:600;padding:3px 16px;min-height:32px}
.gs button.gs-primary:disabled{opacity:1;background:var(--gs-pane);border-color:var(--gs-line);color:var(--gs-faint)}
.gs select{border-color:var(--gs-line)}
.gs select option,.gs select optgroup{color:#1a1a1a;background:#fff}
.gs input[type=checkbox]{vertical-align:-2px;margin:0 4px 0 0;accent-color:var(--gs-accent)}
.gs input[type=range]{accent-color:var(--gs-accent)}
.gs-bar{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin:4px 0}
.gs-row{display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start}
.gs summary{cursor:pointer}

.gs-strip{position:sticky;top:0;z-index:5;display:grid;grid-template-columns:minmax(0,1fr) auto;gap:8px 24px;align-items:center;padding:12px 24px;min-height:68px;background:var(--gs-ground);border-bottom:1px solid var(--gs-line);border-radius:8px 8px 0 0}
.gs-strip-end{display:flex;gap:16px;align-items:center;justify-content:flex-end}
.gs-sentence{grid-column:1/-1}
@container (min-width:900px){.gs-strip{grid-template-columns:minmax(0,1fr) auto auto}.gs-sentence{grid-column:auto}}
.gs-panes{display:grid;grid-template-columns:minmax(0,1fr)}
.gs-panes>div{min-width:0;padding:16px 24px}
.gs-panes>.gs-side-pane{background:var(--gs-pane);border-top:1px solid var(--gs-line)}
.gs-below{border-top:1px solid var(--gs-line);padding:8px 24px}
@container (min-width:900px){.gs-panes{grid-template-columns:minmax(0,1fr) clamp(320px,36cqw,440px)}.gs-panes>.gs-side-pane{border-top:0;border-left:1px solid var(--gs-line)}}

.gs-word{position:relative;display:inline-block;max-width:100%;font-weight:600;color:var(--gs-accent);border-bottom:1px solid currentColor;line-height:18px}
.gs-word::after{content:"▾";font-size:10px;font-weight:400;margin-left:2px}
.gs-word select{position:absolute;inset:-4px 0;width:100%;min-height:0;padding:0;opacity:0;border:0;cursor:pointer}
.gs-word:has(:focus-visible){outline:2px solid var(--gs-accent);outline-offset:2px;border-radius:2px}
.gs-word:has(:disabled){color:inherit;border-bottom-color:transparent;font-weight:400}
.gs-word:has(:disabled)::after{content:none}
.gs-menu{position:relative;display:inline-block}
.gs-menu>button{min-width:32px;font-weight:600}
.gs-menu>div{position:absolute;right:0;top:calc(100% + 4px);z-index:8;min-width:192px;padding:4px;background:var(--gs-ground);border:1px solid var(--gs-line);border-radius:8px;box-shadow:0 4px 16px rgb(0 0 0/.16)}
.gs-menu>div button{display:block;width:100%;text-align:left;white-space:nowrap;border-color:transparent}

.gs-ruler{position:relative;width:168px;height:36px;font-size:12px;line-height:16px;color:var(--gs-faint)}
.gs-ruler>i{position:absolute;top:8px;height:4px;margin-top:-2px;border-radius:2px;background:var(--gs-line)}
.gs-ruler>b{position:absolute;top:8px;width:10px;height:10px;margin:-5px 0 0 -5px;border-radius:5px}
.gs-ruler>b.gs-now{width:4px;height:16px;margin:-8px 0 0 -2px;border-radius:2px;background:var(--gs-ink)}
.gs-ruler>span{position:absolute;top:20px;white-space:nowrap}
.gs-bars{display:grid;grid-template-columns:minmax(32px,max-content) minmax(64px,1fr) max-content;gap:4px 16px;align-items:center}
.gs-bars>div{display:contents}
.gs-bars .gs-name{overflow:hidden;text-overflow:ellipsis;max-width:160px;font-size:12px}
.gs-track{position:relative;height:10px;border-radius:5px;background:var(--gs-line);overflow:hidden}
.gs-track>i{position:absolute;top:0;bottom:0;min-width:2px;background:var(--gs-accent)}
.gs-track>b{position:absolute;top:0;bottom:0;width:2px;background:var(--gs-ink)}
.gs-track>u{position:absolute;top:0;bottom:0;width:1px;background:var(--gs-faint)}
.gs-bars .gs-value{text-align:right;font-size:12px;color:var(--gs-faint)}
.gs-arcs{overflow-x:auto;overflow-y:hidden}
.gs-arcs svg{display:block;font:12px ui-monospace,monospace}
.gs-arcs path{fill:none;stroke:var(--gs-accent)}
.gs-arcs text{fill:var(--gs-ink);white-space:pre}

.gs-lit{background:var(--gs-highlight)!important;color:var(--gs-ink)!important}
.gs-pinned{box-shadow:0 0 0 2px var(--gs-accent)}
rect.gs-lit{fill:var(--gs-highlight)!important;fill-opacity:1!important}
rect.gs-pinned{stroke:var(--gs-accent);stroke-width:2px}

.gs-wide{overflow-x:auto;overflow-y:hidden;max-width:100%}
.gs .gs-cells>canvas:focus-visible{outline:0}
.gs-wide:has(>.gs-cells>:focus-visible){outline:2px solid var(--gs-accent)}
.gs-cells{display:flex;width:max-content}
.gs-cells canvas{flex:none}
.gs-names{position:sticky;left:0;z-index:1;pointer-events:none}
.gs-scroll{overflow:auto;max-height:420px;max-width:100%}
.gs table{border-collapse:collapse;font-size:12px;line-height:16px}
.gs th,.gs td{border:0;border-bottom:1px solid var(--gs-line);padding:4px 8px;text-align:right;background:transparent;color:inherit}
.gs-legend{display:flex;flex-wrap:wrap;gap:0 16px;align-items:start;font-size:12px;line-height:16px;color:var(--gs-faint);min-height:32px}
.gs-swatch{display:inline-block;position:relative;width:12px;height:12px;border-radius:2px;margin-right:4px;vertical-align:-2px;border:1px solid var(--gs-line)}
.gs-swatch>i{position:absolute;inset:2px;border:1px solid var(--gs-line)}
.gs-panels{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--gs-least,340px)),1fr))}
.gs-panels>div{min-width:0}
.gs button.gs-thumb{display:inline-flex;flex-direction:column;align-items:center;padding:4px 4px 0}
.gs-chips{max-height:136px;overflow:auto}
.gs-chip,.gs button.gs-chip{font-family:ui-monospace,monospace;font-size:12px;line-height:18px;min-height:0;border:1px solid var(--gs-line);border-radius:4px;padding:0 4px;margin:1px;display:inline-block;white-space:pre;unicode-bidi:isolate}
.gs-special,.gs button.gs-special{color:var(--gs-faint);border-style:double;border-width:3px}
.gs-tip{position:absolute;pointer-events:none;z-index:9;padding:4px 8px;border-radius:4px;border:1px solid var(--gs-line);background:var(--gs-ground);max-width:304px;white-space:pre-wrap;font-size:12px;line-height:16px}
.gs-live{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.gs-status{min-height:20px}
.gs .gs-gone{position:absolute;top:0;left:0;right:0;z-index:10;padding:4px 8px;border:2px solid var(--gs-warn);border-radius:4px;background:var(--gs-ground);font-weight:600}
.gs-cut-off>:not(.gs-gone){opacity:.4;filter:grayscale(1);cursor:not-allowed}

@media print{
.gs{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.gs button:not(.gs-chip,.gs-thumb,[aria-pressed=true]),.gs-menu,.gs-tip,.gs input,.gs progress,.gs-gone{display:none!important}
.gs-wide,.gs-scroll,.gs-chips,.gs-arcs,.gs-line,.gs-runs,.gs-code,.gs-messages>*{overflow:visible!important;max-height:none!important}
.gs button:is(.gs-tok,.gs-folded){display:flex!important}
.gs button:is(.gs-run,.gs-rung){display:grid!important}
.gs button:is(.gs-look,.gs-small-channel){display:block!important}
.gs input.gs-typed{display:inline-block!important;color:inherit;border-color:transparent}
.gs-below:has(>.gs-models){display:none}
.gs-strip>.gs-messages{min-height:0}
.gs-runs{flex-wrap:wrap}
.gs-cells{width:auto}
.gs-cells>canvas[tabindex]{max-width:100%;height:auto!important;margin-left:0!important}
.gs-names{display:none!important}
.gs-strip{position:static}
.gs-word{color:inherit;border:0}
.gs-word::after{content:none}
.gs-card,.gs-panes>div{break-inside:avoid}
}
`;
