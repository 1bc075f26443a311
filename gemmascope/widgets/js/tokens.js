// How a token is drawn. The table is that of gemmascope/tokens.py; a test says that they agree.

const SHOWN_AS = {
  " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u200b": "␣", "\u200e": "⟨lrm⟩", "\u200f": "⟨rlm⟩",
};

/** A token's text with every character visible: a space as ·, a newline as ⏎. */
export function shown(text) {
  return Array.from(text, (char) => SHOWN_AS[char] ?? char).join("");
}

/** A text cut to so many characters, with … in place of the rest. */
export function cut(text, most) {
  const chars = Array.from(text);
  return chars.length <= most ? text : chars.slice(0, Math.max(1, most - 1)).join("") + "…";
}
