// Which columns of a long grid fold: those before the first token that differs. Nothing here draws.

// Prompts of more columns fold their stretch of equal tokens if that has at least so many.
const FOLDS_FROM = 40, SHORTEST_FOLD = 12, KEPT_BEFORE = 3;

/** The columns to fold, [first, last], before the first token that differs; null for none. alike: how many there are. */
export function foldOf(columns, alike) {
  const last = alike - 1 - KEPT_BEFORE;
  return columns > FOLDS_FROM && last >= SHORTEST_FOLD ? [1, last] : null;
}

/**
 * A grid with a stretch of its columns folded into one that says how many they are. fold: [first, last], or null.
 * Returns {spec, data(arrays), shown(column), whole(column)}: arrays with their columns folded, the column that shows another,
 * and the first column that a shown one stands for.
 */
export function folded(spec, fold) {
  const same = (column) => column;
  if (!fold) return { spec, data: same, shown: same, whole: same };
  const [first, last] = fold;
  const hidden = last - first;
  const total = spec.columns.length;
  const label = { label: `… ${hidden + 1} alike`, hint: `${first} to ${last}: ${hidden + 1} tokens alike`, folded: hidden + 1 };
  const why = "alike in both prompts up to here: 0 without a run";
  const whole = (column) => (column <= first ? column : column + hidden);
  const pick = (values) => {
    const rows = values.length / total;
    const width = total - hidden;
    return values.constructor.from({ length: rows * width }, (_, i) => values[Math.floor(i / width) * total + whole(i % width)]);
  };
  return {
    spec: { ...spec, columns: [...spec.columns.slice(0, first), label, ...spec.columns.slice(last + 1)], outside: (_, column) => (column === first ? why : null) },
    data: (arrays) => Object.fromEntries(Object.entries(arrays).map(([name, values]) => [name, values?.length ? pick(values) : values])),
    shown: (column) => (column < first ? column : column <= last ? first : column - hidden),
    whole,
  };
}
