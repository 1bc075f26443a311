// Bytes as numbers: what a live page's traits hold.

const KINDS = { float32: Float32Array, uint16: Uint16Array, uint8: Uint8Array };

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
