"use strict";

// The messages are described in y7edge/live/server.py.

const LATE_MS = 3000; // without any message, of which there is one per second: say so
const SILENT_MS = 10000; // the network is gone: connect again
const RETRY_MS = [500, 1000, 2000, 5000];
const SEND_MS = 100; // between two changes of the threshold
const LONGEST_LABEL = 24; // characters of a name in the image
const SETTLE_MS = 800; // after the last change, until the slider follows other viewers again

const $ = (id) => document.getElementById(id);
const canvas = $("image");
const pen = canvas.getContext("2d");

let socket = null;
let attempts = 0;
let heard = 0; // when the last message came
let hello = null;
let status = null;
let source = 0;
let paused = false;
let shown = null; // {header, bitmap, jpeg}
let threshold = 0;
let touched = -Infinity; // when the slider was moved
let pending = null;
let lost = ""; // why there is no connection
const problems = { saving: "", image: "", message: "" }; // what the banner says
const hidden = new Set(); // class ids without boxes

// --- connection ---------------------------------------------------------------------------------

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const opened = new WebSocket(`${scheme}://${location.host}/stream`);
  socket = opened;
  opened.binaryType = "arraybuffer";
  heard = performance.now();
  opened.onmessage = (event) => {
    heard = performance.now();
    if (typeof event.data === "string") receive(JSON.parse(event.data));
    else receiveImage(event.data, opened);
  };
  opened.onclose = (event) => {
    if (socket === opened) retry(event.code);
  };
}

async function retry(code) {
  socket = null;
  const reasons = {
    4001: "The program has ended. This page continues when it is started again.",
    4002: "The largest number of viewers is connected. This page waits for a place.",
    4003: "The connection was too slow.",
  };
  lost = reasons[code] || lost || "No connection to the robot."; // later attempts know less
  if (code === 1006) {
    try {
      const found = await (await fetch("/access", { cache: "no-store" })).json();
      if (!found.allowed) lost = "A token is needed: open the address that the program has printed.";
    } catch {
      // No connection: the program does not run, or the network is gone.
    }
  }
  showState();
  setTimeout(connect, RETRY_MS[Math.min(attempts, RETRY_MS.length - 1)]);
  attempts += 1;
}

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function watch() {
  send({ type: "watch", source: paused || document.hidden ? null : source });
}

setInterval(() => {
  if (socket && performance.now() - heard > SILENT_MS) {
    const silent = socket;
    silent.onclose = null;
    silent.close();
    retry(0);
  }
  if (hello) showState();
}, 1000);

function receive(message) {
  if (message.type === "hello") {
    attempts = 0;
    lost = "";
    begin(message);
    showModel();
    watch();
  } else if (message.type === "status") {
    status = message;
    showStatus();
  } else if (message.type === "error") {
    showBanner("message", message.message);
  }
  showState();
}

// The program may have been started again, with other cameras, or uses another model.
function begin(message) {
  const same = (key) => hello && JSON.stringify(hello[key]) === JSON.stringify(message[key]);
  if (!same("names")) hidden.clear();
  if (!same("sources") || !same("names")) {
    source = same("sources") ? source : 0;
    forget();
  }
  hello = message;
  status = null;
  showBanner("message", "");
}

function isOfModel(thing) {
  return thing.model_id === hello.model_id;
}

function forget() {
  if (shown) shown.bitmap.close();
  shown = null;
  showImage();
}

async function receiveImage(data, from) {
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const jpeg = new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" });
  try {
    if (header.problem) throw new Error(header.problem);
    const bitmap = await createImageBitmap(jpeg);
    // An image that was on its way when the viewer paused, chose another camera, or when the model
    // was replaced, whose classes have other names, is not drawn.
    if (header.source === source && !paused && isOfModel(header)) {
      if (shown) shown.bitmap.close();
      shown = { header, bitmap, jpeg };
      showImage();
    } else {
      bitmap.close();
    }
    showBanner("image", "");
  } catch (error) {
    showBanner("image", `An image cannot be shown: ${error.message}`);
  }
  if (from === socket) send({ type: "drawn" });
}

// --- image --------------------------------------------------------------------------------------

function showImage() {
  $("stage").classList.toggle("empty", !shown);
  $("snapshot").disabled = !shown;
  showState();
  if (!shown) {
    canvas.width = canvas.height = 0;
    return;
  }
  const [width, height] = shown.header.size;
  const widest = $("stage").clientWidth;
  const highest = Math.max(200, window.innerHeight * (widest > 700 ? 0.8 : 0.7));
  const scale = Math.min(widest / width, highest / height);
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
  }
  draw(pen, canvas.width / width, ratio, $("boxes").checked);
  canvas.setAttribute("aria-label", words());
}

// Draw the image and its boxes; `scale` converts pixels of the source's image to pixels of the
// canvas, `unit` is the size of a CSS pixel on it.
function draw(context, scale, unit, boxes) {
  const [width, height] = shown.header.size;
  context.imageSmoothingQuality = "high";
  context.drawImage(shown.bitmap, 0, 0, width * scale, height * scale);
  if (!boxes) return;
  const font = 13 * unit;
  context.font = `600 ${font}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.lineJoin = "round";
  for (const [left, top, right, bottom, confidence, kind, tracker] of visible().reverse()) {
    const colour = colourOf(kind);
    const [x, y] = [left * scale, top * scale];
    context.lineWidth = 2.5 * unit;
    context.strokeStyle = colour.css;
    context.strokeRect(x, y, (right - left) * scale, (bottom - top) * scale);
    const id = tracker === null ? "" : ` #${tracker}`;
    const name = nameOf(kind);
    const short = name.length > LONGEST_LABEL ? `${name.slice(0, LONGEST_LABEL - 1)}…` : name;
    // Isolated, so that a name written from right to left does not move the numbers.
    const text = `\u2068${short}\u2069${id} ${confidence.toFixed(2)}`;
    const wide = context.measureText(text).width + 10 * unit;
    const high = font + 7 * unit;
    const labelX = Math.max(0, Math.min(x - 1.25 * unit, width * scale - wide));
    const labelY = y >= high ? y - high : Math.max(0, y);
    context.fillStyle = colour.css;
    context.beginPath();
    if (context.roundRect) context.roundRect(labelX, labelY, wide, high, 4 * unit);
    else context.rect(labelX, labelY, wide, high);
    context.fill();
    context.fillStyle = colour.ink;
    context.fillText(text, labelX + 5 * unit, labelY + high / 2 + unit / 2);
  }
}

function visible() {
  if (!shown) return [];
  return shown.header.boxes.filter((box) => box[4] > threshold && !hidden.has(box[5]));
}

function nameOf(kind) {
  return (hello && hello.names[kind]) || `#${kind}`;
}

function colourOf(kind) {
  const [red, green, blue] = (hello && hello.colours[kind]) || [255, 255, 255];
  const luma = 0.299 * red + 0.587 * green + 0.114 * blue; // ITU-R BT.601
  return { css: `rgb(${red}, ${green}, ${blue})`, ink: luma > 128 ? "#000" : "#fff" };
}

function words() {
  const counts = new Map();
  for (const box of visible()) counts.set(nameOf(box[5]), (counts.get(nameOf(box[5])) || 0) + 1);
  const found = [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
  return `Image of ${hello ? hello.sources[shown.header.source] : "the camera"}: ${found || "no objects"}`;
}

async function snapshot() {
  if (!shown) return;
  let image = shown.jpeg; // as received, without boxes
  const name = `${hello.sources[shown.header.source]}-${shown.header.frame ?? 0}.jpg`;
  if ($("boxes").checked) {
    const copy = document.createElement("canvas");
    copy.width = shown.bitmap.width;
    copy.height = shown.bitmap.height;
    draw(copy.getContext("2d"), copy.width / shown.header.size[0], 1, true);
    image = await new Promise((done) => copy.toBlob(done, "image/jpeg", 0.95));
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(image);
  link.download = name.replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(-100);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- what is shown beside the image ---------------------------------------------------------------

function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text; // or screen readers repeat it
}

function showBanner(kind, text) {
  problems[kind] = text;
  const all = Object.values(problems).filter(Boolean).join("\n");
  $("banner").hidden = !all;
  setText("banner", all);
}

const STATES = {
  opening: ["opening", "warn", "The camera is being opened."],
  stalled: ["stalled", "bad", "No image is coming from the camera."],
  reconnecting: ["reconnecting", "warn", "The camera is being opened again."],
  ended: ["ended", "", "The source has ended."],
  failed: ["failed", "bad", "The camera has failed."],
  closed: ["closed", "", "The source is closed."],
};

function showState() {
  const row = status && status.sources[source];
  let [text, kind, message] = ["live", "good", ""];
  if (row && row.state !== "running") {
    [text, kind, message] = STATES[row.state] || [row.state, "warn", ""];
    if (row.problem) message = `${message}\n${row.problem}`;
  } else if (row && row.silent) {
    const seconds = row.silent.toFixed(0);
    [text, kind, message] = ["no results", "bad", `No result for ${seconds} s. The model is slow, or does not respond.`];
  }
  if (paused) [text, kind, message] = ["paused", "", ""];
  if (!shown && !message) message = paused ? "Paused" : "Waiting for the first image";
  const late = performance.now() - heard;
  if (late > LATE_MS) {
    [text, kind, message] = ["no answer", "warn", `No message from the robot for ${(late / 1000).toFixed(0)} s.`];
  }
  if (lost) [text, kind, message] = ["reconnecting", "warn", lost];
  else if (!hello) [text, kind] = ["connecting", ""];
  setText("state", text);
  $("state").className = `pill ${kind}`;
  $("message").hidden = !message;
  setText("message", message);
  $("stage").classList.toggle("stale", Boolean(shown && message));
}

function showModel() {
  setText("model", hello.model);
  document.title = `${hello.model} – y7edge live`;
  const facts = {
    Model: hello.model, Engine: hello.engine, Device: hello.device, Precision: hello.precision,
    Input: hello.input, Proof: hello.proof, Recording: hello.recording,
  };
  $("facts").replaceChildren(
    ...Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => {
      const [term, text] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }),
  );
  $("sources").hidden = hello.sources.length < 2;
  $("source").replaceChildren(...hello.sources.map((name, index) => new Option(name, index)));
  $("source").value = String(source);
  setText(
    "conf-note",
    hello.recording
      ? "For all viewers, and for what is recorded and printed"
      : "For all viewers, and for what is printed",
  );
  showClasses();
}

function showClasses() {
  const rows = hello.names.map((name, kind) => {
    const [label, box, swatch] = ["label", "input", "span"].map((tag) => document.createElement(tag));
    const [text, count] = [document.createElement("span"), document.createElement("span")];
    label.className = "check";
    box.type = "checkbox";
    box.checked = !hidden.has(kind);
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(kind);
      else hidden.add(kind);
      showImage();
    });
    swatch.className = "swatch";
    swatch.style.backgroundColor = colourOf(kind).css;
    [text.className, text.textContent, count.className] = ["name", name, "count"];
    label.append(box, swatch, text, count);
    return label;
  });
  $("classes").replaceChildren(...rows);
}

function choose(all) {
  hidden.clear();
  if (!all) hello.names.forEach((_, kind) => hidden.add(kind));
  showClasses();
  showCounts();
  showImage();
}

function showCounts() {
  const row = status && status.sources[source];
  const cells = $("classes").querySelectorAll(".count");
  cells.forEach((cell, kind) => {
    const count = row && isOfModel(row) ? row.objects[kind] : 0;
    if (cell.textContent !== (count ? String(count) : "")) cell.textContent = count ? String(count) : "";
  });
}

function showStatus() {
  const row = status.sources[source];
  const [slider, now] = [$("conf"), performance.now()];
  slider.disabled = false;
  slider.min = String(status.floor);
  if (now - touched > SETTLE_MS) {
    slider.value = String(status.conf);
    setThreshold(status.conf);
  }
  showBanner("saving", status.problems.length ? `Not saved: ${status.problems.join("; ")}` : "");
  if (!row) return;
  setText("rate", row.rate.toFixed(1));
  setText("rate-more", row.stated_rate ? `of ${row.stated_rate.toFixed(0)}` : "");
  setText("age", row.age ? `${row.age.p50_ms.toFixed(0)} ms` : "–");
  setText("age-more", row.age ? `p99 ${row.age.p99_ms.toFixed(0)} ms` : "no capture times");
  setText("dropped", String(row.dropped));
  setText("dropped-more", `of ${row.frames}`);
  $("again").hidden = !row.reconnects;
  setText("reconnects", String(row.reconnects));
  $("heat").hidden = status.board.celsius === undefined;
  setText("celsius", `${(status.board.celsius ?? 0).toFixed(0)} °C`);
  setText("sensor", status.board.sensor ?? "");
  $("power").hidden = status.board.watts === undefined;
  setText("watts", `${(status.board.watts ?? 0).toFixed(1)} W`);
  $("power").title = status.board.rail ?? "";
  showCounts();
}

function setThreshold(value) {
  setText("conf-value", value.toFixed(2));
  if (threshold !== value) {
    threshold = value;
    showImage();
  }
}

// --- controls -------------------------------------------------------------------------------------

$("conf").addEventListener("input", () => {
  const value = Number($("conf").value);
  touched = performance.now();
  showBanner("message", "");
  setThreshold(value);
  if (pending === null) {
    pending = setTimeout(() => {
      pending = null;
      send({ type: "conf", value: Number($("conf").value) });
    }, SEND_MS);
  }
  setTimeout(() => status && showStatus(), SETTLE_MS + 100);
});

function pause(wanted) {
  paused = wanted;
  $("pause").setAttribute("aria-pressed", String(paused));
  setText("pause", paused ? "Resume" : "Pause");
  watch();
  showState();
}

$("pause").addEventListener("click", () => pause(!paused));

$("source").addEventListener("change", () => {
  source = Number($("source").value);
  forget();
  if (status) showStatus();
  pause(false);
});

$("snapshot").addEventListener("click", snapshot);
$("boxes").addEventListener("change", showImage);
$("all").addEventListener("click", () => hello && choose(true));
$("none").addEventListener("click", () => hello && choose(false));
document.addEventListener("visibilitychange", watch);
window.addEventListener("resize", showImage);

showImage();
connect();
