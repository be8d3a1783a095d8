"use strict";
// Curves of losses and rewards.

const STEPS = { along: "step", first: 0, names: ["training", "held out"] };

/** valueOf: what is shown of a line of events; no number where there is none. axis: the unit of the horizontal axis,
 *  where it begins, and what the two lines are. */
function curve(word, valueOf, axis = STEPS) {
  const svg = draw("svg", { role: "img" }), held = el("span", { class: "key held", text: axis.names[1] });
  const legend = el("figcaption", { class: "row small soft" }, el("span", { class: "key", text: axis.names[0] }), held);
  const figure = el("figure", { hidden: true }, svg, legend);
  let train = [], measured = [];
  new ResizeObserver(() => svg.clientWidth && plot(svg, word, train, measured, axis)).observe(svg);
  figure.show = (lines) => {
    const found = (kind) => lines.filter((line) => line.event === kind && Number.isFinite(valueOf(line)));
    const of = (kind) => [...new Map(found(kind).map((line) => [line.step, valueOf(line)]))]
      .sort((a, b) => a[0] - b[0]); // after a stop some are repeated
    [train, measured] = [thin(of("step"), 150), of("eval")];
    figure.hidden = train.length + measured.length === 0;
    held.hidden = measured.length === 0;
    if (svg.clientWidth) plot(svg, word, train, measured, axis);
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

const WIDE = 20; // from this ratio of the largest value to the smallest on, the scale is logarithmic

function plot(svg, word, train, held, { along, first, names }) {
  const wide = svg.clientWidth, high = 160, all = [...train, ...held];
  const left = 44, right = wide - 8, top = 24, low = high - 20;
  const last = Math.max(...all.map(([at]) => at), first + 1), { ticks, place, kind } = scaleOf(all.map(([, value]) => value));
  const x = (at) => left + ((at - first) / (last - first)) * (right - left), y = (value) => low - place(value) * (low - top);
  const path = (points) => points.map(([at, value], i) => `${i ? "L" : "M"}${x(at)} ${y(value)}`).join("");
  const words = [`${names[0]} ${spoken(train)}`, ...(held.length ? [`${names[1]} ${spoken(held)}`] : [])].join(", ");
  const text = (x, y, anchor, text) => draw("text", { x, y, "text-anchor": anchor }, text);
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  svg.setAttribute("aria-label", `${sentence(word).slice(0, -1)} by ${along}${kind}: ${words}`);
  svg.replaceChildren(
    ...ticks.map((value) => draw("path", { class: "grid", d: `M${left} ${y(value)}H${right}` })),
    ...ticks.map((value) => text(left - 6, y(value) + 4, "end", String(+value.toPrecision(3)))),
    text(left - 6, 10, "end", word), text(left, high - 4, "start", `${along} ${first}`),
    text(right, high - 4, "end", `${along} ${last}`),
    draw("path", { class: "train", d: path(train) }), draw("path", { class: "held", d: path(held) }),
    ...held.map(([at, value]) => draw("circle", { class: "dot", cx: x(at), cy: y(value), r: 3 })));
}

/** Grid lines, and where between the lowest (0) and the highest (1) of them a value lies. */
function scaleOf(values) {
  const most = Math.max(...values), least = Math.min(...values);
  if (least > 0 && most / least >= WIDE) return logarithmic(Math.floor(Math.log10(least)), Math.ceil(Math.log10(most)));
  const step = distance(Math.max(most, 0) - Math.min(least, 0)), first = Math.floor(Math.min(least, 0) / step);
  const count = Math.max(Math.ceil(Math.max(most, 0) / step) - first, 1);
  const ticks = Array.from({ length: count + 1 }, (_, i) => (first + i) * step);
  return { ticks, place: (value) => (value / step - first) / count, kind: "" };
}

function logarithmic(first, last) {
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i));
  return { ticks, place: (value) => (Math.log10(value) - first) / (last - first), kind: ", on a logarithmic scale" };
}

/** A round distance of grid lines, of which four reach over `most`. */
function distance(most) {
  const power = 10 ** Math.floor(Math.log10(most / 4 || 1));
  return [1, 2, 5, 10].map((factor) => factor * power).find((size) => size * 4 >= most);
}

function spoken(points) {
  if (!points.length) return "not measured yet";
  return `from ${number(points[0][1])} to ${number(points[points.length - 1][1])}`;
}
