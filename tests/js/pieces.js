// A page with every shared piece of the views, which tests/test_shared_pieces.py draws. It defines show(el), and what is done
// with the pieces is written down in el.dataset.

function show(el) {
  const root = card(el);
  const said = (name) => (value) => (el.dataset[name] = String(value));
  const tokens = ["<bos>", "When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave", " a", " drink", " to"];
  const place = wordMenu("what is patched", [{ value: "resid", label: "residual stream", word: "the residual stream" }, { value: "attn", label: "attention output" }], "resid", said("place"));
  const by = wordMenu("axes", ["layer × position", "layer"], "layer", said("axes"));
  const way = ruler({ corrupt: -11.61, clean: 11.86, now: 5 });
  const menu = exportMenu([{ label: "Copy Python", act: () => said("done")("python") }, { label: "CSV", act: () => said("done")("csv"), disabled: true }, { label: "PNG", act: () => said("done")("png") }]);
  strip(root, { sentence: ["Patch ", place.element, " by ", by.element], aside: [way.element], end: [primary("Run all exactly · 90 cells · 0.2 s", () => said("done")("all")), menu.element] });
  const { left, right } = panes(root);
  const bus = tokenBus(tokens);
  const chips = tokens.map((token, pos) => {
    const chip = make("button", { type: "button", class: "gs-chip", "data-pos": String(pos) }, legible(token));
    bus.wire(chip, pos);
    return chip;
  });
  left.append(make("div", { class: "gs-chips" }, ...chips));
  const spec = { title: "", rows: ["0", "1 ◆"].map((label) => ({ label })), columns: tokens.map((label) => ({ label, token: true })), row_axis: "layer", unit: "", scale: { kind: "diverging", low: -23.5, high: 23.5 } };
  const values = Float32Array.from({ length: 30 }, (_, i) => (i === 14 || i === 25 ? 23.5 : i === 3 ? -9 : i === 4 ? 9.54e-7 : (i % 7) / 9));
  const marks = Uint8Array.from({ length: 30 }, (_, i) => (i % 11 === 7 ? 0 : i % 5 === 2 ? 1 : 2));
  grid(left.appendChild(make("div")), spec, { values, marks });
  right.append(
    make("div", { class: "gs-head" }, "Layer 2 · position 10"), make("div", { class: "gs-big" }, "100%"), make("div", { class: "gs-faint" }, "of the gap restored"),
    bars([{ name: "·Mary", value: 0.998, before: 0.0001, token: true }, { name: "·John", value: 0.0002, before: 0.997, token: true, negative: true }]).element,
    bars([{ name: "head 2.3", value: 1.5 }, { name: "head 3.0", value: -0.75 }, { name: "head 1.1", value: 0 }], { most: 2, signed: true }).element,
  );
  const weights = [0.02, 0, 0.1, 0, 0.03, 0, 0, 0, 0, 0, 0.82, 0.01, 0.01, 0, 0.01];
  const picture = arcs(null, { bus });
  right.append(picture.element);
  picture.update({ tokens, query: 14, weights });
  const long = Array.from({ length: 150 }, (_, i) => ` word${i}`);
  const far = arcs(null);
  right.append(far.element);
  far.update({ tokens: long, query: 149, weights: long.map((_, i) => (i === 70 ? 0.6 : 0.4 / 149)) });
  below(root, "Runs");
  const painted = () => paint(root, theme());
  onTheme(painted);
  painted();
  el.dataset.ready = "1";
}
