"use strict";

// Elements and words. What a model, a file or a person wrote only ever becomes text, never markup.

const panels = []; // functions of parts, which show their panel of the page by the daemon's answer about the device
const $ = (id) => document.getElementById(id);

/** An element; props: class, text, on... (listeners), properties, else attributes. */
function el(tag, props = {}, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...inside);
  return node;
}

function draw(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

/** Text that did not change is left alone, so that a selection in it stays. */
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The children of `parent` are made those of `items`, in order; one that was there is kept, with focus and all. */
function list(parent, items, key, make) {
  const old = new Map([...parent.children].map((node) => [node.key, node]));
  items.forEach((item, i) => {
    let node = old.get(key(item));
    if (!node) (node = make(item)).key = key(item);
    old.delete(key(item));
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] || null);
    if (node.show) node.show(item);
  });
  old.forEach((node) => node.remove());
}

// ---- words

function size(bytes) {
  const mib = bytes / 2 ** 20;
  return mib < 1024 ? `${Math.round(mib)} MiB` : `${(mib / 1024).toFixed(1)} GiB`;
}

function when(seconds) {
  const then = new Date(seconds * 1000), clock = { hour: "2-digit", minute: "2-digit" };
  const today = then.toDateString() === new Date().toDateString();
  return then.toLocaleString([], today ? clock : { day: "numeric", month: "short", ...clock });
}

function lasting(seconds) {
  if (seconds < 90) return `${Math.max(Math.round(seconds), 1)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

const number = (value, digits = 3) => (typeof value === "number" ? value.toFixed(digits) : "–");
const share = (value) => (typeof value === "number" ? `${Math.round(100 * value)} %` : "–");

const called = new Map(); // names that people gave to adapters, by id
const structured = new Set(); // ids of adapters whose answers obey a schema

/** What people call an adapter: the name that it got, else its suffix and the end of its id. */
function short(id) {
  if (!id) return "Base model alone";
  if (called.has(id)) return called.get(id);
  const [, , suffix, mark] = id.split(":");
  return mark ? `${suffix || "adapter"} ${mark}` : id;
}
