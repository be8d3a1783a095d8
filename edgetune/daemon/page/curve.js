"use strict";
// The loss curve.

function lossCurve() {
  const svg = draw("svg", { role: "img" }), held = el("span", { class: "key held", text: "held out" });
  const legend = el("figcaption", { class: "row small soft" }, el("span", { class: "key", text: "training" }), held);
  const figure = el("figure", { hidden: true }, svg, legend);
  let train = [], measured = [];
  new ResizeObserver(() => svg.clientWidth && plot(svg, train, measured)).observe(svg);
  figure.show = (lines) => {
    const found = (kind) => lines.filter((line) => line.event === kind && Number.isFinite(line.loss));
    const of = (kind) => [...new Map(found(kind).map((line) => [line.step, line.loss]))] // after a stop some are repeated
      .sort((a, b) => a[0] - b[0]);
    [train, measured] = [thin(of("step"), 150), of("eval")];
    figure.hidden = train.length + measured.length === 0;
    held.hidden = measured.length === 0;
    if (svg.clientWidth) plot(svg, train, measured);
  };
  return figure;
}

/** At most `most` points: means of neighbours. */
function thin(points, most) {
  const many = Math.ceil(points.length / most), means = [];
  for (let i = 0; i < points.length; i += many) {
    const part = points.slice(i, i + many);
    means.push([part[part.length - 1][0], part.reduce((sum, point) => sum + point[1], 0) / part.length]);
  }
  return means;
}

function plot(svg, train, held) {
  const wide = svg.clientWidth, high = 160, all = [...train, ...held];
  const left = 36, right = wide - 8, top = 24, low = high - 20;
  const last = Math.max(...all.map(([at]) => at), 1), [step, ticks] = scale(Math.max(...all.map(([, loss]) => loss)));
  const x = (at) => left + (at / last) * (right - left), y = (loss) => low - (loss / (step * ticks)) * (low - top);
  const path = (points) => points.map(([at, loss], i) => `${i ? "L" : "M"}${x(at)} ${y(loss)}`).join("");
  const marks = Array.from({ length: ticks + 1 }, (_, i) => i * step);
  const words = [`training ${spoken(train)}`, ...(held.length ? [`held out ${spoken(held)}`] : [])].join(", ");
  const text = (x, y, anchor, text) => draw("text", { x, y, "text-anchor": anchor }, text);
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  svg.setAttribute("aria-label", `Loss by step: ${words}`);
  svg.replaceChildren(
    ...marks.map((loss) => draw("path", { class: "grid", d: `M${left} ${y(loss)}H${right}` })),
    ...marks.map((loss) => text(left - 6, y(loss) + 4, "end", String(+loss.toFixed(3)))),
    text(left - 6, 10, "end", "loss"), text(left, high - 4, "start", "step 0"),
    text(right, high - 4, "end", `step ${last}`),
    draw("path", { class: "train", d: path(train) }), draw("path", { class: "held", d: path(held) }),
    ...held.map(([at, loss]) => draw("circle", { class: "dot", cx: x(at), cy: y(loss), r: 3 })));
}

/** A round distance of grid lines, and how many of them reach up to `most`. */
function scale(most) {
  const power = 10 ** Math.floor(Math.log10(most / 4 || 1));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((distance) => distance * 4 >= most);
  return [step, Math.max(Math.ceil(most / step), 1)];
}

function spoken(points) {
  if (!points.length) return "not measured yet";
  return `from ${number(points[0][1])} to ${number(points[points.length - 1][1])}`;
}
