// The conversation: pictures, numbered regions, questions and streamed answers. Text of a model is only ever text.

import { RegionCanvas, stepColor } from "./regions.js";

const $ = (id) => document.getElementById(id);
const HINTS = { click: "click on a thing", box: "drag a box", polygon: "click the corners, double-click to close" };
let state = fresh();
let maxBytes = Infinity;
const canvas = new RegionCanvas($("canvas"), addRegion);

function fresh() {
  return { pictures: [], shown: 0, regions: [], turns: [], busy: false };
}

async function start() {
  const model = await (await fetch("api/model")).json();
  maxBytes = model.max_bytes;
  $("model").textContent = `${model.title}, regions as ${model.codec}`;
  for (const button of document.querySelectorAll("#tools button")) {
    button.hidden = !model.kinds.includes(button.dataset.kind);
    button.onclick = () => pick(button.dataset.kind);
  }
  pick("box");
  render();
}

function pick(kind) {
  canvas.cancel();
  canvas.kind = kind;
  $("hint").textContent = HINTS[kind];
  for (const button of document.querySelectorAll("#tools button")) {
    button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  }
}

function say(text) {
  $("message").hidden = !text;
  $("message").textContent = text || "";
}

async function addFiles(files) {
  say("");
  for (const file of files) {
    try {
      if (file.size > maxBytes) throw new Error(`seen ${Math.ceil(file.size / 2 ** 20)} MB, expected at most ${maxBytes / 2 ** 20} MB`);
      const headers = { "Content-Type": "application/octet-stream" };
      const answer = await fetch("api/image", { method: "POST", headers, body: file });
      const picture = await answer.json();
      if (!answer.ok) throw new Error(picture.error);
      const image = new Image();
      image.src = URL.createObjectURL(file);
      await image.decode();
      state.pictures.push({ ...picture, image });
      state.shown = state.pictures.length - 1;
    } catch (error) {
      say(`${file.name}: ${error.message}`);
    }
  }
  render();
}

function addRegion(points) {
  state.regions.push({ image: state.shown, points });
  render();
}

function removeRegion(index) {
  state.regions.splice(index, 1);
  render();
}

async function ask() {
  const question = $("question").value.trim();
  if (state.busy) return;
  if (!question) return say("Write a question first.");
  say("");
  const user = { role: "user", text: question };
  const reply = { role: "model", text: "", boxes: [], badge: null };
  state.turns.push(user, reply);
  state.busy = true;
  $("question").value = "";
  render();
  try {
    const response = await fetch("api/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        images: state.pictures.map((picture) => picture.id),
        regions: state.regions,
        texts: state.turns.slice(0, -1).map((turn) => turn.text),
        task: $("task").value,
        constrain: $("constrain").checked,
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error);
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error);
      if (event.task) reply.badge = { task: event.task, automatic: event.automatic };
      if (event.text !== undefined) Object.assign(reply, { text: event.text, boxes: event.boxes });
      if (event.boxes && event.boxes.length) state.shown = event.boxes[event.boxes.length - 1].image;
      render();
    }
  } catch (error) {
    state.turns.splice(-2, 2); // the question goes back to where it was written
    $("question").value = question;
    say(error.message);
  }
  state.busy = false;
  render();
  $("question").focus();
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}

function render() {
  const picture = state.pictures[state.shown] || null;
  const last = state.turns[state.turns.length - 1];
  const here = (region) => region.image === state.shown;
  const numbered = state.regions.map((region, i) => ({ ...region, number: i + 1 }));
  canvas.show(picture, numbered.filter(here), last && last.boxes ? labelled(last.boxes).filter(here) : []);
  $("drop").hidden = Boolean(picture);
  $("send").disabled = $("box").disabled = state.busy;
  $("thumbs").replaceChildren(...(state.pictures.length > 1 ? state.pictures.map(thumb) : []));
  $("regions").replaceChildren(...numbered.map(chip));
  const empty = element("li", "empty", "Add a picture, point at things, and ask. Region numbers such as #1 can stand in the question.");
  $("turns").replaceChildren(...(state.turns.length ? state.turns.map(bubble) : [empty]));
  $("turns").scrollTop = $("turns").scrollHeight;
}

// "1", "2" ... where an answer has boxes in several steps; boxes of one place share a label ("1, 2").
function labelled(boxes) {
  if (!boxes.some((box) => box.step)) return boxes.map((box) => ({ ...box, label: "" }));
  const place = (box) => JSON.stringify([box.image, box.points]);
  return boxes.map((box) => {
    const steps = boxes.filter((other) => place(other) === place(box)).map((other) => other.step + 1);
    return { ...box, label: [...new Set(steps)].join(", ") };
  });
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function thumb(picture, index) {
  const button = element("button", "");
  const image = element("img", "");
  image.src = picture.image.src;
  image.alt = "";
  button.type = "button";
  button.title = `picture ${index + 1}`;
  button.setAttribute("aria-pressed", String(index === state.shown));
  button.append(image, element("span", "", String(index + 1)));
  button.onclick = () => {
    state.shown = index;
    render();
  };
  return button;
}

function chip(region, index) {
  const kind = { 1: "click", 2: "box" }[region.points.length] || "polygon";
  const where = state.pictures.length > 1 ? ` on picture ${region.image + 1}` : "";
  const made = element("span", "chip");
  const name = element("button", "", `#${region.number} ${kind}${where}`);
  name.title = "Put it into the question";
  name.onclick = () => {
    const field = $("question");
    field.setRangeText(`#${region.number}`, field.selectionStart, field.selectionEnd, "end");
    field.focus();
  };
  const remove = element("button", "", "\u00d7");
  remove.title = "Remove";
  remove.setAttribute("aria-label", `Remove region ${region.number}`);
  remove.onclick = () => removeRegion(index);
  made.append(name, remove);
  return made;
}

function bubble(turn) {
  if (turn.role === "user") return element("li", "user", turn.text);
  const made = element("li", "model");
  let end = 0;
  for (const box of turn.boxes || []) {
    if (box.start < end) continue;
    made.append(turn.text.slice(end, box.start));
    const mark = element("mark", "", turn.text.slice(box.start, box.end));
    mark.style.borderColor = stepColor(box.step);
    made.append(mark);
    end = box.end;
  }
  made.append(turn.text.slice(end) || (turn.text ? "" : "\u2026"));
  if (turn.badge) {
    const how = turn.badge.automatic ? "automatic" : "forced";
    made.append(element("br", ""), element("span", `badge ${turn.badge.task}`, `${turn.badge.task} (${how})`));
  }
  return made;
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  ask();
};
$("box").onclick = () => {
  const question = $("question").value.trim();
  if (question && !/\bbox(es)?\b/i.test(question)) $("question").value = `${question} Answer with a box.`;
  ask();
};
$("file").onchange = () => {
  addFiles([...$("file").files]);
  $("file").value = "";
};
$("clear").onclick = () => {
  state.pictures.forEach((picture) => URL.revokeObjectURL(picture.image.src));
  state = fresh();
  say("");
  render();
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !canvas.cancel() && state.regions.length) removeRegion(state.regions.length - 1);
  if (event.key === "Enter" && !event.shiftKey && event.target === $("question")) {
    event.preventDefault();
    ask();
  }
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", name === "dragover");
    if (name === "drop" && event.dataTransfer) addFiles([...event.dataTransfer.files]);
  });
}
start();
