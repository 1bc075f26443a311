// Numbers as colours and as text. The colours are ColorBrewer's RdBu and Blues, which colour-blind readers can tell apart.

const DIVERGING = {
  light: [[178, 24, 43], [239, 138, 98], [247, 247, 247], [103, 169, 207], [33, 102, 172]],
  dark: [[255, 110, 110], [168, 60, 70], [42, 44, 48], [48, 104, 160], [110, 180, 255]],
};
const SEQUENTIAL = {
  light: [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]],
  dark: [[32, 36, 42], [28, 66, 110], [40, 110, 180], [110, 175, 230], [225, 240, 255]],
};

/** Where a value is on a scale {kind, low, high, log?}, from 0 to 1, clipped; null for a missing number. */
export function fractionAt(value, scale) {
  if (value === null || Number.isNaN(value)) return null;
  const span = scale.high - scale.low || 1;
  const at = scale.log ? Math.log1p(Math.max(0, value - scale.low)) / Math.log1p(span) : (value - scale.low) / span;
  return Math.min(1, Math.max(0, at));
}

/** The colour of a value on a scale, [red, green, blue]; null for a missing number. dark: for a dark page. */
export function colour(value, scale, dark = false) {
  const at = fractionAt(value, scale);
  return at === null ? null : colourAt(at, scale, dark);
}

/** The colour at a fraction of a scale, 0 to 1; with scale.reverse, low values get the strong colours. */
export function colourAt(at, scale, dark = false) {
  const stops = (scale.kind === "diverging" ? DIVERGING : SEQUENTIAL)[dark ? "dark" : "light"];
  const x = (scale.reverse ? 1 - at : at) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(x));
  return mixed(stops[i], stops[i + 1], x - i);
}

/** The colour between two others, at a fraction of the way. */
export function mixed(from, to, at) {
  return from.map((c, k) => Math.round(c + (to[k] - c) * at));
}

/** [r, g, b] as CSS. */
export function css(rgb) {
  return `rgb(${rgb[0]},${rgb[1]},${rgb[2]})`;
}

/** How light a colour is, from 0 to 1, as WCAG 2 defines it. */
export function luminance(rgb) {
  const light = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2];
}

/** Black or white, whichever is legible on a colour. */
export function inkOn(rgb) {
  return luminance(rgb) > 0.18 ? "#000000" : "#ffffff";
}

/** A number as text: four digits, or `decimals` decimals, with a proper minus sign. */
export function format(value, sign = false, decimals = null) {
  if (value === null || value === undefined || Number.isNaN(value)) return "not run";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  let text;
  if (decimals !== null) text = size.toFixed(decimals);
  else if (size === 0) text = "0";
  else if (size >= 1e6 || size < 1e-4) text = size.toExponential(2);
  else text = String(Number(size.toPrecision(4)));
  return (value < 0 && Number(text) !== 0 ? "−" : sign && value > 0 ? "+" : "") + text;
}

/** A share of one as a percentage. */
export function percent(p) {
  return p >= 0.001 ? `${(100 * p).toFixed(1)}%` : "<0.1%";
}

/** A number without float32's rounding: 0 if it is below a millionth of the largest number on its scale. */
export function rounded(value, scale) {
  return Math.abs(value) < 1e-6 * Math.max(Math.abs(scale.low), Math.abs(scale.high)) ? 0 : value;
}

/** The numbers beside a colour bar so many pixels high: both ends, to three digits, and round numbers that have room. */
export function barTicks(scale, height) {
  const short = (value) => Number(value.toPrecision(3));
  const kept = [short(scale.high), short(scale.low)];
  const inner = ticksOf(scale, Math.max(2, Math.floor(height / 34)));
  const isFar = (a, b) => Math.abs(fractionAt(a, scale) - fractionAt(b, scale)) * height >= 15;
  for (const tick of [...inner.filter((one) => one === 0), ...inner]) if (kept.every((other) => isFar(tick, other))) kept.push(tick);
  return kept.sort((a, b) => a - b);
}

/** The labels of a scale: round numbers, or powers of ten on a logarithmic scale. */
export function ticksOf(scale, n) {
  if (!scale.log) return ticks(scale.low, scale.high, n);
  const values = [scale.low];
  for (let step = 1; step <= scale.high - scale.low; step *= 10) values.push(scale.low + step);
  const every = Math.ceil(values.length / Math.max(2, n));
  return values.filter((_, i) => i % every === 0);
}

/** About n round numbers between low and high. */
export function ticks(low, high, n = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / n;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const values = [];
  for (let i = first; i * step <= high + step * 1e-6; i++) values.push(Number((i * step).toPrecision(12)));
  return values;
}
