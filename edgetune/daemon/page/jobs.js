"use strict";
// Trainings: their progress, what they reached, and what happened.

const names = new Map(); // of uploaded files, by id
const ALIVE = ["queued", "running", "pausing", "paused"];
const ORIGINS = { learn: "From feedback", evaluate: "Evaluation", base: "Evaluation of a base" };
const COLOURS = { succeeded: "good", running: "good", pausing: "warm", paused: "warm", failed: "bad" };

const everyJob = new Map(); // that the daemon has, by id, the oldest first

/** The latest jobs. Those before them, which do not change any more, are fetched once. */
async function fetchJobs() {
  const path = "v1/fine_tuning/jobs?limit=", found = [];
  let page = await get(`${path}20`);
  const latest = page.data;
  for (;;) {
    found.push(...page.data);
    if (!page.has_more || page.data.some((job) => everyJob.has(job.id))) break;
    page = await get(`${path}100&after=${encodeURIComponent(found[found.length - 1].id)}`);
  }
  found.reverse().forEach((job) => everyJob.set(job.id, job));
  return latest;
}

const titleOf = (job) => ORIGINS[job.origin] || job.suffix || names.get(job.training_file) || "A training";

async function showJobs(jobs) {
  $("no-jobs").hidden = jobs.length > 0;
  const unknown = [...everyJob.values()].map((job) => job.training_file).filter((id) => id && !names.has(id));
  unknown.forEach((id) => names.set(id, id)); // it may be deleted by now
  if (unknown.length) for (const file of (await get("v1/files")).data) names.set(file.id, file.filename);
  list($("jobs"), jobs, (job) => job.id, jobCard);
}

function jobCard(first) {
  const title = el("h3"), badge = el("span"), wrong = el("p", { class: "small bad" });
  const bar = el("progress", { max: 1, value: 0, "aria-label": "Steps done" });
  const facts = el("span", { class: "small soft number" }), story = jobStory(first), result = figure();
  const [pause, resume, cancel] = ["pause", "resume", "cancel"].map((verb) => el("button", { type: "button",
    text: sentence(verb).slice(0, -1), onclick: (event) => steer(event.currentTarget, first.id, verb) }));
  const path = `v1/fine_tuning/jobs/${encodeURIComponent(first.id)}/report`;
  const report = fileLink("Report", path, { name: "report.html" });
  const card = el("li", {}, el("div", { class: "row apart" }, el("div", { class: "row" }, title, badge, facts),
    el("div", { class: "row small-buttons" }, report, pause, resume, cancel)), bar, result, wrong, story);
  card.show = (job) => {
    const { progress, state } = job, alive = ALIVE.includes(state);
    put(title, titleOf(job));
    put(badge, state);
    badge.className = `badge ${COLOURS[state] || ""}`;
    bar.hidden = !alive;
    bar.value = progress && progress.steps ? progress.step / progress.steps : 0;
    put(facts, progress && alive ? pace(progress) : ended(job));
    result.show(job.verdict || {});
    wrong.hidden = !job.error;
    put(wrong, job.error ? sentence(job.error.message) : "");
    pause.hidden = !["running", "queued"].includes(state);
    resume.hidden = !["pausing", "paused"].includes(state);
    cancel.hidden = !alive;
    report.hidden = !job.report;
  };
  card.learn = (job) => story.learn(job);
  return card;
}

/** Right answers to test questions as a large number with a bar; the mark on it is what was right before. */
function figure() {
  const large = el("b", { class: "large number" }), beside = el("span", { class: "soft" });
  const now = el("span", { class: "now" }), before = el("span", { class: "before" });
  const bar = el("div", { class: "score", role: "img" }, now, before);
  const node = el("div", { class: "result" }, el("p", {}, large, " ", beside), bar);
  node.show = ({ new: found, old }) => {
    node.hidden = !(found && found.answered);
    if (node.hidden) return;
    put(large, `${found.right} of ${found.answered}`);
    put(beside, `right, ${old.right} before`);
    now.style.width = `${(100 * found.right) / found.answered}%`;
    before.style.left = `${(100 * old.right) / found.answered}%`;
    before.hidden = !old.right;
    bar.setAttribute("aria-label", `Test questions: ${found.right} of ${found.answered} right, ${old.right} before`);
  };
  return node;
}

/** What a measurement of a training by rewards has beside its loss, which is less that reward. */
const rewardOf = (line) => line.metrics && line.metrics.reward;

/** The curves and what happened, fetched while somebody looks. */
function jobStory({ id, state }) {
  const rewards = curve("reward", rewardOf), events = new Map();
  const losses = curve("loss", (line) => (line.event === "eval" && Number.isFinite(rewardOf(line)) ? NaN : line.loss));
  const lines = el("ol", { class: "lines", tabIndex: 0, "aria-label": "Events" }); // it scrolls
  const story = el("details", { open: ALIVE.includes(state), ontoggle: () => story.open && look() },
    el("summary", { class: "small soft", text: "Loss and events" }),
    el("div", { class: "stack" }, rewards, losses, el("h4", { text: "Events" }), lines));
  let whole = false; // nothing more will happen
  story.learn = async (job) => {
    if (!story.open || whole) return;
    await fetchEvents(id, events);
    whole = !ALIVE.includes(job.state);
    const all = [...events.values()].sort((a, b) => a.created_at - b.created_at);
    const of = (type) => all.filter((event) => event.type === type);
    const metrics = of("metrics").map((event) => event.data);
    const round = metrics.reduce((last, line) => line.round ?? last, undefined); // of work in rounds, the latest one
    for (const shown of [rewards, losses]) shown.show(metrics.filter((line) => line.round === round));
    showLines(lines, of("message").map((event) => [event.created_at, event.message]).reverse());
  };
  return story;
}

async function steer(button, id, verb) {
  if (verb !== "cancel" || (await sure("Cancel this training?", "What it has learned so far is lost.", "Cancel it")))
    await act(button, () => post(`v1/fine_tuning/jobs/${encodeURIComponent(id)}/${verb}`));
}

function pace({ phase, says, step, steps, loss, reward, tokens_per_s: speed, eta_s: left, judged, judging }) {
  const asked = judging ? ` (${judged} of ${judging})` : "";
  if (phase === "judging") return `trained; now compared with the active adapter${asked}`;
  if (says) return says;
  if (!step) return "begins";
  const said = Number.isFinite(reward) ? `reward ${number(reward)}` : `loss ${number(loss)}`;
  const parts = [`step ${step} of ${steps}`, said, `${number(speed, 0)} tokens/s`];
  return parts.concat(left ? [`${lasting(left)} left`] : []).join(" · ");
}

function ended(job) {
  return job.finished_at ? `ended ${when(job.finished_at)}` : `since ${when(job.created_at)}`;
}

/** Adds what happened since the last time; events come newest first, in pages. */
async function fetchEvents(id, events) {
  for (let after = ""; ;) {
    const path = `v1/fine_tuning/jobs/${encodeURIComponent(id)}/events?limit=100`;
    const page = await get(after ? `${path}&after=${encodeURIComponent(after)}` : path);
    const fresh = page.data.filter((event) => !events.has(event.id));
    fresh.forEach((event) => events.set(event.id, event));
    if (!page.has_more || fresh.length < page.data.length) return;
    after = page.data[page.data.length - 1].id;
  }
}
