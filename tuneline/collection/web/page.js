"use strict";
// Labels are kept here until the server says that it has them: first written to localStorage, then shown as done, then
// sent, in order. Sent twice they count once, as each has an id of its own. Text is only ever set as text.
// A browser brings localStorage to the disk after seconds, so there is a copy in IndexedDB, which it brings there at once:
// what is missing in the one after a crash is in the other.

const AHEAD = 8; // pairs that are fetched before they are needed, so that work goes on while the server is away
const RETRY_MS = 2000;
const CHOICES = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "tie", t: "tie", s: "skip" };
const WORDS = { left: "First", right: "Second", tie: "Tie", skip: "Skipped" };
const $ = (id) => document.getElementById(id);

let annotator = localStorage.getItem("annotator");
let pairs = []; // to be shown, the first one now
let history = []; // acts of this page that can be undone without asking the server
let shownAt = 0;
let isSending = false;
let isFetching = false;
let mark = 0;

// -- what is not sent yet ---------------------------------------------------------------------------------------------

const queueName = (owner = annotator) => `queue:${owner}`;
const queue = (owner = annotator) => JSON.parse(localStorage.getItem(queueName(owner)) || "[]");

function changeQueue(change, owner = annotator) {
  // Two tabs share localStorage: each reads and writes in one go.
  const acts = change(queue(owner));
  localStorage.setItem(queueName(owner), JSON.stringify(acts));
  copyToDisk(queueName(owner), acts);
  if (owner === annotator) showUnsent(acts.length);
}

const database = new Promise((resolve) => {
  const request = indexedDB.open("labels", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("kept");
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => resolve(null); // some browsers have none in private windows
}).catch(() => null);

async function copyToDisk(name, value) {
  const opened = await database;
  opened?.transaction("kept", "readwrite", { durability: "strict" }).objectStore("kept").put(value, name);
}

async function fromDisk(name) {
  const opened = await database;
  if (!opened) return undefined;
  const request = opened.transaction("kept").objectStore("kept").get(name);
  return new Promise((resolve) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(undefined);
  });
}

async function recover() {
  // What was sent before the crash may be among it; the server knows it by its id.
  const kept = (await fromDisk(queueName())) || [];
  const isKept = (act) => kept.some((other) => other.client === act.client && other.kind === act.kind);
  if (kept.length) changeQueue((acts) => [...kept, ...acts.filter((act) => !isKept(act))]);
}

function showUnsent(count) {
  $("unsent").textContent = count ? `${count} not sent yet` : "";
}

async function send() {
  if (isSending || !annotator) return;
  isSending = true;
  const sender = annotator; // who may be another once an answer is there
  const without = (done) => (acts) => acts.filter((other) => other.client !== done.client || other.kind !== done.kind);
  let act;
  try {
    for (act = queue()[0]; act && sender === annotator; act = queue()[0]) {
      const { kind, ...sent } = act;
      const answer = await ask(kind === "undo" ? "/api/undo" : "/api/labels", { ...sent, annotator: sender });
      if (answer.outcome === "other label stands") say("You had labelled this pair in another window; that label stays.");
      changeQueue(without(act), sender);
      showProgress(answer.progress);
    }
  } catch (error) {
    if (error.status === 400 || error.status === 404) {
      // The server will never take this one (its pair is gone): it is set aside, not thrown away.
      const refused = JSON.parse(localStorage.getItem("refused") || "[]");
      localStorage.setItem("refused", JSON.stringify([...refused, { ...act, annotator: sender, error: error.message }]));
      changeQueue(without(act), sender);
      fail(`The server refused a label: ${error.message}`);
    } else {
      fail(error.status ? error.message : "The server does not answer. Labels are kept in this browser and sent when it is back.");
    }
    setTimeout(send, RETRY_MS);
    return;
  } finally {
    isSending = false;
  }
  clearFailure();
  if (!pairs.length) fetchPairs();
}

async function ask(path, body) {
  const options = body && {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw Object.assign(new Error(answer.error || `status ${response.status}`), { status: response.status });
  }
  return answer;
}

// -- what is shown ----------------------------------------------------------------------------------------------------

async function fetchPairs() {
  if (isFetching || !annotator) return;
  isFetching = true;
  try {
    const answer = await ask(`/api/pairs?annotator=${encodeURIComponent(annotator)}&limit=${AHEAD}`);
    // What was labelled here while the answer was on its way, the server still counted as open.
    const labelled = new Set([...queue().filter((act) => act.kind === "label"), ...history].map((act) => act.pair));
    const known = new Set(pairs.map((one) => one.pair));
    const isIdle = !pairs.length;
    pairs.push(...answer.pairs.filter((one) => !known.has(one.pair) && !labelled.has(one.pair)));
    showProgress(answer.progress);
    clearFailure();
    if (isIdle) show();
  } catch (error) {
    fail(error.status ? error.message : "The server does not answer.");
    setTimeout(fetchPairs, RETRY_MS);
  } finally {
    isFetching = false;
  }
}

function show() {
  const one = pairs[0];
  $("keys").hidden = false;
  $("task").hidden = !one;
  $("welcome").hidden = true;
  $("done").hidden = Boolean(one);
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = !one;
  if (!one) return showDone();
  $("prompt").replaceChildren(...one.prompt.map(turn));
  $("left").textContent = one.left;
  $("right").textContent = one.right;
  shownAt = performance.now();
  window.scrollTo(0, 0);
}

function turn({ role, content }) {
  const shown = document.createElement("div");
  shown.className = "turn";
  if (role) {
    const label = document.createElement("div");
    label.className = "role";
    label.textContent = role;
    shown.append(label);
  }
  const said = document.createElement("div");
  said.className = "said";
  said.textContent = content;
  shown.append(said);
  return shown;
}

function showProgress(progress) {
  if (!progress) return;
  const all = progress.mine + progress.left;
  $("progress").hidden = false;
  $("counts").textContent = `${progress.mine} labelled, ${progress.left} left for you`;
  $("bar").style.width = `${all ? (100 * progress.mine) / all : 100}%`;
}

async function showDone() {
  $("done-text").textContent = "Thank you. Should more pairs come in, they appear here.";
  try {
    const told = await ask("/api/summary");
    const number = (value) => (value === null ? "not known yet" : value.toFixed(2));
    const share = (value) => (value === null ? "not known yet" : `${Math.round(100 * value)} %`);
    const rows = [["Pairs with an answer, of all annotators", `${told.answered} of ${told.pairs}`]];
    for (const [name, count] of Object.entries(told.annotators)) rows.push([`Labels by ${name}`, count]);
    if (told.agreement.pairs) {
      rows.push(["Pairs seen by several", told.agreement.pairs]);
      rows.push(["They agree on", share(told.agreement.raw)]);
      rows.push(["Krippendorff's alpha (1 perfect, 0 chance)", number(told.agreement.alpha)]);
      for (const two of told.agreement.kappa) rows.push([`Cohen's kappa, ${two.annotators.join(" and ")}`, number(two.kappa)]);
    }
    $("summary").replaceChildren(...rows.map(row));
  } catch {
    $("summary").replaceChildren();
  }
  if (!pairs.length) setTimeout(() => pairs.length || fetchPairs(), 5 * RETRY_MS);
}

function row(cells) {
  const shown = document.createElement("tr");
  for (const text of cells) shown.insertCell().textContent = text;
  return shown;
}

// -- what the annotator does ------------------------------------------------------------------------------------------

function choose(choice) {
  const one = pairs[0];
  if (!one) return;
  const act = {
    kind: "label", pair: one.pair, choice, client: crypto.randomUUID(),
    seconds: Math.round((performance.now() - shownAt) / 100) / 10,
  };
  changeQueue((acts) => [...acts, act]);
  history.push({ one, pair: one.pair, client: act.client });
  pairs.shift();
  flash(choice);
  if (pairs.length < AHEAD / 2) fetchPairs();
  show();
  send();
}

async function undo() {
  const last = history.pop();
  if (last) {
    changeQueue((acts) => [...acts, { kind: "undo", pair: last.pair, client: last.client }]);
    pairs.unshift(last.one);
    say("Undone");
    show();
    send();
    return;
  }
  if (queue().length) return say("Labels are still being sent; try again when they are.");
  try {
    const answer = await ask("/api/undo", { annotator });
    showProgress(answer.progress);
    if (!answer.pair) return say("Nothing to undo");
    pairs = [answer.pair, ...pairs.filter((other) => other.pair !== answer.pair.pair)];
    say("Undone");
    show();
  } catch (error) {
    fail(error.status ? error.message : "The server does not answer.");
  }
}

function flash(choice) {
  // The button lights up for a moment, as the next pair is there already.
  const number = ++mark;
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.classList.toggle("chosen", button.dataset.choice === choice);
  }
  say(WORDS[choice]);
  setTimeout(() => {
    if (number === mark) document.querySelector("[data-choice].chosen")?.classList.remove("chosen");
  }, 200);
}

function say(text) {
  $("said").textContent = text;
}

function fail(text) {
  $("message").textContent = text;
  $("message").hidden = false;
}

function clearFailure() {
  $("message").hidden = true;
}

document.addEventListener("keydown", (event) => {
  if (!$("welcome").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.repeat) return; // a key that is held down is one answer
  if (key === "u") undo();
  else if (CHOICES[key]) choose(CHOICES[key]);
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}
$("undo").addEventListener("click", undo);
$("name").addEventListener("click", () => welcome());
window.addEventListener("online", send);

function welcome() {
  for (const id of ["task", "done", "keys", "progress", "name"]) $(id).hidden = true;
  $("welcome").hidden = false;
  $("annotator").value = annotator || "";
  $("annotator").focus();
}

$("welcome").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = $("annotator").value.trim();
  try {
    await ask(`/api/pairs?annotator=${encodeURIComponent(name)}&limit=1`);
  } catch (error) {
    $("welcome-error").textContent = error.status ? error.message : "The server does not answer.";
    return;
  }
  $("welcome-error").textContent = "";
  annotator = name;
  localStorage.setItem("annotator", name);
  copyToDisk("annotator", name);
  begin();
});

async function begin() {
  pairs = [];
  history = [];
  $("name").hidden = false;
  $("name").textContent = annotator;
  $("welcome").hidden = true;
  $("prompt").focus();
  await recover();
  showUnsent(queue().length);
  send().then(fetchPairs);
}

async function start() {
  annotator = annotator || (await fromDisk("annotator")) || null;
  if (annotator) localStorage.setItem("annotator", annotator);
  if (annotator) begin();
  else welcome();
}

start();
