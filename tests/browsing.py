"""What tests ask a real browser; shared by the report's and the rating page's. The browser itself is in conftest.py."""

from __future__ import annotations

# Draws every character of the page in its element's font and compares the picture with that of a
# code point that no font has.
MISSING = """() => {
  const canvas = document.createElement("canvas"), size = 40;
  canvas.width = canvas.height = 2 * size;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const picture = (text, font) => {
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.font = `${size}px ${font}`;
    context.fillText(text, size / 2, 1.3 * size);
    return context.getImageData(0, 0, canvas.width, canvas.height).data.join();
  };
  const fonts = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    if (node.parentElement.closest("script")) continue;
    const font = getComputedStyle(node.parentElement).fontFamily;
    if (!fonts.has(font)) fonts.set(font, new Set());
    for (const character of node.textContent) if (!/\\s|\\p{Cf}/u.test(character)) fonts.get(font).add(character);
  }
  const missing = [];
  let seen = 0;
  for (const [font, characters] of fonts) {
    const box = picture("\\u{10FFFD}", font);
    for (const character of characters) { seen++; if (picture(character, font) === box) missing.push(character); }
  }
  return {missing, seen};
}"""
