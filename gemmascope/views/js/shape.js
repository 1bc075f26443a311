// SVG elements.

let namespace = null;

/** An SVG element with attributes and children. */
export function shape(tag, attributes = {}, ...children) {
  // Asked of the parser, because the module holds no address, not even this one.
  namespace ??= new DOMParser().parseFromString("<svg></svg>", "text/html").body.firstChild.namespaceURI;
  const element = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
