"use strict";
// The line of right answers over all trainings, and what became of each of them.

const MARKS = { activated: "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0", "not activated": "M-4-4 4 4M4-4-4 4",
  "rolled back": "M-5-4H5L0 5z" };
const MANY = 40; // from so many trainings on, marks are smaller

/** jobs: all of them, in any order. history: changes of the active adapter, the newest first. */
function showLessons(jobs, history) {
  const judged = jobs.filter(({ verdict }) => verdict && verdict.new && verdict.new.answered && verdict.old)
    .sort((a, b) => a.finished_at - b.finished_at);
  lessons.show(judged.map((job) => {
    const { new: { right, answered }, old } = job.verdict;
    return { title: titleOf(job), right, of: answered, before: old.right, fate: fateOf(job, history) };
  }));
}

/** What became of the adapter of a job: a key of MARKS. */
function fateOf({ fine_tuned_model: id, verdict }, history) {
  const newest = history.findIndex((change) => change.adapter === id);
  if (!id || newest < 0) return verdict.passed && id ? "activated" : "not activated"; // before what history remembers
  if (newest === 0) return "activated";
  const next = history[newest - 1].adapter; // was it active before?
  const isBack = next === null || history.slice(newest + 1).some((change) => change.adapter === next);
  return isBack ? "rolled back" : "activated";
}

function lessonsFigure() {
  const svg = draw("svg", { role: "img" }), words = el("p", { class: "small" });
  const key = (text, kind, d) => {
    const sample = draw("svg", { class: "sample", viewBox: "-8 -8 16 16", "aria-hidden": "true" });
    sample.append(draw("path", { class: kind, d }));
    return el("span", { class: "row" }, sample, text);
  };
  const keys = Object.entries(MARKS).map(([fate, d]) => key(fate, markOf(fate), d));
  const figure = el("figure", { class: "lessons", hidden: true }, words, svg,
    el("figcaption", { class: "row small soft" }, ...keys, key("before", "stem", "M-5 0H5"),
      el("span", { class: "key", text: "the active adapter" })));
  let points = [];
  new ResizeObserver(() => svg.clientWidth && plotLessons(svg, points)).observe(svg);
  figure.show = (found) => {
    const same = JSON.stringify(found) === JSON.stringify(points);
    points = found;
    figure.hidden = found.length < 2; // the only one is told by its job, below
    if (same || figure.hidden) return;
    const { right, of, before, fate } = found[found.length - 1];
    put(words, `Latest: ${right} of ${of} held-out questions right, ${before} before; ${fate}.`);
    svg.setAttribute("aria-label", `Share of right answers by training: ${found.map(saidOf).join("; ")}`);
    if (svg.clientWidth) plotLessons(svg, found);
  };
  return figure;
}

const markOf = (fate) => `mark-${fate.replace(" ", "-")}`;
const saidOf = ({ title, right, of, before, fate }) => `${title}: ${right} of ${of} right, ${before} before, ${fate}`;

/** A mark for each training at what it reached, a tick at what was right before, and the line of what answers after. */
function plotLessons(svg, points) {
  const wide = svg.clientWidth, high = 140, left = 44, right = wide - 16, top = 10, low = high - 22;
  const scale = points.length > MANY ? 0.5 : 1;
  const x = (i) => left + 12 + (i / (points.length - 1)) * (right - left - 12), y = (share) => low - share * (low - top);
  const text = (x, y, anchor, text) => draw("text", { x, y, "text-anchor": anchor }, text);
  const after = points.map(({ right, before, of, fate }, i) => [x(i), y((fate === "activated" ? right : before) / of)]);
  const marks = points.map((point, i) => {
    const mark = draw("path", { class: markOf(point.fate), d: MARKS[point.fate],
      transform: `translate(${x(i)} ${y(point.right / point.of)}) scale(${scale})` });
    mark.append(draw("title", {}, saidOf(point)));
    return mark;
  });
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  svg.replaceChildren(
    ...[0, 0.5, 1].flatMap((share) => [draw("path", { class: "grid", d: `M${left} ${y(share)}H${right}` }),
      text(left - 6, y(share) + 4, "end", `${100 * share} %`)]),
    text(left, high - 4, "start", "training 1"), text(right, high - 4, "end", `training ${points.length}`),
    ...points.map(({ right, before, of }, i) => draw("path", { class: "stem",
      d: `M${x(i) - 5 * scale} ${y(before / of)}h${10 * scale}M${x(i)} ${y(before / of)}V${y(right / of)}` })),
    draw("path", { class: "train", d: after.map(([x, y], i) => `${i ? "L" : "M"}${x} ${y}`).join("") }), ...marks);
}

const lessons = lessonsFigure();
$("all-trainings").append(lessons);
