"""How the daemon's page looks, measured: sideways scrolling, contrast, and what axe-core finds."""

from axe_playwright_python.sync_playwright import Axe
from pages import is_sideways

# The least contrast of any text with the ground behind it, as WCAG 2 defines it; controls at rest are exempt.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return /, 0\\)$/.test(colour) && node.parentElement ? ground(node.parentElement) : colour;
  };
  let worst = [21, ""];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.matches(":disabled, script, style")) continue;
    const style = getComputedStyle(node), ink = node.closest("svg") ? style.fill : style.color;
    const [high, low] = [light(ink), light(ground(node))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 200)];
  }
  return worst;
}"""


def check_looks(page):
    """No sideways scrolling, contrast, and nothing that axe-core complains of."""
    assert not is_sideways(page)
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def unfold(page):
    page.evaluate("document.querySelectorAll('main details').forEach((fold) => (fold.open = true))")
