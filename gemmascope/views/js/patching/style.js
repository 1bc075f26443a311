// What only the patching lab needs of a look.

export const LAB_STYLE = `
.gs-lab .gs-main-pane{position:relative;display:flex;flex-direction:column;gap:8px}
.gs-lab .gs-grid .gs-bar{margin-left:-8px}
.gs-lab .gs-grid>.gs>.gs-title,.gs-lab .gs-grid>.gs>.gs-note{display:none}
.gs-tools{display:flex;flex-wrap:wrap;gap:4px 8px;align-items:center;min-height:28px;margin-left:-8px}
.gs-tools [data-gs-do=estimate]{min-width:152px;text-align:left}
.gs-tools .gs-next{display:inline-flex;align-items:center;gap:4px}
.gs-editor{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 8px;align-items:center;padding:8px 0}
.gs-editor label{display:contents}
.gs-lab input[type=text]{font:12px ui-monospace,monospace;color:inherit;background:transparent;border:1px solid var(--gs-line);border-radius:4px;padding:4px 8px;min-width:0;min-height:28px}
.gs-editor .gs-two{display:flex;gap:8px;flex-wrap:wrap}
.gs-heads{position:relative}
.gs-heads>*{position:absolute;bottom:4px;display:flex;justify-content:center}
.gs-lab .gs-tok{display:flex;flex-direction:column;align-items:stretch;min-height:0;min-width:0;max-width:100%;padding:0 1px;border-radius:4px;line-height:18px}
.gs-tok .gs-chip{border:0;padding:0;margin:0;overflow:hidden;text-overflow:ellipsis;text-align:center;display:block}
.gs-tok .gs-byte{border-bottom:1px solid var(--gs-faint);border-radius:0}
.gs-lab .gs-heads:not(.gs-upright) .gs-tok:has(.gs-byte){width:100%}
.gs-heads:not(.gs-upright) .gs-byte[style]{position:relative;z-index:1;overflow:visible;margin-right:calc(var(--gs-column)*(1 - var(--gs-columns)));pointer-events:none}
.gs-too-close{height:4px;background:var(--gs-highlight)}
.gs-tok .gs-special{color:var(--gs-faint)}
.gs-lab .gs-tok.gs-differs{background:var(--gs-highlight);border-color:var(--gs-line)}
.gs-differs .gs-chip{font-weight:700;text-decoration:underline}
.gs-tok.gs-differs .gs-byte{text-decoration:none}
.gs-tok[aria-disabled=true]{cursor:default}
.gs-free .gs-tok{max-width:none}
.gs-free .gs-chip{overflow:visible}
.gs-ph{font-size:12px;color:var(--gs-faint)}
.gs-upright .gs-tok{flex-direction:row;writing-mode:vertical-rl;transform:rotate(180deg);max-height:76px}
.gs-upright .gs-tok.gs-differs{flex-direction:row-reverse;max-height:152px}
.gs-upright .gs-tok .gs-chip{text-align:left;max-height:72px}
.gs-lab .gs-upright .gs-tok,.gs-upright .gs-chip{line-height:13px;padding:1px 0}
.gs-lab .gs-folded{bottom:auto;z-index:2;align-items:center;writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap;overflow:hidden;font-size:12px;min-height:0;padding:0;border:1px dashed var(--gs-line);color:var(--gs-faint)}
.gs-line{display:flex;flex-wrap:wrap;gap:2px;max-height:88px;overflow:auto}
.gs-swap{position:absolute;z-index:8;display:flex;gap:8px;align-items:end;padding:8px;background:var(--gs-ground);border:1px solid var(--gs-line);border-radius:8px;box-shadow:0 4px 16px rgb(0 0 0/.16)}
.gs-swap label{display:grid}
.gs-scale{position:relative;width:184px;height:32px}
.gs-scale>i{position:absolute;inset:0 0 auto;height:8px;border-radius:4px;border:1px solid var(--gs-line)}
.gs-scale>span{position:absolute;top:12px;white-space:nowrap}
.gs-progress span:empty{display:none}
.gs-progress button:disabled{visibility:hidden}
.gs-progress{display:flex;gap:8px;align-items:center;min-height:28px;font-size:12px}
.gs-progress progress{width:144px;height:8px;accent-color:var(--gs-accent)}
.gs-progress .gs-status{margin:0;flex:1;min-width:0;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.gs-messages{min-height:28px}
.gs-stale{opacity:.4}
.gs-detail{display:flex;flex-direction:column;gap:8px;min-height:440px}
.gs-cell{display:flex;flex-direction:column;gap:16px}
.gs-figures{display:grid;grid-template-columns:max-content max-content minmax(0,1fr);gap:24px;align-items:end;min-height:56px}
.gs-looks{min-height:128px}
.gs-looks .gs-bar{font-size:12px;gap:4px}
.gs-looks .gs-bar>span{flex:1 1 100%;padding-left:8px}
.gs-looks.gs-empty button{visibility:hidden}
.gs-why{border:1px solid var(--gs-line);border-radius:8px;background:var(--gs-ground);padding:8px 12px;color:var(--gs-faint)}
.gs-detail .gs-bar{margin:0 0 0 -8px;gap:4px}
.gs-folds{border-top:1px solid var(--gs-line);padding-top:8px;display:grid;gap:4px}
.gs-code{overflow:auto;max-height:240px;margin:4px 0}
.gs-patterns>div{flex:1 1 240px;min-width:0;max-width:420px}
.gs-hint ul{list-style:none;margin:4px 0 0 -8px;padding:0}
.gs-run-strip{display:grid;grid-template-columns:minmax(0,1fr) max-content;gap:16px;align-items:start}
.gs-runs{display:flex;gap:8px;overflow-x:auto;padding:4px;min-height:148px;align-items:flex-start}
.gs-lab .gs-run{display:grid;gap:0;width:184px;padding:8px 11px;text-align:left;border:1px solid var(--gs-line);border-radius:8px;font-size:12px;line-height:16px;color:inherit}
.gs-run b,.gs-run span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.gs-run span{color:var(--gs-faint)}
.gs-run b+span{white-space:normal;height:32px}
.gs-run canvas{margin-bottom:8px;border-radius:2px}
.gs-lab .gs-run[aria-pressed=true]{border-color:var(--gs-accent);box-shadow:0 0 0 1px var(--gs-accent);color:inherit}
.gs-lab .gs-compared{border-style:dashed;border-color:var(--gs-ink)}
@media print{.gs-tools,.gs-editor,.gs-progress,.gs-models,.gs-hint ul,.gs-run-strip>.gs-small,.gs-folds>details:not([open]){display:none!important}.gs-heads{max-width:100%}.gs-detail,.gs-looks,.gs-lab .gs-messages,.gs-runs{min-height:0}.gs-looks.gs-empty .gs-bar>button{display:none!important}}
`;
