// How a token is drawn. The table is that of gemmascope/tokens.py; a test says that they agree.

const SHOWN_AS = {
  " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u200b": "␣", "\u200e": "⟨lrm⟩", "\u200f": "⟨rlm⟩",
};
// Controls, marks of direction and spaces that look like another, all of which Python calls not printable.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;
// Invisible, but what is round them reads otherwise without them: families of emoji, and letters of Indic scripts.
const JOINERS = ["\u200c", "\u200d"];

/** A token's text with every character of the table visible: a space as ·, a newline as ⏎. */
export function shown(text) {
  return Array.from(text, (char) => SHOWN_AS[char] ?? char).join("");
}

/** Text in which what nobody sees, or what turns its neighbours round, is spelled out as \x1b or \u202e. */
export function spelled(text) {
  const joined = Array.from(text).length > 1;
  return text.replace(UNSEEN, (char) => (joined && JOINERS.includes(char) ? char : escaped(char)));
}

/** Text of several lines as a page shows it: lines stay lines, all else that nobody sees is spelled out. */
export function readable(text) {
  return text.split(/([\n\t])/).map((part) => (part === "\n" || part === "\t" ? part : spelled(part))).join("");
}

/** A token as it is drawn: nothing in it is invisible or moves what is beside it. */
export function legible(text) {
  return spelled(shown(text));
}

function escaped(char) {
  const code = char.codePointAt(0);
  const [mark, digits] = code < 256 ? ["\\x", 2] : code < 65536 ? ["\\u", 4] : ["\\U", 8];
  return mark + code.toString(16).padStart(digits, "0");
}

/** A text cut to so many characters, with … in place of the rest. */
export function cut(text, most) {
  const chars = Array.from(text);
  return chars.length <= most ? text : chars.slice(0, Math.max(1, most - 1)).join("") + "…";
}

/** A text cut so that it is at most so wide, as measure has it. */
export function fitted(text, width, measure) {
  let n = Array.from(text).length;
  if (measure(text) <= width) return text;
  while (n > 1 && measure(cut(text, n)) > width) n -= 1;
  return cut(text, n);
}
