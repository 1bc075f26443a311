// What the line below the text of an attention view says: the strongest keys of a query, or queries of a key.

import { charactersOf, legible } from "../tokens.js";

/**
 * The places of a line, the strongest first: [{text, value, first, last}]. values: of each token, 0 where there is none; names:
 * what tokens are called; most: how many places. The bytes of a character are one place, with their sum, or their largest value
 * if largest: what several queries look at cannot be added up.
 */
export function strongestPlaces({ tokens, names, values, unseen, most, largest = false }) {
  const places = [];
  charactersOf(tokens).forEach((character, i) => {
    if (unseen(i)) return;
    if (!character || places.at(-1)?.first !== i - character.nth) places.push({ text: character ? legible(character.text) : names[i], value: values[i], first: character ? i - character.nth : i, last: i });
    else {
      const place = places.at(-1);
      place.last = i;
      if (!largest) place.value += values[i];
      else if (Math.abs(values[i]) > Math.abs(place.value)) place.value = values[i];
    }
  });
  return places.sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, most);
}

/** A place of a text in words: "·the (3)", "中 (5 to 7)". */
export function placeText({ text, first, last }) {
  return `${text} (${first === last ? first : `${first} to ${last}`})`;
}

/** A token in words, a byte with its character: "中, byte 2 of 3 (6)". */
export function tokenText(tokens, names, i) {
  const character = charactersOf(tokens)[i];
  return `${character ? `${legible(character.text)}, byte ${character.nth + 1} of ${character.of}` : names[i]} (${i})`;
}
