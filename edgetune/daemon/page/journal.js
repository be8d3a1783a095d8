"use strict";
// The log: what was trained and activated, and when training gave way, as the daemon has recorded it.

const ACTIONS = { yield: "yielded", slower: "slowed down", pause: "paused", go: "continued" };

/** jobs: the oldest first; history, decisions: the latest first. */
function showJournal(jobs, history, decisions) {
  const activated = ({ at, adapter, cause }) =>
    [at, `${short(adapter)} is active: ${cause.replace(/^ftjob-\w+: /, "")}`];
  const lines = [...jobs.toReversed().flatMap(linesOf), ...together(decisions), ...history.map(activated)];
  $("no-events").hidden = lines.length > 0;
  showLines($("events"), lines);
}

function linesOf(job) {
  const title = titleOf(job), why = job.error ? job.error.message : job.verdict && job.verdict.reason;
  const ended = [title, job.state, why].filter(Boolean).join(": ");
  return [[job.finished_at, ended], [job.started_at, `${title}: begins`]].filter(([at]) => at);
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
  return lines.map(({ at, action, cause, times }) =>
    [at, `Training ${ACTIONS[action] || action}${often(times)}: ${cause}`]);
}

/** [seconds, text], latest first. */
function showLines(parent, lines) {
  const once = new Map(lines.map((line) => [line.join(" "), line])); // a list has each of its keys once
  const newest = [...once.values()].sort((a, b) => b[0] - a[0]).slice(0, 50);
  list(parent, newest, (line) => line.join(" "), ([at, text]) =>
    el("li", {}, el("time", { class: "soft number", text: when(at), dateTime: new Date(at * 1000).toISOString() }),
      el("span", { text })));
}
