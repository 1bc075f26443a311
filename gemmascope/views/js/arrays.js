// Arrays as Python packed them: {dtype, shape, scale, data}. data: raw deflate in base64, or the bytes themselves.

const KINDS = { float32: Float32Array, uint16: Uint16Array, uint8: Uint8Array };

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

/** Bytes (a DataView, a buffer or an array of bytes) as numbers of a type. */
export function numbers(bytes, dtype, scale = 1) {
  const buffer = bytes.buffer ?? bytes;
  const start = bytes.byteOffset ?? 0;
  const length = bytes.byteLength;
  const Kind = KINDS[dtype];
  // Copied, because a typed array must begin at a multiple of its numbers' size and bytes may begin anywhere.
  const raw = new Kind(buffer.slice(start, start + length));
  return scale === 1 ? raw : Float32Array.from(raw, (n) => n * scale);
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
