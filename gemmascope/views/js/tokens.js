// How tokens are drawn. The table is the same as in Python, which a test checks.

const SHOWN_AS = {
  " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u200b": "␣", "\u200e": "⟨lrm⟩", "\u200f": "⟨rlm⟩",
};
// Control characters, direction marks and unusual spaces: what Python calls not printable.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;
// Invisible, but the text around them depends on them: emoji families, and letters of Indic scripts.
const JOINERS = ["\u200c", "\u200d"];

/** A token's text with spaces and line breaks visible: a space as ·, a newline as ⏎. */
export function visibleText(text) {
  return Array.from(text, (char) => SHOWN_AS[char] ?? char).join("");
}

/** Text in which characters that are invisible or change the direction are spelled out, as \x1b or \u202e. */
export function legibleLine(text) {
  const joined = Array.from(text).length > 1;
  return text.replace(UNSEEN, (char) => (joined && JOINERS.includes(char) ? char : escaped(char)));
}

/** Text of several lines: line breaks and tabs stay, other invisible characters are spelled out. */
export function readable(text) {
  return text.split(/([\n\t])/).map((part) => (part === "\n" || part === "\t" ? part : legibleLine(part))).join("");
}

/** A token as it is drawn: with nothing invisible, and nothing that moves its neighbours. */
export function legible(text) {
  return legibleLine(visibleText(text));
}

function escaped(char) {
  const code = char.codePointAt(0);
  const [mark, digits] = code < 256 ? ["\\x", 2] : code < 65536 ? ["\\u", 4] : ["\\U", 8];
  return mark + code.toString(16).padStart(digits, "0");
}

/** A text cut to so many characters, with … for the rest. */
export function cut(text, most) {
  const chars = Array.from(text);
  return chars.length <= most ? text : chars.slice(0, Math.max(1, most - 1)).join("") + "…";
}

/** A text cut to so many pixels, by measure. */
export function fitted(text, width, measure) {
  let n = Array.from(text).length;
  if (measure(text) <= width) return text;
  while (n > 1 && measure(cut(text, n)) > width) n -= 1;
  return cut(text, n);
}

/** A text in at most so many lines of so many pixels, broken between words; what is left over is cut. */
export function wrapped(text, width, measure, most = 2) {
  const lines = [];
  let rest = text.split(" ");
  while (rest.length && lines.length < most) {
    let n = lines.length === most - 1 ? rest.length : 1;
    while (n < rest.length && measure(rest.slice(0, n + 1).join(" ")) <= width) n += 1;
    lines.push(fitted(rest.slice(0, n).join(" "), width, measure));
    rest = rest.slice(n);
  }
  return lines;
}

const BYTE = /^<0x([0-9A-F]{2})>$/;
const MOST_BYTES = 4; // of a character, in UTF-8

/**
 * Which tokens are the bytes of one character: for each token {text, nth, of}, or null. text: the character; nth: which of its
 * `of` tokens this is, from 0. Bytes that make no character are none. texts: tokens that follow each other.
 */
export function charactersOf(texts) {
  const bytes = texts.map((text) => BYTE.exec(text)?.[1]).map((digits) => (digits ? parseInt(digits, 16) : null));
  const found = texts.map(() => null);
  for (let i = 0; i < bytes.length; i++) {
    if (bytes[i] === null || bytes[i] < 0xc2) continue; // no first byte of a longer character
    const of = bytes[i] < 0xe0 ? 2 : bytes[i] < 0xf0 ? 3 : MOST_BYTES;
    const part = bytes.slice(i, i + of);
    if (part.length < of || part.includes(null)) continue;
    let text;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(part));
    } catch {
      continue; // broken
    }
    for (let nth = 0; nth < of; nth++) found[i + nth] = { text, nth, of };
    i += of - 1;
  }
  return found;
}

/** Of which character a token is a byte, for its tooltip: "byte 2 of 3 of 中"; "" for other tokens. */
export function byteText(character) {
  return character ? `byte ${character.nth + 1} of ${character.of} of ${legible(character.text)}` : "";
}
