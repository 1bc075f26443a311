// Arrays as Python packed them for a static page: {dtype, shape, scale, data}. data: raw deflate in base64, or the bytes.

import { numbers } from "./arrays.js";

/** The numbers of a packed array, times its scale if it has one. A promise, as browsers decompress in the background. */
export async function unpack(packed) {
  const bytes = typeof packed.data === "string" ? await inflate(packed.data) : packed.data;
  return numbers(bytes, packed.dtype, packed.scale);
}

/** All of a view's packed arrays, by name. A promise. */
export async function unpacked(arrays) {
  const names = Object.keys(arrays);
  const all = await Promise.all(names.map((name) => unpack(arrays[name])));
  return Object.fromEntries(names.map((name, i) => [name, all[i]]));
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A full pattern [q][k] from the values that queries see: keys max(0, q - window + 1) to q, one query after the other. */
export function fullPattern(rows, n, window) {
  const full = new Float32Array(n * n);
  let at = 0;
  for (let q = 0; q < n; q++) for (let k = Math.max(0, q - window + 1); k <= q; k++) full[q * n + k] = rows[at++];
  return full;
}

/** How many values that is. */
export function countVisible(n, window) {
  let length = 0;
  for (let q = 0; q < n; q++) length += Math.min(window, q + 1);
  return length;
}
