"use strict";
// The fleet that this daemon serves: its devices, the newest roll-out and what its owner decides, and the rounds.

const FLEET_EVERY = 10000; // ms between two looks: a large fleet has many files
const RESULTS = { succeeded: "good", refused: "warm", failed: "bad" };
const ROLLOUTS = { running: "good", finished: "good", paused: "warm", undoing: "warm", stopped: "bad" };
const MEMBERS = { approved: "good", waiting: "warm", revoked: "bad" };
const CHANGES = {
  advance: ["Advance", "What devices have reported is counted. The next ring begins if the rules allow it."],
  pause: ["Pause", "No further ring begins. Devices whose ring has begun continue."],
  resume: ["Resume", "It continues in the same ring. Where the rules would pause it again, the next ring begins."],
  stop: ["Stop", "No further device begins, and it cannot be resumed. Devices that have it keep it."],
  undo: ["Undo", "Every device that has it goes back to what it had before, when it next looks."],
};
const LOCAL = ["localhost", "127.0.0.1", "[::1]"];
const MOST_CARDS = 200;
let fleetSeen = 0;

/** It is shown again after FLEET_EVERY, or when a person has changed something. */
panels.push(async ({ fleet }) => {
  $("fleet").hidden = !fleet;
  if (!fleet || Date.now() - fleetSeen < FLEET_EVERY) return;
  const [status, members] = await Promise.all([get("v1/fleet/status"), get("v1/fleet/members")]);
  fleetSeen = Date.now();
  $("fleet-wrong").hidden = status.unreadable.length === 0;
  put($("fleet-wrong"), status.unreadable.map(sentence).join(" "));
  showRollout(status.rollout);
  $("rollout-obstacle").hidden = !status.obstacle;
  put($("rollout-obstacle"), status.obstacle ? `No ring begins by itself: ${sentence(status.obstacle)}` : "");
  showMembers(members);
  showDevices(status.devices);
  showRounds(status.rounds);
  showNoise(status.privacy);
});

/** Does what a button does, and looks at the fleet again. */
const actFleet = (button, work) => act(button, async () => {
  await work();
  fleetSeen = 0;
});

const devices = (count) => `${count} device${count === 1 ? "" : "s"}`;

// ---- the roll-out

function showRollout(rollout) {
  $("rollout").hidden = !rollout;
  if (!rollout) return;
  put($("rollout-name"), rollout.id.replace(/^\d+-/, "") + (rollout.kind === "base" ? ", a base" : ""));
  put($("rollout-status"), rollout.status);
  $("rollout-status").className = `badge ${ROLLOUTS[rollout.status] || ""}`;
  put($("rollout-why"), rollout.reason ? sentence(rollout.reason) : "");
  list($("changes"), rollout.changes, (change) => change, (change) => {
    const [verb, text] = CHANGES[change];
    const button = el("button", { type: "button", text: verb, onclick: async () => {
      if (await sure(`${verb} the roll-out?`, text, verb))
        await actFleet(button, () => post(`v1/fleet/rollout/${change}`));
    } });
    return button;
  });
  list($("rings"), rollout.rings.map((ring, i) => ({ ...ring, number: i + 1 })), (ring) => ring.number, ringCard);
}

/** A ring with its devices by outcome, as words and as parts of a bar. */
function ringCard({ number }) {
  const facts = el("span", { class: "small" }), said = el("span", { class: "small soft number" });
  const bar = el("div", { class: "score", role: "img" });
  const card = el("li", {}, el("div", { class: "row apart" }, facts, said), bar);
  card.show = (ring) => {
    const known = ["succeeded", "refused", "failed", "canceled", "trying", "waiting"].filter((word) => ring[word]);
    const words = ring.begun ? known.map((word) => `${ring[word]} ${word}`).join(", ") : "not begun";
    put(facts, `Ring ${number}: ${devices(ring.devices)}`);
    put(said, words);
    bar.setAttribute("aria-label", `Ring ${number}: ${words}`);
    bar.replaceChildren(...known.filter((word) => word !== "waiting").map((word) => {
      const part = el("span", { class: `part ${word}` });
      part.style.width = `${(100 * ring[word]) / ring.devices}%`;
      return part;
    }));
  };
  return card;
}

/** The devices: first those where something went wrong. */
function showDevices(found) {
  const order = [...Object.keys(RESULTS).reverse(), "trying"], most = found.length > MOST_CARDS;
  const place = ({ outcome }) => (order.indexOf(outcome) + order.length + 1) % (order.length + 1);
  put($("fleet-count"), `Devices: ${found.length}${most ? `, of which ${MOST_CARDS} are shown` : ""}`);
  $("fleet-devices").hidden = found.length === 0;
  $("no-fleet").hidden = found.length > 0;
  const sorted = found.slice().sort((a, b) => place(a) - place(b)).slice(0, MOST_CARDS);
  list($("fleet-list"), sorted, (device) => device.device, deviceCard);
}

function deviceCard({ device }) {
  const badge = el("span"), facts = el("p", { class: "small soft number" }), reason = el("p", { class: "small" });
  const card = el("li", {}, el("div", { class: "row" }, el("h4", { text: device }), badge), facts, reason);
  card.show = (found) => {
    put(badge, found.outcome);
    badge.className = `badge ${RESULTS[found.outcome] || ""}`;
    const runs = [found.base, found.active && short(found.active)].filter(Boolean).join(" with ");
    put(facts, [found.kind, runs, `edgetune ${found.edgetune}`, found.at ? `seen ${when(found.at)}` : "never seen"]
      .filter(Boolean).join(" · "));
    reason.hidden = !found.reason;
    put(reason, found.reason ? sentence(found.reason) : "");
  };
  return card;
}

// ---- devices that join

function showMembers({ joined, data }) {
  const waiting = data.filter(({ state }) => state === "waiting");
  $("members").hidden = !joined;
  const waits = waiting.length ? `, of which ${waiting.length} wait${waiting.length > 1 ? "" : "s"} for you` : "";
  put($("members-count"), `Devices that asked to join: ${data.length}${waits}`);
  $("members-count").classList.toggle("warm", waiting.length > 0);
  const order = [...waiting, ...data.filter(({ state }) => state !== "waiting")];
  list($("members-list"), order, (member) => member.device + member.key, memberCard);
}

function memberCard({ device, key }) {
  const path = `v1/fleet/members/${encodeURIComponent(device)}`, digits = key.slice(0, 16).replace(/.{4}(?=.)/g, "$& ");
  const badge = el("span"), facts = el("p", { class: "small soft number" });
  const decide = (change, text) => {
    const button = el("button", { type: "button", onclick: async () => {
      const verb = button.textContent;
      if (await sure(`${verb} ${device}?`, text, verb)) await actFleet(button, () => post(`${path}/${change}`));
    } });
    return button;
  };
  const approve = decide("approve", `Its key begins with ${digits}. Approve it if the device shows the same digits.`);
  const revoke = decide("revoke", "What it sends does not count. To take part later, it needs a new code.");
  put(approve, "Approve");
  const card = el("li", {}, el("div", { class: "row apart" }, el("div", { class: "row" }, el("h4", { text: device }),
    badge), el("div", { class: "row small-buttons" }, approve, revoke)), facts);
  card.show = ({ state, asked_at: asked, decided_at: decided }) => {
    put(badge, state);
    badge.className = `badge ${MEMBERS[state] || ""}`;
    approve.hidden = state !== "waiting";
    revoke.hidden = state === "revoked";
    put(revoke, state === "waiting" ? "Refuse" : "Revoke");
    put(facts, [`key ${digits}`, `asked ${when(asked)}`, decided ? `${state} ${when(decided)}` : ""].filter(Boolean)
      .join(" · "));
  };
  return card;
}

async function inviteDevice() {
  const text = "A device joins with a code, and you approve it. From the first code on, only devices that joined take part.";
  if (!(await sure("Invite a device?", text, "Make a code"))) return;
  await actFleet($("invite"), async () => {
    const { code, expires_at: until, proxied } = await post("v1/fleet/invites");
    const { url, why } = addressFor(proxied);
    $("invited").hidden = false;
    $("invited").replaceChildren(`On the device, until ${when(until)}: `,
      el("code", { text: `edgetune fleet join ${url} --code ${code}` }), why);
  });
}

$("invite").addEventListener("click", inviteDevice);

/** url: by which devices reach this daemon, as far as the page can know; why: what a person is to put in its place. */
function addressFor(proxied) {
  const isLocal = LOCAL.includes(location.hostname);
  if (!proxied && !isLocal) return { url: location.origin + location.pathname.replace(/\/$/, ""), why: "" };
  const here = proxied ? "is one of a proxy that lets people in alone" : "is one of this machine alone";
  const port = proxied ? 8642 : location.port;
  return { url: "URL", why: ` In place of URL, put in the address at which the device reaches this daemon, such as ` +
    `http://192.168.1.20:${port}. The address of this page ${here}.` };
}

// ---- rounds

const roundLosses = curve("loss", (line) => line.loss, { along: "round", first: 1, names: ["before", "after"] });

function showRounds(rounds) {
  $("fleet-rounds").hidden = !rounds;
  if (!rounds) return;
  const { number, base: model, arrived, records } = rounds;
  const came = arrived.length ? `: ${arrived.join(", ")}` : "";
  put($("round-now"), `Round ${number} of ${model} runs. Answers that have arrived: ${arrived.length}${came}.`);
  if (!roundLosses.isConnected) $("round-now").after(roundLosses);
  roundLosses.show(records.flatMap(({ round, loss_before: before, loss_after: after }) =>
    [{ event: "step", step: round, loss: before }, { event: "eval", step: round, loss: after }]));
  $("ended").hidden = records.length === 0;
  const latest = records.slice(-20).reverse();
  $("round-rows").replaceChildren(...latest.flatMap(roundLines));
  const refused = latest.flatMap(({ round, refused: left }) => left.map((one) => [round, one]));
  $("refused").hidden = refused.length === 0;
  put($("refused-count"), `Left out: ${refused.length}`);
  const line = ([round, { device, reason }]) => `Round ${round}, ${device}: ${reason}.`;
  list($("refused-list"), [...new Map(refused.map((one) => [line(one), one])).values()], line, (one) =>
    el("li", { class: "small", text: line(one) }));
}

/** What the noise of all rounds hides. */
function showNoise(noise) {
  const bound = (epsilon) => (epsilon === null ? "without a bound" : String(Number(epsilon.toPrecision(3))));
  const known = noise ? [["the answers of a device", noise.answer], ["the sums alone", noise.sum]]
    .filter(([, epsilon]) => epsilon.last !== null) : [];
  const lines = known.map(([whom, { last, total }]) => `Noise, delta ${noise.delta}: epsilon ${bound(last)} in the ` +
    `last round and ${bound(total)} in all, against whoever sees ${whom}.`);
  if (noise && !lines.length) lines.push("The last round had no noise, so that the noise of others gives no bound.");
  $("round-noise").hidden = !lines.length;
  list($("round-noise"), lines, (line) => line, (line) => el("li", { class: "small", text: line }));
}

/** The lines of a table: a round, and its kinds of devices where there are several. */
function roundLines({ round, devices: count, left_out: left, loss_before: before, loss_after: after, kinds }) {
  const line = (head, many, first, last, kind) => el("tr", { class: kind }, el("th", { scope: "row", text: head }),
    ...[String(many), number(first), number(last)].map((text) => el("td", { text })));
  const some = kinds.length > 1 ? kinds : [];
  return [line(left ? `${round} (${left} left out)` : String(round), count, before, after, ""),
    ...some.map((one) => line(one.kind || "not said", one.devices, one.loss_before, one.loss_after, "kind"))];
}
