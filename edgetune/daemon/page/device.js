"use strict";
// What the daemon is doing.

const ACTIONS = { yield: "yielded", slower: "slowed down", pause: "paused", go: "continued" };

function showDevice(state) {
  const { memory, serving } = state;
  put($("board"), state.device.model || state.device.cpu);
  put($("memory"), size(memory.used));
  put($("budget"), `of ${size(memory.budget)}`);
  $("meter").value = memory.used / memory.budget;
  $("meter").classList.toggle("full", memory.used > 0.95 * memory.budget);
  const felt = typeof state.temperature === "number";
  put($("heat"), felt ? `${Math.round(state.temperature)} °C` : "–");
  put($("heat-note"), felt ? "" : "no sensor");
  put($("speed"), serving.tokens_per_s ? number(serving.tokens_per_s, 1) : "–");
  put($("working"), String(serving.working));
  put($("waiting"), `${serving.waiting} waiting`);
  $("calm").hidden = state.governor.length > 0;
  showLines($("governor"), together(state.governor));
  const { learning } = state;
  put($("why"), sentence(learning.state));
  const starts = learning.mode === "off" ? "" : ` of the ${learning.needed} that start a training`;
  const unused = learning.unused ? `. ${sentence(learning.unused)}` : "";
  $("by-itself").hidden = learning.mode === "off";
  if (!$("switch").disabled) $("switch").checked = learning.on;
  showTutor(learning.tutor);
  put($("rows"), `New pieces of feedback: ${learning.new_rows}${starts}${unused}`);
}

/** The governor's decisions, latest first, as lines; equal ones in one. */
function together(decisions) {
  const lines = [];
  for (const { at, action, cause } of decisions) {
    const last = lines[lines.length - 1];
    if (last && last.action === action && last.cause === cause) last.times += 1;
    else lines.push({ at, action, cause, times: 1 });
  }
  const often = (times) => (times > 1 ? ` ${times} times` : "");
  return lines.map(({ at, action, cause, times }) => [at, `${ACTIONS[action] || action}${often(times)}: ${cause}`]);
}

/** [seconds, text], latest first. */
function showLines(parent, lines) {
  const once = new Map(lines.map((line) => [line.join(" "), line])); // a list has each of its keys once
  const newest = [...once.values()].sort((a, b) => b[0] - a[0]).slice(0, 50);
  list(parent, newest, (line) => line.join(" "), ([at, text]) =>
    el("li", {}, el("time", { class: "soft number", text: when(at), dateTime: new Date(at * 1000).toISOString() }),
      el("span", { text })));
}

function showHealth(health) {
  const well = health.status === "ok";
  $("health").className = `badge ${well ? "good" : "warm"}`;
  put($("health"), well ? "running" : health.status);
  $("degraded").hidden = well;
  put($("degraded"), health.reasons.map(sentence).join(" "));
}
