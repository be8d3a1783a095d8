"use strict";
// Curves of losses and rewards.

/** valueOf: what is shown of a line of events; no number where there is none. */
function curve(word, valueOf) {
  const svg = draw("svg", { role: "img" }), held = el("span", { class: "key held", text: "held out" });
  const legend = el("figcaption", { class: "row small soft" }, el("span", { class: "key", text: "training" }), held);
  const figure = el("figure", { hidden: true }, svg, legend);
  let train = [], measured = [];
  new ResizeObserver(() => svg.clientWidth && plot(svg, word, train, measured)).observe(svg);
  figure.show = (lines) => {
    const found = (kind) => lines.filter((line) => line.event === kind && Number.isFinite(valueOf(line)));
    const of = (kind) => [...new Map(found(kind).map((line) => [line.step, valueOf(line)]))]
      .sort((a, b) => a[0] - b[0]); // after a stop some are repeated
    [train, measured] = [thin(of("step"), 150), of("eval")];
    figure.hidden = train.length + measured.length === 0;
    held.hidden = measured.length === 0;
    if (svg.clientWidth) plot(svg, word, train, measured);
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

/** The scale begins at 0, or below where a value does. */
function plot(svg, word, train, held) {
  const wide = svg.clientWidth, high = 160, all = [...train, ...held], values = all.map(([, value]) => value);
  const left = 36, right = wide - 8, top = 24, low = high - 20;
  const last = Math.max(...all.map(([at]) => at), 1), most = Math.max(...values, 0);
  const step = scale(most - Math.min(...values, 0)), first = Math.floor(Math.min(...values, 0) / step);
  const ticks = Math.max(Math.ceil(most / step) - first, 1);
  const x = (at) => left + (at / last) * (right - left);
  const y = (value) => low - ((value / step - first) / ticks) * (low - top);
  const path = (points) => points.map(([at, value], i) => `${i ? "L" : "M"}${x(at)} ${y(value)}`).join("");
  const marks = Array.from({ length: ticks + 1 }, (_, i) => (first + i) * step);
  const words = [`training ${spoken(train)}`, ...(held.length ? [`held out ${spoken(held)}`] : [])].join(", ");
  const text = (x, y, anchor, text) => draw("text", { x, y, "text-anchor": anchor }, text);
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  svg.setAttribute("aria-label", `${sentence(word).slice(0, -1)} by step: ${words}`);
  svg.replaceChildren(
    ...marks.map((value) => draw("path", { class: "grid", d: `M${left} ${y(value)}H${right}` })),
    ...marks.map((value) => text(left - 6, y(value) + 4, "end", String(+value.toFixed(3)))),
    text(left - 6, 10, "end", word), text(left, high - 4, "start", "step 0"),
    text(right, high - 4, "end", `step ${last}`),
    draw("path", { class: "train", d: path(train) }), draw("path", { class: "held", d: path(held) }),
    ...held.map(([at, value]) => draw("circle", { class: "dot", cx: x(at), cy: y(value), r: 3 })));
}

/** A round distance of grid lines, of which four reach over `most`. */
function scale(most) {
  const power = 10 ** Math.floor(Math.log10(most / 4 || 1));
  return [1, 2, 5, 10].map((factor) => factor * power).find((distance) => distance * 4 >= most);
}

function spoken(points) {
  if (!points.length) return "not measured yet";
  return `from ${number(points[0][1])} to ${number(points[points.length - 1][1])}`;
}
