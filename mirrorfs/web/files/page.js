// Keeps the page up to date. Every text goes in as text (textContent): names are whatever somebody called them.
"use strict";

const POLL_SECONDS = 5;
const DAY_SECONDS = 86400;
const MOST_GROUPS = 500;
const MOST_SNAPSHOTS = 500;
const FIRST_LINES = 5;
const SVG = "http://www.w3.org/2000/svg";
const MARKS = { healthy: "good", behind: "warn", held: "warn", waiting: "wait", broken: "bad" };
const PHASES = {
  adopted: ["in the bucket, as it was found there", "good"],
  committed: ["being published", "wait"],
  published: ["in the bucket", "good"],
  removing: ["leaving the bucket", "wait"],
  released: ["leaving the bucket", "wait"],
};
const HELD = {
  wave: "more snapshots are gone than may go in a day",
  unseen: "nobody was seen to remove them",
  stranger: "somebody else has used the bucket’s name",
};

const byId = (id) => document.getElementById(id);
const known = { snapshots: [], snapshotsVersion: null, historyAt: null, points: [], live: null };
const groupRows = new Map();

// -- writing --------------------------------------------------------------------------------------------------------

function put(element, text) {
  // What has not changed is left alone, so that a screen reader does not say it again.
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function mark(element, kind) {
  if (element.dataset.mark !== kind) element.dataset.mark = kind;
}

function replaceIfOther(parent, content, build) {
  // Of the same content the elements stay: somebody may have opened one, or be reading it.
  const key = JSON.stringify(content);
  if (parent.shownContent === key) return;
  parent.shownContent = key;
  parent.replaceChildren(...build(content));
}

function size(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit === 0 || count >= 100 ? Math.round(count) : Math.round(count * 10) / 10} ${units[unit]}`;
}

function duration(seconds) {
  let rest = Math.round(seconds);
  const parts = [];
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const count = Math.floor(rest / length);
    rest -= count * length;
    if (count || parts.length) parts.push([count, unit]);
  }
  return parts.slice(0, 2).filter(([count]) => count).map(([count, unit]) => `${count} ${unit}`).join(" ") || "0 s";
}

function moment(seconds) {
  const date = new Date(seconds * 1000);
  const options = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  if (date.getFullYear() !== new Date().getFullYear()) options.year = "numeric";
  return date.toLocaleString("en-GB", options);
}

const hour = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
const counted = (count, one, more) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;

// -- the word, and what is now ---------------------------------------------------------------------------------------

function showVerdict(status) {
  mark(byId("verdict"), MARKS[status.word] || "wait");
  put(byId("word"), status.word.charAt(0).toUpperCase() + status.word.slice(1));
  put(byId("why"), status.why);
  put(byId("to-do"), status.to_do);
  document.title = `${status.word} – ${status.datastore} – mirrorfs`;
}

function showTiles(status, counts) {
  const point = status.recovery_point, backlog = status.backlog, uploaded = status.uploaded;
  put(byId("recovery"), point.missing ? `${duration(point.age_seconds)} ago` : "Up to date");
  put(byId("recovery-small"), point.missing
    ? `${counted(point.missing, "backup is", "backups are")} missing; oldest: ${point.oldest}`
    : "every finished backup is in the bucket");
  put(byId("backlog"), backlog ? size(backlog.bytes_at_least) : "–");
  put(byId("backlog-small"), backlog ? describeBacklog(backlog) : "not known yet");
  put(byId("sending"), `${size(uploaded.bytes_per_second)}/s`);
  put(byId("sending-small"),
    `${size(uploaded.bytes)} in ${counted(uploaded.objects, "object", "objects")} since ${moment(status.uploader.started)}`);
  put(byId("snapshots"), counts.published.toLocaleString("en"));
  put(byId("snapshots-small"), `in the bucket, with ${counted(status.chunks, "chunk", "chunks")}`);
}

function describeBacklog(backlog) {
  if (!backlog.items) return "nothing is waiting";
  const items = counted(backlog.items, "item", "items");
  if (backlog.drain_seconds === null) return `${items}; nothing is sent at present`;
  return backlog.drain_seconds ? `${items}, done in ${duration(backlog.drain_seconds)}` : items;
}

// -- what wants to be looked at --------------------------------------------------------------------------------------

function article({ kind, title, command, lines, more }) {
  const element = make("article");
  element.dataset.mark = kind;
  element.append(make("h3", title));
  if (command) {
    const row = make("p", undefined, "command");
    row.append(make("span", command[0]), make("code", command[1]));
    element.append(row);
  }
  const texts = new Map();
  for (const [name, text] of lines) texts.set(text, [...(texts.get(text) || []), name]);
  for (const [text, names] of texts) element.append(...listOf(text, names));
  if (more > 0) element.append(make("p", `and ${counted(more, "more", "more")}: ‘mirrorfs status’ names all`, "quiet"));
  return element;
}

function listOf(text, names) {
  // What is said of several names is said once.
  const items = names.map((name) => {
    const item = make("li");
    item.append(make("span", name, "name"));
    return item;
  });
  const list = make("ul"), rest = make("ul");
  list.append(...items.slice(0, FIRST_LINES));
  rest.append(...items.slice(FIRST_LINES));
  const parts = [make("p", `${text.charAt(0).toUpperCase()}${text.slice(1)}:`, "quiet"), list];
  if (!rest.childNodes.length) return parts;
  const details = make("details");
  details.append(make("summary", `${items.length - FIRST_LINES} more`), rest);
  return [...parts, details];
}

function whatToLookAt(live) {
  const status = live.status, retention = status.retention, quarantined = status.quarantined, refused = retention.refused;
  const sick = (problem) => /^(in the bucket: )?\.chunks\//.test(problem.name);
  const line = (problem) => [problem.name, problem.reason];
  const chunks = status.problems.filter(sick).map(line), others = status.problems.filter((one) => !sick(one)).map(line);
  const left = live.counts.problems - status.problems.reduce((sum, problem) => sum + problem.count, 0);
  const curable = quarantined.examples.some((chunk) => chunk.bucket_has_a_good_copy);
  return [
    {
      kind: "bad",
      title: "A process dies again and again",
      lines: status.failing_processes.map((one) => [one.process,
        `${one.deaths} times in a row since ${moment(one.since)}; it ${one.last}`]),
      more: 0,
    },
    { kind: "bad", title: "Cannot be mirrored as they are", lines: others, more: others.length ? left : 0 },
    { kind: "bad", title: "Sick chunks", lines: chunks, more: others.length ? 0 : left },
    {
      kind: "warn",
      title: `Held: ${counted(live.counts.held, "snapshot is", "snapshots are")} gone from the datastore and kept in the bucket`,
      command: ["To let them go:", live.approve],
      lines: retention.held.map((removal) => [removal.snapshot,
        HELD[removal.reason] + (removal.goes_at ? `; they stay until ${moment(removal.goes_at)}` : "")]),
      more: live.counts.held - retention.held.length,
    },
    {
      kind: curable ? "warn" : "bad",
      title: `Quarantine: PBS found ${counted(quarantined.count, "chunk", "chunks")} corrupt`,
      command: curable ? ["To bring good copies back:", live.heal] : null,
      lines: quarantined.examples.map((chunk) => [chunk.chunk,
        chunk.bucket_has_a_good_copy ? "the bucket has a good copy" : "the bucket has NO good copy"]),
      more: quarantined.count - quarantined.examples.length,
    },
    {
      kind: "wait",
      title: `The store does not allow ${counted(refused.count, "deletion", "deletions")} for now`,
      lines: refused.examples.map((one) => [one.name, one.reason]),
      more: refused.count - refused.examples.length,
    },
  ].filter((one) => one.lines.length || one.more > 0);
}

function showAttention(live) {
  const found = whatToLookAt(live);
  replaceIfOther(byId("attention-list"), found, (articles) => articles.map(article));
  byId("attention").hidden = !found.length;
}

// -- charts ----------------------------------------------------------------------------------------------------------

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function niceTop(most) {
  if (most <= 0) return 1024;
  const unit = 1024 ** Math.max(0, Math.floor(Math.log(most) / Math.log(1024)));
  const steps = [1, 2, 4, 5, 10, 20, 40, 50, 100, 200, 400, 500, 1024];
  return unit * steps.find((step) => step * unit >= most);
}

function drawChart(id, column, shown) {
  const figure = byId(id), plot = figure.querySelector(".plot"), name = figure.firstElementChild.firstChild.textContent;
  const width = plot.clientWidth, height = 150, left = 66, right = width - 6, top = 10, bottom = 126;
  const end = Date.now() / 1000, begin = end - DAY_SECONDS;
  const points = known.points.filter((point) => point[0] >= begin);
  const values = points.map((point) => point[column]).filter((value) => value !== null);
  const most = niceTop(Math.max(0, ...values));
  const x = (time) => left + (right - left) * (time - begin) / DAY_SECONDS;
  const y = (value) => bottom - (bottom - top) * value / most;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary(name, values, shown) });
  for (const share of [0, 0.5, 1]) {
    svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y(most * share), y2: y(most * share) }));
    svg.append(draw("text", { x: left - 8, y: y(most * share) + 4, "text-anchor": "end" }, share ? shown(most * share) : "0"));
  }
  for (const time of hoursBetween(begin, end)) {
    svg.append(draw("line", { class: "grid", x1: x(time), x2: x(time), y1: bottom, y2: bottom + 4 }));
    svg.append(draw("text", { x: x(time), y: bottom + 18, "text-anchor": "middle" }, hour(time)));
  }
  for (const run of runsOf(points, column)) {
    const line = run.map(([time, value]) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`);
    const last = x(run[run.length - 1][0]).toFixed(1);
    svg.append(draw("path", { class: "area", d: `M${x(run[0][0]).toFixed(1)},${bottom} L${line.join(" ")} L${last},${bottom}Z` }));
    svg.append(draw("path", { class: "line", d: `M${line.join(" L")}` }));
  }
  const cursor = draw("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
  svg.append(cursor);
  plot.replaceChildren(svg);
  const reading = figure.querySelector(".reading");
  put(reading, values.length ? `at most ${shown(Math.max(...values))}` : "nothing known yet");
  svg.addEventListener("pointermove", (event) => {
    const time = begin + DAY_SECONDS * (event.offsetX - left) / (right - left);
    const nearest = nearestTo(points, time, column);
    if (!nearest) return;
    cursor.setAttribute("x1", x(nearest[0]));
    cursor.setAttribute("x2", x(nearest[0]));
    cursor.setAttribute("visibility", "visible");
    put(reading, `${hour(nearest[0])}: ${shown(nearest[column])}`);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    put(reading, values.length ? `at most ${shown(Math.max(...values))}` : "");
  });
}

function summary(name, values, shown) {
  if (!values.length) return `${name.trim()}: nothing known yet`;
  return `${name.trim()} of the last day: now ${shown(values[values.length - 1])}, at most ${shown(Math.max(...values))}`;
}

function nearestTo(points, time, column) {
  let best = null;
  for (const point of points) {
    if (point[column] !== null && (!best || Math.abs(point[0] - time) < Math.abs(best[0] - time))) best = point;
  }
  return best;
}

function hoursBetween(begin, end) {
  const first = new Date(begin * 1000);
  first.setMinutes(0, 0, 0);
  const times = [];
  for (let time = first.getTime() / 1000; time <= end; time += 3600) {
    if (time > begin + 1800 && time < end - 1800 && new Date(time * 1000).getHours() % 6 === 0) times.push(time);
  }
  return times;
}

function runsOf(points, column) {
  // Where nothing was known there is no line.
  const runs = [];
  let run = null;
  for (const point of points) {
    if (point[column] === null) { run = null; continue; }
    if (!run) runs.push(run = []);
    run.push([point[0], point[column]]);
  }
  return runs;
}

function showHistory() {
  const first = known.points.length ? known.points[0][0] : null;
  const isWhole = first !== null && Date.now() / 1000 - first >= DAY_SECONDS - 300;
  put(byId("day-since"), first === null ? "" : isWhole ? "one point a minute" : `known since ${moment(first)}, when this page was first served`);
  drawChart("rate", 1, (value) => `${size(value)}/s`);
  drawChart("behind", 2, size);
  showHours();
}

function showHours() {
  const hours = new Map();
  for (const [time, rate, backlog, age] of known.points) {
    const start = new Date(time * 1000).setMinutes(0, 0, 0) / 1000;
    const sums = hours.get(start) || { sent: 0, rate: 0, backlog: 0, age: 0 };
    sums.sent += (rate || 0) * known.step;
    sums.rate = Math.max(sums.rate, rate || 0);
    sums.backlog = Math.max(sums.backlog, backlog || 0);
    sums.age = Math.max(sums.age, age || 0);
    hours.set(start, sums);
  }
  const rows = [...hours].sort((one, other) => other[0] - one[0]).map(([start, sums]) => [moment(start), size(sums.sent),
    `${size(sums.rate)}/s`, size(sums.backlog), sums.age ? duration(sums.age) : "none"]);
  replaceIfOther(byId("hours"), rows, (texts) => texts.map(([first, ...others]) => {
    const row = make("tr"), head = make("th", first);
    head.scope = "row";
    row.append(head, ...others.map((text) => make("td", text)));
    return row;
  }));
}

// -- groups ----------------------------------------------------------------------------------------------------------

function groupsOf(status) {
  const groups = new Map();
  const group = (name) => {
    if (!groups.has(name)) groups.set(name, { name, snapshots: [], problem: false, held: 0, missing: false });
    return groups.get(name);
  };
  const groupName = (path) => path.slice(0, path.lastIndexOf("/"));
  for (const [name] of Object.entries(status.publishing || {})) group(groupName(name));
  for (const snapshot of known.snapshots) group(groupName(snapshot.snapshot)).snapshots.push(snapshot);
  if (status.recovery_point.oldest) group(groupName(status.recovery_point.oldest)).missing = true;
  for (const removal of status.retention.held) group(groupName(removal.snapshot)).held += 1;
  for (const found of groups.values()) {
    found.problem = status.problems.some((one) => one.name === found.name || one.name.startsWith(`${found.name}/`));
  }
  return [...groups.values()];
}

function stateOf(group, status) {
  const publishing = Object.keys(status.publishing || {}).some((name) => name.startsWith(`${group.name}/`));
  if (group.problem) return ["has a problem", "bad", 0];
  if (group.held) return [`${group.held} held`, "warn", 1];
  if (publishing) return ["being published", "wait", 2];
  if (group.missing) return ["on its way", "wait", 2];
  if (group.snapshots.some((one) => PHASES[one.phase][1] !== "good")) return ["changing", "wait", 2];
  return ["in the bucket", "good", 3];
}

function rowOf(name) {
  if (groupRows.has(name)) return groupRows.get(name);
  const row = make("tr", undefined, "group"), head = make("th"), button = make("button");
  head.scope = "row";
  button.type = "button";
  button.append(make("span", name, "name"));
  button.setAttribute("aria-expanded", "false");
  head.append(button);
  const cell = make("td"), state = make("span", "", "state");
  cell.append(state);
  const made = { row, button, state, count: make("td", "", "number"), newest: make("td"), inner: null };
  row.append(head, cell, made.count, made.newest);
  button.addEventListener("click", () => {
    const isOpen = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) {
      made.inner.remove();
      made.inner = null;
    }
    showGroups();
  });
  groupRows.set(name, made);
  return made;
}

function showGroups() {
  if (!known.live) return;
  const status = known.live.status, wanted = byId("filter").value.toLowerCase();
  const groups = groupsOf(status).filter((group) => group.name.toLowerCase().includes(wanted));
  for (const group of groups) group.state = stateOf(group, status);
  groups.sort((one, other) => one.state[2] - other.state[2] ||
    one.name.localeCompare(other.name, "en", { numeric: true }));
  const rows = [];
  for (const group of groups.slice(0, MOST_GROUPS)) {
    const made = rowOf(group.name), newest = group.snapshots.reduce((last, one) => (one.snapshot > last ? one.snapshot : last), "");
    put(made.state, group.state[0]);
    mark(made.state, group.state[1]);
    put(made.count, String(group.snapshots.length));
    put(made.newest, newest ? moment(Date.parse(newest.slice(newest.lastIndexOf("/") + 1)) / 1000) : "–");
    rows.push(made.row);
    if (made.button.getAttribute("aria-expanded") === "true") rows.push(innerOf(made, group, status));
  }
  const body = byId("groups"), had = document.activeElement;
  const isSame = body.children.length === rows.length && rows.every((row, index) => body.children[index] === row);
  if (!isSame) {
    body.replaceChildren(...rows);
    if (had && body.contains(had)) had.focus({ preventScroll: true });
  }
  const left = groups.length - MOST_GROUPS;
  put(byId("groups-note"), left > 0 ? `and ${counted(left, "more group", "more groups")}: filter them by name`
    : groups.length ? "" : wanted ? "No group has that in its name." : "No backup has been mirrored yet.");
}

function innerOf(made, group, status) {
  if (!made.inner) {
    made.inner = make("tr");
    const cell = make("td", undefined, "inner");
    cell.colSpan = 4;
    made.inner.append(cell);
  }
  const snapshots = [...group.snapshots].sort((one, other) => (one.snapshot < other.snapshot ? 1 : -1));
  const rows = snapshots.slice(0, MOST_SNAPSHOTS).map((one) => snapshotTexts(one, status));
  const left = snapshots.length - rows.length;
  replaceIfOther(made.inner.firstChild, [group.name, rows, left], () => [snapshotTable(group.name, rows),
    ...(left > 0 ? [make("p", `and ${counted(left, "older one", "older ones")}`, "quiet")] : [])]);
  return made.inner;
}

function snapshotTexts(one, status) {
  const name = one.snapshot;
  const isHeld = status.retention.held.some((removal) => removal.snapshot === name);
  const problem = status.problems.find((found) => found.name === name || found.name.startsWith(`${name}/`));
  const [text, kind] = problem ? [problem.reason, "bad"] : isHeld ? ["held in the bucket", "warn"] : PHASES[one.phase];
  return [name.slice(name.lastIndexOf("/") + 1), text, kind, moment(one.since)];
}

function snapshotTable(group, rows) {
  const table = make("table"), head = make("thead"), body = make("tbody"), titles = make("tr");
  table.append(make("caption", `Snapshots of ${group}`, "unseen"), head, body);
  for (const title of ["Snapshot", "State", "Since"]) {
    const cell = make("th", title);
    cell.scope = "col";
    titles.append(cell);
  }
  head.append(titles);
  for (const [name, text, kind, since] of rows) {
    const row = make("tr"), first = make("th"), cell = make("td"), state = make("span", text, "state");
    first.scope = "row";
    first.append(make("span", name, "name"));
    mark(state, kind);
    cell.append(state);
    row.append(first, cell, make("td", since));
    body.append(row);
  }
  return table;
}

// -- drills, scrub, store --------------------------------------------------------------------------------------------

function facts(element, rows) {
  replaceIfOther(element, rows.filter((row) => row[1]), (shown) => shown.flatMap(([title, text, kind]) => {
    const value = make("dd");
    const inner = make("span", text, kind ? "state" : "");
    if (kind) mark(inner, kind);
    value.append(inner);
    return [make("dt", title), value];
  }));
}

function showChecks(live) {
  const scrub = live.status.scrub, drills = live.drills, bad = drills.filter((one) => !one.good);
  const rows = [];
  if (live.drills_error) rows.push(["Notes of drills", live.drills_error, "bad"]);
  if (!drills.length) {
    rows.push(["Drills", "no group was restored for a trial yet"]);
  } else {
    const text = `${counted(live.drills_count, "group", "groups")} restored for a trial, the last on ${moment(drills[0].time)}`;
    rows.push(["Drills", bad.length ? `${bad.length} of them failed` : text, bad.length ? "bad" : "good"]);
    for (const one of bad.slice(0, 10)) rows.push(["Failed", `${one.group}, ${moment(one.time)}`]);
  }
  if (!scrub) rows.push(["Scrub", "not known yet"]);
  else if (!scrub.percent_per_day) rows.push(["Scrub", "off (verify.percent_per_day = 0)"]);
  else rows.push(...scrubRows(scrub));
  facts(byId("checks"), rows);
}

function scrubRows(scrub) {
  const parts = Object.keys(scrub.parts).length;
  return [
    ["Scrub", `${scrub.percent_per_day} % of the bucket is read again each day`],
    ["Read", scrub.never_read ? `${parts - scrub.never_read} of ${parts} parts so far` : `everything since ${moment(scrub.oldest)}`],
    ["Checked", counted(scrub.objects, "object", "objects") + " since the uploader started"],
    ["Mended", scrub.sent_again ? `${counted(scrub.sent_again, "object", "objects")} sent again` : "nothing had to be"],
    ["Not readable", scrub.refusal || "", "bad"],
  ];
}

function showStore(status, counts) {
  const store = status.store, features = [];
  if (store.versioned) features.push("versioning");
  if (store.object_lock) features.push("object lock");
  const up = store.up ? ["answers", "good"] : [`not usable since ${moment(store.since)}: ${store.last_error}`, "bad"];
  facts(byId("store"), [
    ["Place", store.place],
    ["State", ...up],
    ["Proof of upload", store.confirmation],
    ["Has", features.join(", ")],
    ["Does without", Object.keys(store.does_without).join(", ")],
    ["Last error", store.up && store.last_error ? `${moment(store.last_error_at)}: ${store.last_error}` : ""],
    ["Clock", store.clock_is_trusted ? "" : `differs by ${Math.round(store.clock_difference)} s: nothing goes because of its age`, "bad"],
    ["Stalled", store.requests_without_progress.map((one) => `${one.request} for ${duration(one.seconds)}`).join("; ")],
    ["Chunk store", status.chunk_store.in_use === "native" ? "native" : `fuse: ${status.chunk_store.reason}`],
    ["Locks", status.locks_obstacle || "", "bad"],
    ["Removed", counts.deleted
      ? `${counted(counts.deleted, "snapshot", "snapshots")} still restorable, the first until ${moment(counts.deleted_first_until)}` : ""],
    ["Foreign names", status.foreign.count ? `${status.foreign.count}, passed through only: ${status.foreign.examples.slice(0, 5).join(", ")}` : ""],
  ]);
}

// -- keeping up to date ----------------------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path, { credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(45000) });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

function tell(text) {
  const element = byId("notice");
  element.hidden = !text;
  put(element, text || "");
  document.body.classList.toggle("stale", Boolean(text));
}

async function update() {
  const live = await ask("live.json");
  put(byId("version"), `mirrorfs ${live.version}`);
  if (live.error) tell(`The mirror does not answer: ${live.error}`);
  else tell("");
  if (!live.status) {
    put(byId("word"), "Unknown");
    put(byId("why"), "");
    mark(byId("verdict"), "bad");
    return;
  }
  if (live.snapshots_version !== known.snapshotsVersion) {
    known.snapshots = await ask("snapshots.json");
    known.snapshotsVersion = live.snapshots_version;
  }
  if (live.history_at !== known.historyAt) {
    const history = await ask("history.json");
    known.points = history.points;
    known.step = history.step;
    known.historyAt = live.history_at;
    showHistory();
  }
  known.live = live;
  put(byId("datastore"), live.status.datastore);
  put(byId("place"), `→ s3://${live.status.bucket}/${live.status.prefix}`);
  put(byId("age"), `as of ${new Date(live.read_at * 1000).toLocaleTimeString("en-GB")}`);
  showVerdict(live.status);
  showTiles(live.status, live.counts);
  showAttention(live);
  showGroups();
  showChecks(live);
  showStore(live.status, live.counts);
}

let timer = null;
let isAsking = false;

async function keepUp() {
  clearTimeout(timer);
  if (isAsking) return;
  isAsking = true;
  try {
    await update();
  } catch (error) {
    tell(`‘mirrorfs web’ does not answer: ${error.message}. What is shown is old; it is asked again every ${POLL_SECONDS} s.`);
  } finally {
    isAsking = false;
  }
  // A page that nobody sees asks for nothing.
  if (!document.hidden) timer = setTimeout(keepUp, POLL_SECONDS * 1000);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) keepUp(); });
byId("filter").addEventListener("input", showGroups);
new ResizeObserver(() => { if (known.historyAt !== null) showHistory(); }).observe(byId("rate"));
keepUp();
