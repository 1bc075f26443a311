"""Stand-ins for VS Code and Colab: pages that host our widgets and views as their public sources say that these do.

A widget lives in this process. Its comm is a `StandInComm`, whose messages a page gets as the front end would give them:

- VS Code has one webview for all outputs, with a content security policy, its own CSS variables and none of JupyterLab's.
  All messages arrive, late and in batches. Bytes are DataViews. The document may lack focus, the clipboard refuses, and a
  file is saved only from a link whose click reaches the page's body.
- Colab has a frame of another origin for each cell, and fetches a model by its state as it was when the cell made it. A
  frame gets what the kernel sends in answer to the frame's own messages and nothing else: what a thread or another cell
  sends is lost. Bytes are Uint8Arrays.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comm
import pytest
from comm.base_comm import BaseComm

# What both pages share: a model with the interface that anywidget gives to a module, and bytes put back into messages.
_MODEL = """
function bytesOf(text, Kind) {
  const raw = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  return Kind === DataView ? new DataView(raw.buffer) : raw;
}
function withBuffers(data, buffers, Kind) {
  (data.buffer_paths ?? []).forEach((path, i) => {
    let place = data.state;
    for (const key of path.slice(0, -1)) place = place[key];
    place[path.at(-1)] = bytesOf(buffers[i], Kind);
  });
  return data;
}
class Model {
  constructor(state, send) {
    Object.assign(this, { state, listeners: [], send });
  }
  get(name) { return this.state[name]; }
  on(name, listener) { this.listeners.push([name, listener]); }
  off(name, listener) { this.listeners = this.listeners.filter(([n, l]) => n !== name || l !== listener); }
  tell(name, ...values) { for (const [n, listener] of [...this.listeners]) if (n === name) listener(...values); }
  receive({ data, buffers }, Kind) {
    if (data.method === "custom") return this.tell("msg:custom", data.content, []);
    const { state } = withBuffers(data, buffers, Kind);
    Object.assign(this.state, state);
    for (const name of Object.keys(state)) this.tell(`change:${name}`);
  }
}
async function draw(model, el) {
  const url = URL.createObjectURL(new Blob([model.get("_esm")], { type: "text/javascript" }));
  const module = await import(url);
  URL.revokeObjectURL(url);
  await module.default.render({ model, el });
}
"""

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; connect-src https: blob:"
)

_VSCODE = """<!doctype html><html style="--vscode-editor-background:#1f1f1f;--vscode-editor-foreground:#cccccc;
--vscode-textLink-foreground:#4daafc;--vscode-font-family:sans-serif;--vscode-font-size:13px"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="POLICY">
<style>body{background-color:transparent;color:var(--vscode-editor-foreground);font-family:var(--vscode-font-family);
font-size:var(--vscode-font-size);margin:0;padding:0 20px}html{background:#1f1f1f}</style></head>
<body class="vscode-dark" data-vscode-theme-kind="vscode-dark"><div id="container"></div><script>
MODEL
document.hasFocus = () => false;
Object.defineProperty(navigator, "clipboard", { value: { writeText: async () => { throw new Error("not allowed"); } } });
window.saved = [];
document.body.addEventListener("click", async (event) => {
  for (const node of event.composedPath()) {
    if (!(node instanceof HTMLAnchorElement) || !node.href) continue;
    event.preventDefault();
    const { href, download } = node;
    window.saved.push([download, await (await fetch(href)).text()]);
    return;
  }
});
const models = {};
window.show = async (id, html) => {
  const output = document.createElement("div");
  output.className = "output";
  document.querySelector("#container").append(output);
  if (html !== null) {
    output.innerHTML = html;
    for (const script of output.querySelectorAll("script")) {
      const again = document.createElement("script");
      again.type = script.type;
      again.text = script.textContent;
      output.appendChild(again).remove();
    }
  } else {
    const opened = JSON.parse(await window.kernelState(id));
    const model = new Model(withBuffers(opened.data, opened.buffers, DataView).state, (content) => {
      window.kernelSend(id, JSON.stringify(content));
    });
    models[id] = model;
    await draw(model, output);
  }
};
let received = 0;
async function pull() {
  const batch = JSON.parse(await window.kernelMessages(received));
  received += batch.length;
  for (const message of batch) models[message.comm]?.receive(message, DataView);
  setTimeout(pull, 250);
}
pull();
</script></body></html>"""

_COLAB = """<!doctype html><html theme="dark"><head><meta charset="utf-8">
<style>html{background:#383838;color:#d5d5d5}body{margin:0;font-family:Roboto,sans-serif}</style></head><body>
<div id="output-area"></div><script>
MODEL
window.google = { colab: { kernel: { accessAllowed: true } } };
window.show = async (id, html) => {
  const area = document.querySelector("#output-area");
  if (html !== null) return area.append(document.createRange().createContextualFragment(html));
  const opened = JSON.parse(await window.kernelState(id));
  const model = new Model(withBuffers(opened.data, opened.buffers, Uint8Array).state, async (content) => {
    const answers = JSON.parse(await window.kernelSend(id, JSON.stringify(content)));
    for (const message of answers) model.receive(message, Uint8Array);
  });
  await draw(model, area);
};
</script></body></html>"""


@dataclass
class Message:
    """What a comm published. in_answer: whether that was in the thread that handles the front end's messages."""

    comm: str
    kind: str
    data: Any
    buffers: list[bytes]
    in_answer: bool

    def as_json(self) -> dict[str, Any]:
        buffers = [base64.b64encode(one).decode() for one in self.buffers]
        return {"comm": self.comm, "data": self.data, "buffers": buffers}


@dataclass
class Kernel:
    """The comms of this process's widgets, and what they published, in order."""

    comms: dict[str, StandInComm] = field(default_factory=dict)
    published: list[Message] = field(default_factory=list)
    answering: int | None = None  # the thread that handles a message of a page
    loses: Callable[[Any], bool] = lambda data: False  # whether a message never arrives

    def opened(self, widget_id: str) -> Message:
        return next(one for one in self.published if one.comm == widget_id and one.kind == "comm_open")

    def handle(self, widget_id: str, content: Any) -> list[Message]:
        """Give a widget a message of its page. What it published meanwhile in the same thread."""
        before, self.answering = len(self.published), threading.get_ident()
        try:
            self.comms[widget_id].handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})
        finally:
            self.answering = None
        return [one for one in self.published[before:] if one.in_answer and one.comm == widget_id and one.kind == "comm_msg"]


class StandInComm(BaseComm):
    """A comm that notes what it sends."""

    kernel: Kernel

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any) -> None:
        self.kernel.comms[self.comm_id] = self
        in_answer = threading.get_ident() == self.kernel.answering
        data = json.loads(json.dumps(data or {}))  # as it is now
        if self.kernel.loses(data):
            return
        bytes_of = [bytes(one) for one in buffers or ()]
        self.kernel.published.append(Message(self.comm_id, msg_type, data, bytes_of, in_answer))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Widgets that are made now have comms that stand-ins read."""
    made = Kernel()
    monkeypatch.setattr(comm, "create_comm", type("Comm", (StandInComm,), {"kernel": made}))
    return made


class FrontEnd:
    """A stand-in in a browser page. outputs: the page or frames that hold what was shown, in order."""

    name = ""

    def __init__(self, page: Any, kernel: Kernel, folder: Path) -> None:
        self.page, self.kernel, self.folder = page, kernel, folder
        self.outputs: list[Any] = []
        page.expose_function("kernelState", lambda name: json.dumps(kernel.opened(name).as_json()))
        page.expose_function("kernelSend", self._send)
        page.expose_function("kernelMessages", self._messages)

    def show(self, value: Any) -> Any:
        """Show a lab's live page, or a view. The page or frame that holds it."""
        html = value._repr_html_() if hasattr(value, "_repr_html_") else None
        live = None if html is not None else next(one.model_id for one in value.widget.children if hasattr(one, "_esm"))
        output = self._output()
        output.evaluate("([id, html]) => { window.show(id, html); }", [live, html])
        self.outputs.append(output)
        return output

    def saved(self, act: Callable[[], None]) -> tuple[str, str]:
        """The file that the browser or the editor saves after a click, as its name and text."""
        raise NotImplementedError

    def _output(self) -> Any:
        raise NotImplementedError

    def _send(self, name: str, content: str) -> str:
        return json.dumps([one.as_json() for one in self.kernel.handle(name, json.loads(content))])

    def _messages(self, after: int) -> str:
        return json.dumps([one.as_json() for one in self.kernel.published[int(after) :]])

    def _write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text.replace("POLICY", _POLICY).replace("MODEL", _MODEL), encoding="utf-8")
        return path.as_uri()


class VSCode(FrontEnd):
    name = "VS Code"

    def _output(self) -> Any:
        if not self.outputs:
            self.page.goto(self._write("webview.html", _VSCODE))
        return self.page

    def saved(self, act: Callable[[], None]) -> tuple[str, str]:
        act()
        self.page.wait_for_function("window.saved.length > 0")
        name, text = self.page.evaluate("window.saved.pop()")
        return name, text


class Colab(FrontEnd):
    name = "Colab"

    def saved(self, act: Callable[[], None]) -> tuple[str, str]:
        with self.page.expect_download() as saving:
            act()
        return saving.value.suggested_filename, Path(saving.value.path()).read_text(encoding="utf-8")

    def _output(self) -> Any:
        if not self.outputs:
            self.page.goto(self._write("notebook.html", "<!doctype html><html><body></body></html>"))
        name = f"cell-{len(self.outputs)}"
        self.page.evaluate(
            """([name, html]) => new Promise((loaded) => {
                const frame = document.createElement("iframe");
                Object.assign(frame, { name, srcdoc: html, onload: loaded });
                frame.sandbox = "allow-scripts allow-downloads";
                frame.style = "width:100%;height:1200px;border:0";
                document.body.append(frame);
            })""",
            [name, _COLAB.replace("MODEL", _MODEL)],
        )
        return self.page.locator(f"iframe[name={name}]").element_handle().content_frame()


FRONT_ENDS: Sequence[type[FrontEnd]] = (VSCode, Colab)
