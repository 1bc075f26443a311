([selector, least]) => {
  const parts = (css) => css.match(/[\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(rgb[i] / 255), 0);
  const ground = (el) => {
    for (; el; el = el.parentElement) {
      const colour = parts(getComputedStyle(el).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const hasText = (el) => [...el.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const isVisible = (el) => el.offsetParent && !el.disabled && !["STYLE", "OPTION"].includes(el.tagName) && hasText(el);
  return [...document.querySelectorAll(selector)]
    .filter(isVisible)
    .map((el) => [el.textContent.slice(0, 30), ratio(light(parts(getComputedStyle(el).color)), light(ground(el)))])
    .filter(([, contrast]) => contrast < least);
}
